"""A systemd machine that is controller and node for VMs, with libvirt inside; what dies in it, and what must be left.

Its usual guest is a boot sector that does nothing but power off when it is asked to: emulating it costs nothing, and it
never joins, so its VM is whole when the controller waits for its agent. `DEAF` does not power off either, as a system
that still boots.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed import checkout, probe
from testbed.base import VM_NODE_PACKAGES
from testbed.host import LabError, testbed, until
from testbed.lab import Lab
from testbed.machine import Machine
from testbed.story import CHECKOUT
from testbed.wheelhouse import wheelhouse

POLITE = bytes.fromhex("ba0206 b80001 ef ba0006 fb f4 ed f6c401 74f9 ba0406 b80020 ef f4 ebfd")
"""Enables the power button (PM1_EN of ICH9), halts until PM1_STS has it, then writes S5 to PM1_CNT."""
DEAF = bytes.fromhex("fa f4 ebfc")
ALIVE_SECONDS, GONE_SECONDS = 200.0, 200.0
"""How long healing and removal may take: a VM that ends right after its run is missed after a minute, and one that does
not hear the power button is ended after another."""
WAITING = "waiting for the VM's agent to report"
SLOT_FILES = ("etc", "log", "var", "etc/requests.d", "etc/services.d", "etc/promises.d")


def obstacle() -> str | None:
    """Why this host cannot run it; None when it can."""
    if os.geteuid() != 0:
        return "the tests do not run as root"
    return probe.obstacle() or (None if Path("/dev/net/tun").exists() else "there is no /dev/net/tun")


class VmMachine:
    """The machine `oak`, its controller at work, and the images POLITE and DEAF in it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.images: dict[str, str] = {}

    def run(self, command: str, check: bool = True) -> str:
        """What a command says on the machine, in the checkout."""
        shell = ["sh", "-c", f"cd {CHECKOUT} && {command}"]
        return self.machine.execute(shell, check=check, timeout=900).stdout

    def take(self, name: str, path: str) -> str:
        """Import a disk; its sha256."""
        self.run(f"./clachan image import {path} {name}")
        self.images[name] = self.run(f"./clachan image show {name} --sha256").strip()
        return self.images[name]

    def order(self, path: str, software: str = "vm", wait: float | None = None, **parameters: Any) -> None:
        """Declare an instance, and do not wait for it, or so many seconds."""
        if software == "vm":
            parameters = {"vm_image": self.images["polite"], "vm_memory_mib": 128} | parameters
        shell = f"cd {CHECKOUT} && ./clachan request {path} clachan.platform.{software} --parameters -"
        shell += " --no-wait" if wait is None else f" --timeout {wait:.0f}"
        done = self.machine.execute(
            ["sh", "-c", shell], text=json.dumps(parameters), check=False, timeout=(wait or 0) + 60
        )
        if done.returncode:
            raise LabError(f"request {path}: {done.stderr or done.stdout}, expected it to be accepted")

    def remove(self, path: str) -> None:
        self.run(f"./clachan instance delete {path} --yes --no-wait")

    def instance(self, path: str) -> dict[str, Any] | None:
        said = self.run(f"./clachan instance show {path} --json", check=False)
        found: dict[str, Any] | None = json.loads(said) if said else None
        return found

    def said(self, path: str) -> str:
        """The state of an instance and its message; nothing when there is none."""
        found = self.instance(path)
        return f"{found['observed']['state']}: {found['observed']['message']}" if found else ""

    def relay(self, path: str) -> int:
        """The port at which a VM reaches the controller."""
        found = self.instance(path)
        assert found
        return int(found["slot"]["ports"]["first"])

    def answers(self, path: str) -> bool:
        """Whether the guest's sshd says its banner to its node."""
        found = self.instance(path)
        assert found
        address = found["slot"]["addresses"]["ipv4"]
        return "SSH-" in self.run(f"ssh-keyscan -T 5 -t ed25519 {address} 2>&1", check=False)

    def emulators(self, path: str = "") -> list[int]:
        """Numbers of QEMU's processes on the machine, of one VM or of all."""
        name = f"{path}," if path else ""
        said = self.run(f"pgrep -f '^/usr/bin/qemu-system-x86_64 .*guest={name}'", check=False)
        return [int(word) for word in said.split()]

    def kill(self, victim: str, path: str) -> bool:
        """Whether there was an `agent`, `libvirtd` or that VM's `qemu` to kill; systemd starts the first two again."""
        if victim == "qemu":
            return bool([pid for pid in self.emulators(path) if self._killed(pid)])
        unit = {"agent": "clachan-agent", "libvirtd": "libvirtd"}[victim]
        return self._killed(int(self.run(f"systemctl show -P MainPID {unit}")))

    def _killed(self, pid: int) -> bool:
        return bool(pid) and self.run(f"kill -9 {pid} && echo killed", check=False) != ""

    def whole(self, path: str) -> bool:
        """Whether the VM runs, once, and its node has nothing more to do for it."""
        return self.said(path) == f"converging: {WAITING}" and len(self.emulators(path)) == 1

    def until(self, what: str, condition: Callable[[], Any], seconds: float, pause: float = 0.2) -> float:
        """Seconds that it took; LabError with the agent's words when it did not come."""
        began = time.monotonic()
        if not until(condition, seconds, pause=pause):
            log = self.run("journalctl -q --no-pager -u clachan-agent -u libvirtd | tail -n 40; virsh list --all")
            raise LabError(f"{what}: not after {seconds:.0f} s; {log}")
        return time.monotonic() - began

    def until_gone(self, *paths: str) -> None:
        """Wait for the end of instances, and then for nothing to be left of their VMs."""
        for path in paths:
            self.until(f"{path} gone", lambda path=path: self.instance(path) is None, GONE_SECONDS)
        for path in paths:
            if not until(lambda path=path: not self.left(path), 20, pause=1):
                raise LabError(f"{path} is gone, and there are {self.left(path)}, expected nothing of it")

    def left(self, path: str) -> list[str]:
        """Everything of a VM that went, or of any when no other is there, that is still on the machine."""
        return [
            *(f"domain {name}" for name in self.run("virsh list --all --name").split() if name == path),
            *(f"process {pid}" for pid in self.emulators(path)),
            *(f"file {name}" for name in self.run(f"find /var/lib/libvirt /run/libvirt -name '*{path}*'").split()),
            *(f"file {name}" for name in self.run(f"find /run/clachan -name '*{path}*'", check=False).split()),
            *self._left_of_slots(),
            *self.wrong(),
        ]

    def wrong(self) -> list[str]:
        """What `clachan node doctor` finds wrong on the machine."""
        done = self.machine.execute(["sh", "-c", f"cd {CHECKOUT} && ./clachan node doctor here --json"], check=False)
        if not done.stdout:
            return [f"no findings of the doctor: {done.stderr}"]  # an agent that was just started does not listen yet
        found = json.loads(done.stdout)["findings"]
        return [f"{one['kind']} {one['name']}: {one['found']}, {one['expected']}" for one in found if not one["ok"]]

    def _left_of_slots(self) -> list[str]:
        """Links, members of the isolation and files in slots that no instance has."""
        instances = json.loads(self.run("./clachan instance list --json"))
        slots = {f"{one['slot']['index']}" for one in instances if one["slot"]}
        taps = re.findall(r"\bcv(\d+)", self.run("ip -o link; ls /var/lib/clachan/node/isolation", check=False))
        files = self.run("cd /var/lib/clachan/slots && find s??? -mindepth 1 | sort").split()
        strange = [f"tap or member cv{number}" for number in taps if number not in slots]
        for name in files:
            slot, _, inside = name.partition("/")
            if str(int(slot[1:])) not in slots and inside not in SLOT_FILES:
                strange.append(f"file {name}")
        return strange


@contextmanager
def vm_machine(name: str, binds: dict[str, str] | None = None) -> Iterator[VmMachine]:
    """One for a test, under a name of its own; it takes a minute to come up, and nothing of it is left."""
    wheels = wheelhouse()
    layers = [checkout.environment_layer(wheels)]
    with (
        tempfile.TemporaryDirectory(dir=testbed()) as folder,
        Lab(f"{name}{os.getpid()}", layers, wheels, packages=VM_NODE_PACKAGES) as lab,
    ):
        for image, program in (("polite", POLITE), ("deaf", DEAF)):
            boot_sector(Path(folder) / f"{image}.raw", program)
        lab.up(["oak"], {"/srv/sectors": folder, **(binds or {})})
        oak = VmMachine(lab.machine("oak"))
        checkout.put(oak.machine)
        oak.run("./clachan up --no-demo")
        for image in ("polite", "deaf"):
            oak.take(image, f"/srv/sectors/{image}.raw")
        for software in ("vm", "cluster"):
            oak.run(f"./clachan supply here clachan.platform.{software} --timeout 300")
        yield oak


def boot_sector(path: Path, program: bytes, mib: int = 16) -> None:
    path.write_bytes(program.ljust(510, b"\0") + b"\x55\xaa")
    os.truncate(path, mib << 20)
