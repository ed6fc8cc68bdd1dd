# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine's libvirt: the connection, its errors, a lock around changes, and the QEMU processes behind it.

libvirt-python belongs to the system's Python. A module that runs under another one runs itself again under that.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import time
from contextlib import contextmanager

from ansible.module_utils.basic import missing_required_lib
from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

URI = "qemu:///system"
STATE = "/run/clachan/vm"
"""What is true until the next boot only: locks, what a boot probe found, what was seen at the last look."""
PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")
LOCK_SECONDS = 120
TERM_SECONDS = 5
RESTART_SECONDS = 15


class HypervisorError(Exception):
    """What is wrong with a domain, a volume or libvirt, as "<what> <which>: <value>, expected <what>"."""


def library(name, package):
    """A library of the system's Python; raises HypervisorError where none has it. May end this process: see respawn."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if not has_respawned():
            interpreter = probe_interpreters_for_module(list(PYTHONS), name)
            if interpreter:
                respawn_module(interpreter)
        raise HypervisorError(missing_required_lib("%s (Debian: %s)" % (name, package))) from None


def libvirt():
    return library("libvirt", "python3-libvirt")


def connect(uri, seconds=RESTART_SECONDS):
    """A connection; waits a moment for a libvirtd that is being started again."""
    binding = libvirt()
    # else every error that is handled here is printed as well
    binding.registerErrorHandler(lambda _context, _error: None, None)
    deadline = time.monotonic() + seconds
    while True:
        try:
            return binding.open(uri)
        except binding.libvirtError as problem:
            if time.monotonic() > deadline:
                raise HypervisorError("libvirt %s: %s, expected it to answer" % (uri, problem)) from None
            time.sleep(0.3)


def state_path(*names):
    """A path below STATE, whose directory is root's alone."""
    os.makedirs(STATE, mode=0o700, exist_ok=True)
    return os.path.join(STATE, *names)


@contextmanager
def locked(name):
    """Hold one of the node's locks, so that two runs never decide on one file or device at the same time."""
    handle = os.open(state_path("%s.lock" % name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with _locked(handle, "lock %s" % name):
        yield


@contextmanager
def folder_locked(path):
    """Hold the lock of the directory that a file is in."""
    folder = os.path.dirname(path)
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise HypervisorError("directory %s: %s, expected one" % (folder, problem.strerror)) from None
    with _locked(handle, "directory %s" % folder):
        yield


@contextmanager
def _locked(handle, what):
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HypervisorError(
                        "%s: held by another run for %d s, expected it free" % (what, LOCK_SECONDS)
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def emulators():
    """UUID -> process id of each QEMU of this machine that runs a domain."""
    return {uuid: int(pid) for pid, arguments in _all_arguments() for uuid in _values_of("-uuid", arguments)}


def processes(uuid):
    """The QEMU processes of this machine that run one domain, as [(pid, its arguments)]."""
    return [(int(pid), arguments) for pid, arguments in _all_arguments() if uuid in _values_of("-uuid", arguments)]


def _all_arguments():
    for name in os.listdir("/proc"):
        arguments = _arguments(name) if name.isdigit() else None
        if arguments:
            yield name, arguments


def _arguments(pid):
    """The arguments of a process that is a QEMU, else None."""
    try:
        with open("/proc/%s/comm" % pid, "rb") as file:
            if not file.read().startswith(b"qemu"):
                return None
        with open("/proc/%s/cmdline" % pid, "rb") as file:
            return file.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return None


def _values_of(option, arguments):
    return [value for word, value in zip(arguments, arguments[1:]) if word == option]  # noqa: B905 - Python 3.8


def end_orphans(uuid):
    """End the QEMU processes of a domain that libvirt says does not run: a killed libvirtd may leave one behind."""
    pids = [pid for pid, _arguments_of in processes(uuid)]
    for pid in pids:
        _end(pid, uuid)
    return pids


def _end(pid, uuid):
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + TERM_SECONDS
        while any(other == pid for other, _arguments_of in processes(uuid)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
    raise HypervisorError("process %d: runs on after SIGKILL, expected it to end" % pid)


def confinement(uuid):
    """How the QEMU process of a domain is confined: {pid, uid, sandbox}; None when there is none."""
    for pid, arguments in processes(uuid):
        with open("/proc/%d/status" % pid, encoding="utf-8") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        sandbox = any(value.startswith("on") for value in _values_of("-sandbox", arguments))
        return {
            "pid": pid,
            "uid": int(status["Uid"].split()[1]),
            "sandbox": sandbox and status.get("Seccomp", "0").strip() == "2",
        }
    return None
