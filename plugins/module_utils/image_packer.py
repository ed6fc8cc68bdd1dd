# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder that boots a guest: Packer's qemu builder, with a template made from the recipe, through packer-py.

The guest starts from the base's image and gets a seed, with which a key of this build may log in and with which no
package starts services. The last command cleans up, and turns the guest off without stopping services one by one:
those would write logs and a random seed again.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.clachan.platform.plugins.module_utils import image_bootable, image_provision, image_recipe
from ansible_collections.clachan.platform.plugins.module_utils.image_bootstrap import (
    PACKAGES,
    Bootstrap,
    installed_packages,
)
from ansible_collections.clachan.platform.plugins.module_utils.image_process import BuildError, find, hide, require, run
from ansible_collections.clachan.platform.plugins.module_utils.image_recipe import BASES, normalize, size_of
from ansible_collections.clachan.platform.plugins.module_utils.image_tree import BUILD, VARIABLES
from ansible_collections.clachan.platform.plugins.module_utils.kvm_probe import choose

MISSING = ""
try:
    from packerpy import PackerExecutable
except ImportError:
    PackerExecutable, MISSING = None, traceback.format_exc()

BASE_SIZE = "1GiB"
"""Of a base's own image; the guest's first boot takes what its disk has more."""
MEMORY_MIB = 1024
# pclmulqdq goes with aes: the kernel's module for AES uses both and else dies, and udev waits for it at shutdown
TCG_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq"
SSH = ["-o KexAlgorithms=curve25519-sha256", "-o UserKnownHostsFile=/dev/null", "-o StrictHostKeyChecking=no"]
LONGEST_SOCKET = 75
"""Bytes of a folder's path in which OpenSSH can make its control socket."""
STEPS = ("Starting VM", "Waiting for SSH", "Connected to SSH", "Provisioning", "Gracefully halting")
"""Of Packer's many lines, those that say how far it is."""
FAILED_TO_START = "Qemu failed to start"
"""So Packer says that it ended within the first moments; why, it does not say."""
PATIENCE_SECONDS = 10
"""For Packer to end after its guest has."""
FINISH = "sh %s/finish" % BUILD
# s, u, o of the kernel: write all, remount read-only, off; in the background, so that the command itself ends well
TURN_OFF = """
fstrim / 2> /dev/null || true
(sleep 1; for key in s u o; do echo $key > /proc/sysrq-trigger; sleep 1; done) > /dev/null 2>&1 &
"""
ISO = """
import io, json, sys, pycdlib
iso = pycdlib.PyCdlib()
iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
for number, (name, text) in enumerate(sorted(json.load(sys.stdin).items())):
    data = text.encode()
    iso.add_fp(io.BytesIO(data), len(data), "/F%d.;1" % number, rr_name=name, joliet_path="/" + name)
iso.write(sys.argv[1])
iso.close()
"""
SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's python3-pycdlib is for this one."""
CONTAINED = ["--pid", "--fork", "--kill-child", "--"]
"""QEMU and all else that Packer starts ends with it."""


class Packer:
    """`build` gives the disk of a recipe."""

    NAME = "packer"

    def __init__(self, store, setting):
        self._store, self._setting = store, setting

    def build(self, recipe, folder, stages):
        """Make the disk of a normalized recipe in a folder; returns (its path, the packages in it)."""
        if PackerExecutable is None:
            raise BuildError("%s %s" % (missing_required_lib("packer-py"), MISSING.strip().splitlines()[-1]))
        require("packer", "qemu-system-x86_64", "qemu-img", "ssh-keygen")
        base = self._base(recipe, folder, stages)
        work = os.path.join(folder, "packer")
        os.mkdir(work, 0o700)
        with stages.stage("recipe in a guest"):
            template = self._template(recipe, base, work)
            self._run(template, work, stages.tell)
        with stages.stage("disk"):
            disk = os.path.join(folder, "disk." + recipe["format"])
            image_bootable.convert(os.path.join(work, "out", "disk"), "qcow2", disk, recipe["format"])
        with open(os.path.join(work, "packages"), encoding="utf-8") as file:
            return disk, installed_packages(file.read())

    def _base(self, recipe, folder, stages):
        """The disk that the guest starts from; that of a plain base is built when it is missing."""
        if recipe["base"] not in BASES:
            return self._store.disk(recipe["base"])
        plain = normalize({"name": recipe["base"], "size": BASE_SIZE, "agent": recipe["agent"]})
        digest = image_recipe.digest(plain, self._setting.collection)
        with self._store.lock("recipe-" + digest):
            manifest = self._store.find(digest)
            if manifest is None:
                if os.geteuid() != 0:
                    told = (recipe["base"], self._store.path)
                    raise BuildError("image of %s: not in %s, expected it there, as only root can make it" % told)
                manifest = self._make_base(plain, digest, folder, stages)
        return self._store.disk(manifest["sha256"])

    def _make_base(self, plain, digest, folder, stages):
        inner = os.path.join(folder, "base")
        os.mkdir(inner)
        disk, packages = Bootstrap(self._store, self._setting).build(plain, inner, stages)
        about = {"name": plain["name"], "virtual_size": size_of(plain["size"]), "disk_format": plain["format"]}
        about.update(recipe_digest=digest, recipe=plain, packages=packages, builder=Bootstrap.NAME)
        return self._store.add(disk, about)

    # -- the template ------------------------------------------------------------------------------------------------

    def _template(self, recipe, base, work):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", image_provision.BUILD_KEY, "-f", work + "/key"])
        seed = self._seed(work)
        accelerator = {"kvm": "kvm", "qemu": "tcg"}[choose("auto", None)[0]]
        ansible = self._setting.ansible(os.path.join(work, "ansible"))
        playbooks = [ansible.write_play("play.json", image_provision.play(recipe)), *recipe["playbooks"]]
        variables = dict(ansible.variables(), ANSIBLE_SSH_ARGS=" ".join(SSH + multiplexing(work)))
        variables["ANSIBLE_SSH_CONTROL_PATH_DIR"] = os.path.join(work, "s")
        settings = ["%s=%s" % (name, value) for name, value in variables.items() if name.startswith("ANSIBLE_")]
        provisioner = {
            "type": "ansible",
            "command": image_provision.ansible_playbook(),
            "user": "root",
            "host_alias": image_provision.HOST,
            "use_proxy": False,
            "ansible_env_vars": settings,
            "extra_arguments": ["-e", "ansible_python_interpreter=/usr/bin/python3"],
        }
        query = " ".join("'%s'" % word for word in PACKAGES)
        provisioners = [dict(provisioner, playbook_file=path) for path in playbooks]
        provisioners += [
            {"type": "shell", "inline": ["%s > %s/packages" % (query, BUILD)]},
            {
                "type": "file",
                "direction": "download",
                "source": BUILD + "/packages",
                "destination": work + "/packages",
            },
        ]
        return {"builders": [self._builder(recipe, base, work, seed, accelerator)], "provisioners": provisioners}

    def _builder(self, recipe, base, work, seed, accelerator):
        drive = "file={{ .OutputDir }}/{{ .Name }},if=virtio,cache=unsafe,discard=unmap,format=qcow2"
        return {
            "type": "qemu",
            "name": "image",
            "iso_url": base,
            "iso_checksum": "sha256:" + os.path.basename(os.path.dirname(base)),
            "disk_image": True,
            "skip_compaction": True,
            "disk_size": "%dM" % (size_of(recipe["size"]) >> 20),
            "format": "qcow2",
            "accelerator": accelerator,
            "headless": True,
            "disable_vnc": True,
            "memory": MEMORY_MIB,
            "cpus": min(2, os.cpu_count() or 1),
            "boot_wait": "1s",
            "communicator": "ssh",
            "ssh_username": "root",
            "ssh_private_key_file": work + "/key",
            "ssh_timeout": "10m",
            "ssh_handshake_attempts": 1000,
            "output_directory": work + "/out",
            "vm_name": "disk",
            "shutdown_command": FINISH,
            "shutdown_timeout": "2m",
            # one flag given here takes the place of all that Packer has for that flag
            "qemuargs": [
                ["-drive", drive],
                ["-drive", "file=%s,if=virtio,format=raw,readonly=on" % seed],
                ["-netdev", "user,id=user.0,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"],
                ["-device", "virtio-net,netdev=user.0"],
                ["-device", "virtio-rng-pci"],
                ["-cpu", "host" if accelerator == "kvm" else TCG_CPU],
                ["-vnc", "none"],
                ["-serial", "file:%s/serial" % work],
                ["-pidfile", work + "/qemu.pid"],
            ],
        }

    def _seed(self, work):
        """The seed of the guest: the key of this build, and what it needs from this machine."""
        variables, needs = image_provision.build_needs(self._setting.environment)
        words = ['"%s=%s"' % pair for pair in sorted(dict(VARIABLES, **variables).items()) if '"' not in pair[1]]
        texts = {
            "/etc/ssh/sshd_config.d/00-clachan-build.conf": ("SetEnv %s\n" % " ".join(words), "0600"),
            image_provision.POLICY: (image_provision.POLICY_TEXT, "0755"),
            BUILD + "/finish": (image_provision.CLEAN + TURN_OFF, "0700"),
        }
        for name, (kind, value) in needs.items():
            if kind == "text" or os.path.isfile(value):
                texts["%s/%s" % (BUILD, name)] = (value if kind == "text" else read(value), "0644")
        files = [{"path": path, "content": text, "permissions": mode} for path, (text, mode) in sorted(texts.items())]
        user = {"ssh_authorized_keys": [read(work + "/key.pub").strip()], "write_files": files}
        ethernet = {
            "match": {"macaddress": "52:54:00:12:34:56"},
            "addresses": ["10.0.2.15/24"],
            "nameservers": {"addresses": ["10.0.2.3"]},
            "routes": [{"to": "0.0.0.0/0", "via": "10.0.2.2"}],
        }
        seed = {
            "meta-data": json.dumps({"instance-id": "build-%d" % time.time()}),
            "user-data": "#cloud-config\n" + json.dumps(user),
            "network-config": json.dumps({"version": 2, "ethernets": {"eth0": ethernet}}),
        }
        path = os.path.join(work, "seed.iso")
        run([_python_with_pycdlib(), "-c", ISO, path], text=json.dumps(seed))
        os.chmod(path, 0o600)
        return path

    # -- the run -----------------------------------------------------------------------------------------------------

    def _run(self, template, work, tell):
        """Run Packer to its end; its output goes to a file, which is followed."""
        path, output = os.path.join(work, "template.json"), os.path.join(work, "output")
        for folder in ("cache", "tmp", "s"):
            os.mkdir(os.path.join(work, folder), 0o700)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(template, file, indent=1)
        status = []
        with open(output, "wb") as said:
            program = PackerExecutable(wrapper(work), config={"stdout": said, "stderr": subprocess.STDOUT})
            thread = threading.Thread(target=lambda: status.append(program.build(path)[0]), daemon=True)
            thread.start()
            guest = Guest(work)
            errors = follow_output(output, lambda said: guest.watch(said) or thread.is_alive(), tell)
            thread.join()
        if guest.lost or any(FAILED_TO_START in line for line in errors):
            raise BuildError("guest of the build: its QEMU ended, expected it to run until Packer turns it off")
        if status != [0]:
            told = hide("\n".join(errors[-40:]))[-2000:]
            raise BuildError("packer build: exit status %s, expected 0: %s" % (status[0] if status else "none", told))


class Guest:
    """Packer waits for a guest that is gone as long as for one that boots: here it is ended with its guest."""

    def __init__(self, work):
        self._guest, self._packer = work + "/qemu.pid", work + "/packer.pid"
        self._since = None
        self.lost = False

    def watch(self, said):
        """End Packer when its guest ended before its time. After an error Packer ends the guest and then itself."""
        if self.lost or any(line.startswith(STEPS[-1]) for line in said) or not self._ended():
            return
        self._since = self._since or time.monotonic()
        if time.monotonic() > self._since + PATIENCE_SECONDS:
            self.lost = True
            os.kill(int(read(self._packer)), signal.SIGKILL)

    def _ended(self):
        """QEMU holds a lock on its file as long as it lives, whatever its number is in its own namespace."""
        try:
            with open(self._guest, "r+", encoding="utf-8") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file.read() != ""
        except (FileNotFoundError, BlockingIOError):
            return False


def multiplexing(work):
    if len(work) > LONGEST_SOCKET:
        return ["-o ControlMaster=no"]
    return ["-o ControlMaster=auto", "-o ControlPersist=60s"]


def _python_with_pycdlib():
    for python in (SYSTEM_PYTHON, sys.executable):
        if subprocess.run([python, "-c", "import pycdlib"], check=False, capture_output=True).returncode == 0:
            return python
    raise BuildError("Python library pycdlib: not found, expected it (Debian: python3-pycdlib)")


def wrapper(work):
    """A program that runs Packer in the work folder, so that it and what it starts ends with this process."""
    path = os.path.join(work, "run-packer")
    contained = [find("setpriv"), "--pdeathsig", "KILL", "--"]
    for own in ([], ["--user", "--map-root-user"]):
        command = [find("unshare"), *own, *CONTAINED]
        if subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0:
            contained += command
            break
    lines = ["#!/bin/sh", "cd '%s'" % work, "export PACKER_CACHE_DIR='%s/cache' TMPDIR='%s/tmp'" % (work, work)]
    lines += [
        "echo $$ > '%s/packer.pid'" % work,
        "export CHECKPOINT_DISABLE=1",
        'exec %s %s "$@"' % (" ".join(contained), find("packer")),
    ]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    os.chmod(path, 0o700)
    return path


def follow_output(path, alive, tell):
    """Tell the steps in Packer's machine-readable lines (time,target,type,data) as they come; returns what it said.

    `alive` gets what was said so far, and says whether there will be more.
    """
    said, task = [], image_provision.task_teller(tell)
    with open(path, encoding="utf-8", errors="replace") as file:
        rest = ""
        while True:
            running = alive(said)
            rest += file.read()
            *lines, rest = rest.split("\n")
            for line in lines:
                parts = line.split(",", 4)
                if len(parts) == 5 and parts[2] == "ui":
                    _tell(parts[3], parts[4], said, task, tell)
            if not running:
                return said
            time.sleep(0.2)


def _tell(kind, text, said, task, tell):
    for line in text.replace("%!(PACKER_COMMA)", ",").replace("\\r", "").split("\\n"):
        plain = line.strip()
        said.append(plain)
        plain = plain.split("image: ", 1)[-1]
        if kind == "say" and plain.startswith(STEPS):
            tell("  " + plain)
        task(plain)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()
