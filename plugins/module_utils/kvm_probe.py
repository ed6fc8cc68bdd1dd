# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether KVM works here, found out by booting a kernel until its first line.

/dev/kvm exists, opens, and even runs a small real-mode program on machines where every real kernel hangs. The answer is
kept until the next boot of this machine, or another QEMU or kernel to probe with.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import tempfile
import time

from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError, locked, state_path
from ansible_collections.clachan.platform.plugins.module_utils.layout import write_file

DEVICE = "/dev/kvm"
SECONDS = 10
"""The same boot takes 0.6 s under software emulation."""
FIRST_LINE = b"Linux version"
EMULATORS = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm")
KERNELS = ("/boot/vmlinuz-*", "/boot/vmlinuz", "/vmlinuz", "/lib/modules/*/vmlinuz")


def choose(asked, kernel):
    """(accelerator, warning): "kvm" or "qemu" for what was asked for ("auto", "kvm", "qemu"); warning may be None."""
    if asked == "qemu":
        return "qemu", None
    obstacle = kvm_obstacle(kernel)
    if obstacle is None:
        return "kvm", None
    if asked == "kvm":
        raise HypervisorError("accelerator kvm: does not work here (%s), expected auto or qemu" % obstacle)
    return "qemu", "KVM does not work here: %s; software emulation (TCG), many times slower" % obstacle


def kvm_obstacle(kernel=None):
    """What keeps KVM from working; None when it works."""
    if not os.path.exists(DEVICE):
        return "there is no %s" % DEVICE
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if emulator is None:
        return "there is no QEMU"
    kernel = kernel or _kernel()
    if kernel is None:
        return "no kernel to try it with was found in /boot"
    with locked("kvm"):
        return _remembered(emulator, kernel)


def _kernel():
    found = [path for pattern in KERNELS for path in glob.glob(pattern) if os.path.isfile(path)]
    return max(found, key=os.path.getmtime) if found else None


def _remembered(emulator, kernel):
    path, circumstances = state_path("kvm.json"), _circumstances(emulator, kernel)
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        known = {}
    if known.get("circumstances") != circumstances:
        started = time.monotonic()
        obstacle = boot_obstacle(emulator, kernel, "kvm", SECONDS)
        known = {
            "circumstances": circumstances,
            "obstacle": obstacle,
            "milliseconds": int((time.monotonic() - started) * 1000),
        }
        write_file(path, json.dumps(known).encode(), 0o600)
    return known["obstacle"]


def _circumstances(emulator, kernel):
    """What the answer depends on."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot = file.read().strip()
    stamps = [
        [path, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in map(os.path.realpath, (emulator, kernel))
    ]
    return {"boot": boot, "release": os.uname().release, "files": stamps, "device": os.stat(DEVICE).st_rdev}


def boot_obstacle(emulator, kernel, accelerator, seconds):
    """Boot a kernel until its first line; None when it came within that time, else what happened instead."""
    command = [emulator, "-machine", "q35", "-accel", accelerator, "-cpu", "max", "-m", "256", "-smp", "1"]
    command += ["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-sandbox", "on"]
    command += ["-kernel", kernel, "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"]
    with tempfile.TemporaryDirectory(prefix="clachan-kvm-") as folder:
        serial = os.path.join(folder, "serial")
        command += ["-chardev", "file,id=s,path=%s" % serial, "-serial", "chardev:s"]
        with open(os.path.join(folder, "errors"), "w+b") as errors:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
            try:
                obstacle = _watch(process, serial, seconds)
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            said = errors.read(400).decode("utf-8", "replace").strip().splitlines()
    return "%s (%s)" % (obstacle, said[0]) if obstacle and said else obstacle


def _watch(process, serial, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.path.exists(serial):
            with open(serial, "rb") as file:
                if FIRST_LINE in file.read():
                    return None
        if process.poll() is not None:
            return "a kernel did not boot, QEMU ended with status %d" % process.returncode
        time.sleep(0.02)
    return "a kernel said nothing within %d s" % seconds
