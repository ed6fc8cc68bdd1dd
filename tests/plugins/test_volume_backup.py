"""Volumes saved while their VM runs, and brought back: the data, who can write an archive, kills, full disks."""

import hashlib
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import vm_node
from .vm_node import MIB, USER, Node
from .vm_role import Backups

pytestmark = pytest.mark.heavy

node = vm_node.node
Options = dict[str, Any]
OWNER = pwd.getpwnam(USER)
LARGE = 512
KEEP = """
import os
from ansible_collections.clachan.platform.plugins.module_utils import volume_archive
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError
from ansible_collections.clachan.platform.plugins.module_utils.volume import qemu_img
volume_archive.LET_GO_SECONDS = 0.3
kept = []
def save(path, handle):
    qemu_img(["create", "-q", "-f", "qcow2", "/proc/self/fd/%d" % handle, "1M"], [handle])
    kept.append(os.open(path, os.O_RDWR))
    return "crash"
try:
    volume_archive.write("ARCHIVE", save, 0)
except HypervisorError as problem:
    print(problem)
"""


def io(path: Path, *commands: str, disk_format: str = "raw") -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-U", "-r", "-f", disk_format, *words, str(path)]
        if all(command.startswith("read") for command in commands)
        else ["qemu-io", "-f", disk_format, *words, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def holds(path: Path, pattern: str, place: str, disk_format: str = "raw") -> bool:
    return "verification failed" not in io(path, f"read -P {pattern} {place}", disk_format=disk_format)


class Case:
    """One VM that runs with one data volume, in a folder that is root's as the platform has it."""

    def __init__(self, node: Node, name: str, disk_format: str = "raw", mib: int = 16) -> None:
        self.node, self.folder = node, node.folder / name
        self.volumes, self.archives = self.folder / "volumes", self.folder / "archives"
        for path in (self.folder, self.volumes, self.archives):
            path.mkdir(mode=0o711)
        self.path = self.volumes / f"data.{disk_format}"
        self.volume: Options = {"path": str(self.path), "format": disk_format, "size": f"{mib}MiB", "owner": USER}
        node.ok("volume", self.volume)
        self.vm = node.vm(f"home.{name}")
        self.vm["disks"].append({"path": str(self.path), "format": disk_format})

    def archive(self, name: str) -> Path:
        return self.archives / f"{name}.qcow2"

    def saved(self, name: str) -> Options:
        return self.volume | {"state": "backed_up", "archive": str(self.archive(name))}

    def restored(self, name: str, **more: Any) -> Options:
        return self.volume | {"state": "restored", "archive": str(self.archive(name))} | more

    def names(self) -> list[str]:
        return sorted(path.name for path in self.archives.iterdir())

    def job(self) -> str:
        """libvirt's description of the backup job that runs; empty for none."""
        return self.node.libvirtd.execute(["virsh", "-q", "backup-dumpxml", self.vm["name"]], check=False).stdout

    @contextmanager
    def stopped_while_it_writes(self, name: str) -> Iterator[None]:
        """QEMU does nothing more once it has begun to write that archive, until this is left."""
        (emulator,) = self.node.libvirtd.guests(str(self.vm["uuid"]))
        path, end = self.archives / name, time.monotonic() + 60
        while not path.exists() or path.stat().st_blocks < 2048:
            assert time.monotonic() < end, f"nothing is written to {name}"
            time.sleep(0.001)
        emulator.signal(signal.SIGSTOP)
        try:
            assert name in self.job()
            yield
        finally:
            emulator.signal(signal.SIGCONT)


@pytest.fixture
def large(node: Node) -> Iterator[Case]:
    """One whose backup takes some moments."""
    case = Case(node, "large", mib=LARGE)
    io(case.path, f"write -P 0x41 0 {LARGE}M")
    node.ok("vm", case.vm)
    yield case
    node.remove(case.vm)
    subprocess.run(["rm", "-r", case.folder], check=True)


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_saved_while_the_vm_runs(node: Node, disk_format: str) -> None:
    case = Case(node, f"running_{disk_format}", disk_format)
    io(case.path, "write -P 0x41 0 1M", "write -P 0x42 8M 64k", disk_format=disk_format)
    node.ok("vm", case.vm)
    archive = case.archive("one")
    saved = node.steps("volume", case.saved("one"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (saved[1]["actions"], saved[1]["sha256"], saved[2]["sha256"]) == (["saved"], digest, digest)
    # this guest has no agent that could freeze anything
    assert (saved[2]["consistency"], saved[2]["saved_size"]) == ("crash", 16 * MIB)
    assert case.names() == ["one.qcow2", "one.qcow2.json", "one.qcow2.sha256"]
    found = archive.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, 0, 0o600)
    assert found.st_blocks * 512 < 3 * MIB
    assert case.job() == ""
    assert holds(archive, "0x41", "0 1M", "qcow2")
    assert holds(archive, "0x42", "8M 64k", "qcow2")
    assert holds(archive, "0", "1M 7M", "qcow2")

    # it is brought back only to a VM that is stopped; check mode says by whom it is used
    io_while_stopped(case, disk_format)
    node.ok("vm", case.vm)
    refused = node.run("volume", case.restored("one"))
    said = (
        f"volume {case.path}: used by domain home.running_{disk_format}, which runs, expected it stopped to be restored"
    )
    assert refused["msg"] == said
    asked = node.ok("volume", case.restored("one"), check=True)
    assert (asked["changed"], asked["used_by"]) == (True, f"home.running_{disk_format}")
    node.ok("vm", case.vm | {"state": "stopped"})
    assert node.steps("volume", case.restored("one"))[1]["used_by"] == ""
    assert holds(case.path, "0x41", "0 1M", disk_format)
    # another word brings the same back again, once
    io(case.path, "write -P 0x58 0 1M", disk_format=disk_format)
    assert node.steps("volume", case.restored("one", restore_word="second"))[1]["actions"] == ["restored"]
    assert holds(case.path, "0x41", "0 1M", disk_format)
    node.remove(case.vm)


def io_while_stopped(case: Case, disk_format: str) -> None:
    case.node.ok("vm", case.vm | {"state": "stopped"})
    io(case.path, "write -P 0x58 0 12M", disk_format=disk_format)


def test_a_restored_volume_has_the_size_that_is_asked_for(node: Node) -> None:
    case = Case(node, "sizes")
    io(case.path, "write -P 0x41 0 1M")
    assert node.ok("volume", case.saved("small"))["consistency"] == "stopped"
    large = {"size": "32MiB"}
    node.ok("volume", case.volume | large)
    restored = node.ok("volume", case.restored("small") | large)
    assert (restored["capacity"], case.path.stat().st_size) == (32 * MIB, 32 * MIB)
    assert holds(case.path, "0x41", "0 1M")
    assert node.ok("volume", case.volume | large)["changed"] is False
    node.ok("volume", case.saved("large") | large)
    refused = node.run("volume", case.restored("large"))
    assert refused["msg"] == (f"volume {case.path}: size 16MiB, expected at least 32MiB, which the archive has")


def test_what_a_hostile_qemu_leaves_is_no_archive(node: Node) -> None:
    """An archive whose header leads elsewhere is refused, also with the right sum."""
    case = Case(node, "hostile")
    archive = case.archive("bad")
    make = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", str(archive), "16M"]
    subprocess.run(make, check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_name("bad.qcow2.sha256").write_text(f"{digest}  bad.qcow2\n")
    refused = node.run("volume", case.restored("bad"))
    assert refused["msg"] == f"archive {archive}: a layer over /etc/shadow, expected one that stands alone"
    # in root's own folder as well, a header that its user may have written is followed as that user only
    hostile = case.volumes / "other.qcow2"
    make[-3:] = ["raw", str(hostile), "16M"]
    subprocess.run(make, check=True)
    os.chown(hostile, OWNER.pw_uid, OWNER.pw_gid)
    other = case.saved("never") | {"path": str(hostile), "format": "qcow2"}
    refused = node.run("volume", other)
    assert "Permission denied" in refused["msg"]
    assert case.names() == ["bad.qcow2", "bad.qcow2.sha256"]


def test_an_archive_is_nobodys_to_write_when_its_sum_is_taken(node: Node) -> None:
    """A QEMU that was taken over could keep the file open for ever."""
    case = Case(node, "kept_open")
    said = node.libvirtd.script(KEEP.replace("ARCHIVE", str(case.archive("kept"))), node.collections)
    assert said == f"archive {case.archives}/.kept.qcow2.new: a process still writes it, expected none\n"
    assert case.names() == []


def test_kills_in_the_middle_of_a_backup(large: Case) -> None:
    """What was killed leaves its job to QEMU: the next run ends that, and makes the archive."""
    node = large.node
    node.ok("volume", large.saved("before"))
    before = large.archive("before").stat()
    for delay in (0.4, 0.6, 0.8):
        process = node.libvirtd.begin("volume", large.saved("early"), node.collections)
        time.sleep(delay)
        process.kill()
        process.communicate()
    node.ok("volume", large.saved("early"))
    assert node.ok("volume", large.saved("early"))["changed"] is False
    for _round in range(2):
        process = node.libvirtd.begin("volume", large.saved("killed"), node.collections)
        with large.stopped_while_it_writes(".killed.qcow2.new"):
            process.kill()
            process.communicate()
            following = node.libvirtd.begin("volume", large.saved("killed"), node.collections)
            time.sleep(2)
            assert ".killed.qcow2.new" in large.job()
        saved = node.libvirtd.finish(following, "volume")
        assert (saved["actions"], large.job()) == (["saved"], "")
        assert hashlib.sha256(large.archive("killed").read_bytes()).hexdigest() == saved["sha256"]
        assert holds(large.archive("killed"), "0x41", f"0 {LARGE}M", "qcow2")
        assert [name for name in large.names() if name.startswith(".")] == []
        large.archive("killed").with_name("killed.qcow2.sha256").unlink()
    assert large.archive("before").stat() == before


def test_kills_in_the_middle_of_a_restore(large: Case) -> None:
    node = large.node
    node.ok("volume", large.saved("good"))
    node.ok("vm", large.vm | {"state": "stopped"})
    io(large.path, f"write -P 0x58 0 {LARGE}M")
    for delay in (0.5, 0.8, 1.1, 1.4):
        process = node.libvirtd.begin("volume", large.restored("good"), node.collections)
        time.sleep(delay)
        process.kill()
        process.communicate()
        assert large.path.stat().st_size == LARGE * MIB
    node.ok("volume", large.restored("good"))
    assert holds(large.path, "0x41", f"0 {LARGE}M")
    assert sorted(path.name for path in large.volumes.iterdir()) == [".data.raw.origin", "data.raw"]
    assert node.ok("volume", large.restored("good"))["changed"] is False


def test_a_backup_that_takes_too_long_is_given_up(large: Case) -> None:
    node = large.node
    refused = node.run("volume", large.saved("late") | {"backup_seconds": 0})
    assert refused["msg"].startswith("backup of domain home.large, disk vdb: ")
    assert refused["msg"].endswith(f" of {LARGE} MiB after 0 s, expected all of it")
    assert (large.job(), large.names()) == ("", [])


def test_somebody_elses_backup_is_left_alone(large: Case) -> None:
    node = large.node
    target = large.archives / "operators.qcow2"
    make = ["qemu-img", "create", "-q", "-f", "qcow2", str(target), f"{LARGE}M"]
    subprocess.run(make, check=True)
    os.chown(target, OWNER.pw_uid, OWNER.pw_gid)
    backup = large.folder / "backup.xml"
    backup.write_text(
        f"<domainbackup><disks><disk name='vdb' type='file'><driver type='qcow2'/><target file='{target}'/>"
        "</disk></disks></domainbackup>"
    )
    node.libvirtd.virsh("backup-begin", "home.large", str(backup), "--reuse-external")
    with large.stopped_while_it_writes(target.name):
        refused = node.run("volume", large.saved("first"))
    assert refused["msg"] == f"domain home.large: another backup of it runs, to {target}, expected none"
    assert large.names() == [target.name]
    node.libvirtd.execute(["virsh", "domjobabort", "home.large"], check=False)


def test_a_full_disk(node: Node) -> None:
    """One clear error; what was saved before, the volume and the VM stay as they were."""
    case = Case(node, "full", "qcow2", mib=64)
    plain = case.folder / "plain.raw"
    plain.write_bytes(b"A" * 32 * MIB)
    os.truncate(plain, 64 * MIB)
    # compressed, so that it takes less room than its archive will
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", plain, case.path], check=True)
    plain.unlink()
    os.chown(case.path, OWNER.pw_uid, OWNER.pw_gid)
    case.path.chmod(0o600)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0711", "tmpfs", str(case.archives)]
    node.libvirtd.execute(mount)

    def listed() -> str:
        return node.libvirtd.execute(["find", str(case.archives), "-type", "f", "-printf", "%f %s\n"]).stdout

    small = Case(node, "small")
    node.ok("volume", small.saved("old") | {"archive": str(case.archive("old"))})
    kept = listed()
    for running in (False, True):
        if running:
            node.ok("vm", case.vm)
        refused = node.run("volume", case.saved("new"))
        assert "No space left on device" in refused["msg"], refused["msg"]
        assert listed() == kept
        assert node.ok("volume", case.volume | {"size": "64MiB"})["changed"] is False
    assert node.ok("vm", case.vm)["changed"] is False
    assert node.libvirtd.virsh("domstate", case.vm["name"]).strip() == "running"
    # what cannot fit is not begun
    io(small.path, "write -P 1 0 16M")
    refused = node.run("volume", small.saved("x") | {"archive": str(case.archive("x"))})
    assert refused["msg"] == f"archive {case.archive('x')}: 15 MiB free there, expected at least 17 MiB"
    assert listed() == kept
    node.remove(case.vm)
    node.libvirtd.execute(["umount", str(case.archives)])


@pytest.mark.timeout(900)
def test_by_declaration(node: Node) -> None:
    """The role's part: made once, brought back once, removed by a word only."""
    case = Case(node, "declared")
    node.ok("vm", case.vm)
    volume = {"name": "data", "path": str(case.path), "size": "16MiB", "format": "raw", "disk": {}}
    role = Backups(node, case.folder, case.vm, [volume])
    assert role.ok() == (0, [])

    one = {"backups": [{"name": "one", "volume": "data"}]}
    assert role.ok("--check", **one)[1] == []
    changed, saved = role.ok(**one)
    archive = role.archives / "data/one.qcow2"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    told = {"volume": "data", "name": "one", "size_mib": 16, "sha256": digest, "consistency": "crash"}
    assert (changed, saved) == (2, [told])
    assert role.ok(**one) == (0, [told])

    # another backup beside it, of other content
    node.ok("vm", case.vm | {"state": "stopped"})
    io(case.path, "write -P 0x42 0 1M")
    node.ok("vm", case.vm)
    two = {"backups": [*one["backups"], {"name": "two", "volume": "data"}]}
    assert [one["name"] for one in role.ok(**two)[1]] == ["one", "two"]
    back = {"restore": {"volume": "data", "backup": "one"}}
    refused = role.run(**two, **back, restart="never")
    assert refused.returncode != 0
    said = (
        "vm_restore data/one: the machine runs with the volume, expected vm_restart when_needed or the machine stopped"
    )
    assert said in refused.stdout
    lacks = role.run(**two, restore={"volume": "data", "backup": "three"})
    assert "three.qcow2: not there or not finished, expected one" in lacks.stdout
    assert node.libvirtd.virsh("domstate", case.vm["name"]).strip() == "running"
    assert role.ok("--check", **two, **back)[0] > 0
    assert node.libvirtd.virsh("domstate", case.vm["name"]).strip() == "running"

    assert role.ok(**two, **back)[0] == 2  # stopped, and brought back
    assert holds(case.path, "0", "0 1M")
    node.ok("vm", case.vm)
    assert role.ok(**two, **back)[0] == 0
    assert node.libvirtd.virsh("domstate", case.vm["name"]).strip() == "running"
    role.ok(**two, restore={"volume": "data", "backup": "two"})
    assert holds(case.path, "0x42", "0 1M")
    again = back["restore"] | {"word": "again"}
    for changed in (1, 0):
        assert role.ok(**two, restore=again)[0] == changed

    # what is not declared any more stays, until the word is said
    assert role.ok(backups=two["backups"][1:])[0] == 0
    (role.archives / "data/.gone.qcow2.new").touch()
    assert role.ok(backups=two["backups"][1:], delete_backups=True)[0] == 1
    kept = sorted(path.name for path in (role.archives / "data").iterdir())
    assert kept == ["two.qcow2", "two.qcow2.json", "two.qcow2.sha256"]
    node.remove(case.vm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backups": [{"name": "../x", "volume": "data"}]}, "backup '../x': expected a name of [a-z0-9_]"),
        (
            {"backups": [{"name": "x", "volume": "../data"}]},
            "backup x: of volume '../data', expected one of the volumes",
        ),
        ({"restore": {"volume": "data"}}, "backup '': expected a name of [a-z0-9_]"),
        ({"restore": {"backup": "{{ 1 }}", "volume": "data"}}, "expected a name of [a-z0-9_]"),
    ],
)
def test_what_is_no_backup_is_refused(node: Node, options: Options, message: str) -> None:
    folder = node.folder / "refused"
    folder.mkdir(exist_ok=True)
    volume = {"name": "data", "path": str(folder / "data.raw"), "size": "16MiB", "format": "raw", "disk": {}}
    vm = {"name": "home.refused", "uuid": "0a9a4c4e-4d55-4f5c-9d5e-0f1b3c3f2a12"}
    done = Backups(node, folder, vm, [volume]).run(**options)
    assert done.returncode != 0
    assert message in done.stdout
    assert list(folder.iterdir()) == []
