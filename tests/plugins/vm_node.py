"""A node for VMs: a libvirtd of its own, slots with a user, and guests so small that emulating them costs nothing."""

import itertools
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, make_collections

sys.path.insert(0, str(ROOT / "tests"))

from testbed.libvirtd import Libvirtd, obstacle

IDLE = b"\xfa\xf4\xeb\xfc"
"""cli; hlt; jmp: a guest that does nothing, for ever."""
FLOOD = b"\xba\xf8\x03\xb0\x41\xee\xeb\xfd"
"""mov dx, 0x3f8; mov al, 'A'; out dx, al; jmp: a guest that writes to its serial console without an end."""
WRITER = bytes.fromhex("31c0 8ed8 be127c b80043 cd13 83440840 ebf5 1000 4000 000000f0 4100000000000000")
"""mov ax, 0x4300; int 0x13; add word [si + 8], 64; jmp: a guest that writes the firmware over its disk, 32 KiB at once
and 32 MiB in all, and then again; never over its first sector."""
USER = "nobody"
MIB = 1 << 20


@dataclass
class Node:
    folder: Path
    collections: Path
    libvirtd: Libvirtd
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def slot(self) -> Path:
        """A slot's directory: `var` is its user's, `log` root's."""
        path = self.folder / f"s{next(self.numbers):03d}"
        (path / "var").mkdir(parents=True)
        (path / "log").mkdir(mode=0o750)
        owner = pwd.getpwnam(USER)
        os.chown(path / "var", owner.pw_uid, owner.pw_gid)
        (path / "var").chmod(0o700)
        return path

    def disk(self, path: Path, program: bytes = IDLE, mib: int = 16) -> Path:
        """A raw disk that boots a program."""
        path.write_bytes(program.ljust(510, b"\0") + b"\x55\xaa")
        os.truncate(path, mib * MIB)
        shutil.chown(path, USER, pwd.getpwnam(USER).pw_gid)
        path.chmod(0o600)
        return path

    def vm(self, name: str, slot: Path | None = None, program: bytes = IDLE, **more: Any) -> dict[str, Any]:
        """Options of module vm for a small VM with a system disk."""
        slot = slot or self.slot()
        system = slot / "var" / "system.raw"
        if not system.exists():
            self.disk(system, program)
        return {
            "name": name,
            "uuid": str(uuid.uuid4()),
            "user": USER,
            "accelerator": "qemu",
            "memory": {"mib": 32},
            "disks": [{"path": str(system), "format": "raw"}],
            "console_socket": str(slot / "log" / "console.sock"),
            "console_log": str(slot / "log" / "console.log"),
            "stop_seconds": 0,
        } | more

    def run(self, name: str, arguments: dict[str, Any], check: bool = False) -> dict[str, Any]:
        return self.libvirtd.module(name, arguments, self.collections, check)

    def ok(self, name: str, arguments: dict[str, Any], check: bool = False) -> dict[str, Any]:
        result = self.run(name, arguments, check)
        assert not result.get("failed"), result["msg"]
        return result

    def steps(self, name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """The results of: check mode, for real, for real again, check mode again; and asserts what changed."""
        results = [self.ok(name, arguments, check) for check in (True, False, False, True)]
        assert [result["changed"] for result in results] == [True, True, False, False], results
        return results

    def remove(self, *machines: dict[str, Any]) -> None:
        for one in machines:
            self.ok("vm", one | {"state": "absent", "stop_seconds": 0})

    def wrong(self, *kinds: str) -> list[str]:
        """What module node_doctor finds of these kinds on a node on which no instance is wanted any more.

        Processes of the slots' user are counted by `left`: other nodes of tests have the same user.
        """
        slots = sorted(self.folder.glob("s[0-9][0-9][0-9]"))
        config = {"mode": "root", "slots": len(slots) + 1, "users": [USER] * (len(slots) + 1)}
        (self.folder / "node").mkdir(exist_ok=True)
        (self.folder / "node/config.json").write_text(json.dumps(config | {"slots_directory": str(self.folder)}))
        found = self.ok("node_doctor", {"home": str(self.folder), "instances": []})["findings"]
        return ["{kind} {name}: {found}".format(**one) for one in found if not one["ok"] and one["kind"] in kinds]

    def left(self, name: str) -> list[str]:
        """Everything of a domain that is anywhere: definition, process, files of libvirt, files in slots."""
        found = [f"domain {one}" for one in self.libvirtd.domains() if one == name]
        found += [f"process {one.pid}" for one in self.libvirtd.guests()] if not self.libvirtd.domains() else []
        found += [str(path) for path in self.libvirtd.folder.rglob("*") if name in path.name]
        kept = {"system.raw", "data.raw"}
        return found + [str(path) for path in self.folder.glob("s*/*/*") if path.name not in kept]


def link(node: Node, name: str, *words: str) -> str:
    """A network device in the node's network."""
    node.libvirtd.execute(
        ["ip", "link", "add", name, *words] if words else ["ip", "tuntap", "add", name, "mode", "tap"]
    )
    return name


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    problem = obstacle()
    if problem:
        pytest.skip(f"this machine cannot: {problem}")
    # not below pytest's own directory, which is closed to the user that QEMU runs as
    folder = Path(tempfile.mkdtemp(prefix=f"clachan-vm-{os.getpid()}-", dir="/var/tmp"))
    folder.chmod(0o711)
    try:
        collections = make_collections(folder / "collections")
        with Libvirtd(folder / "libvirtd") as libvirtd:
            made = Node(folder, collections, libvirtd)
            yield made
            assert made.wrong("domain", "image", "tap", "rule") == []
            assert libvirtd.domains() == []
            assert libvirtd.guests() == []
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def loop(node: Node) -> Iterator[str]:
    """A block device that nothing uses."""
    path = node.folder / f"loop{next(node.numbers)}.img"
    path.write_bytes(b"")
    os.truncate(path, 16 * MIB)
    made = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this machine cannot: make a loop device ({made.stderr.strip()})")
    device = made.stdout.strip()
    rights = os.stat(device)
    try:
        yield device
    finally:
        os.chown(device, rights.st_uid, rights.st_gid)
        os.chmod(device, rights.st_mode & 0o777)
        subprocess.run(["losetup", "-d", device], check=True)
        path.unlink()
