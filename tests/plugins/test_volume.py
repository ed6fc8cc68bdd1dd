"""Module volume with real files, devices and running VMs: values, changed, differences, messages, and the data."""

import hashlib
import json
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from . import vm_node
from .vm_node import MIB, USER, Node

pytestmark = pytest.mark.slow

node, loop = vm_node.node, vm_node.loop
Options = dict[str, Any]
OWNER = pwd.getpwnam(USER)


def data_volume(path: Path, **more: Any) -> Options:
    return {"path": str(path), "size": "16MiB", "owner": USER, "format": "raw"} | more


def layers(path: Path) -> list[str]:
    """A file's own name and those of the files below it."""
    command = ["qemu-img", "info", "--backing-chain", "--output=json", str(path)]
    return [one["filename"] for one in json.loads(subprocess.run(command, check=True, capture_output=True).stdout)]


def make_image(path: Path, content: bytes) -> Path:
    raw = path.with_suffix(".raw")
    raw.write_bytes(content.ljust(16 * MIB, b"\0"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    raw.unlink()
    path.chmod(0o444)
    return path


def content(path: Path, disk_format: str = "qcow2", size: int = 64) -> bytes:
    """The first bytes that a guest would see."""
    out = path.with_name("seen")
    subprocess.run(
        ["qemu-img", "dd", "-f", disk_format, "-O", "raw", "bs=4096", "count=1", f"if={path}", f"of={out}"], check=True
    )
    try:
        return out.read_bytes()[:size]
    finally:
        out.unlink()


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
@pytest.mark.parametrize("place", ["var", "log"])
def test_twelve_steps(node: Node, disk_format: str, place: str) -> None:
    """In the slot's user's own directory, and in root's."""
    path = node.slot() / place / "data.img"
    volume = data_volume(path, format=disk_format)
    made = node.steps("volume", volume)
    assert made[1]["actions"] == ["created"]
    assert made[0]["diff"] == made[1]["diff"] == {"before": {}, "after": {"size": "16MiB", "mode": "0600"}}
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (OWNER.pw_uid, OWNER.pw_gid, 0o600)

    grown = node.steps("volume", volume | {"size": "24MiB", "mode": "0640"})
    assert grown[1]["actions"] == ["grown", "mode set"]
    assert grown[1]["diff"]["before"] == {"size": "16MiB", "mode": "0600"}
    assert grown[1]["diff"]["after"] == {"size": "24MiB", "mode": "0640"}
    assert grown[1]["capacity"] == 24 * MIB

    kept = node.run("volume", volume | {"state": "absent"})
    assert kept["msg"] == f"volume {path}: may hold data, expected delete_data: true to remove it"
    gone = node.steps("volume", volume | {"state": "absent", "delete_data": True})
    assert gone[1]["diff"]["after"] == {}
    assert list(path.parent.iterdir()) == []


def test_no_volume_is_made_smaller(node: Node) -> None:
    path = node.slot() / "var" / "data.raw"
    node.ok("volume", data_volume(path))
    refused = node.run("volume", data_volume(path, size="8MiB"))
    assert refused["msg"] == f"volume {path}: size 8MiB, expected at least 16MiB, as no volume is made smaller"
    assert path.stat().st_size == 16 * MIB


def test_a_volume_of_another_format_is_not_hidden_by_an_empty_one(node: Node) -> None:
    path = node.slot() / "var" / "data.raw"
    node.ok("volume", data_volume(path))
    other = path.with_suffix(".qcow2")
    refused = node.run("volume", data_volume(other, format="qcow2"))
    assert refused["msg"] == f"volume {other}: there as {path}, expected the same format"


def test_a_volume_comes_back_to_another_slot(node: Node) -> None:
    path = node.disk(node.slot() / "log" / "data.raw")
    path.write_bytes(b"kept".ljust(16 * MIB, b"\0"))
    other = pwd.getpwnam("daemon")
    os.chown(path, other.pw_uid, other.pw_gid)
    wanted = data_volume(path)
    said = f"volume {path}: belongs to user {other.pw_uid}, expected {OWNER.pw_uid} ({USER})"
    assert node.run("volume", wanted)["msg"] == said
    check = node.ok("volume", wanted | {"adopt": True}, check=True)
    assert (check["changed"], check["actions"], path.stat().st_uid) == (True, [f"given to {USER}"], other.pw_uid)
    done = node.ok("volume", wanted | {"adopt": True})
    assert (done["actions"], path.stat().st_uid) == ([f"given to {USER}"], OWNER.pw_uid)
    assert path.read_bytes()[:4] == b"kept"
    assert node.ok("volume", wanted | {"adopt": True})["changed"] is False
    # where its user can write, a link or another file could be put there meanwhile: never
    exposed = node.slot() / "var" / "data.raw"
    shutil.copy(path, exposed)
    os.chown(exposed, other.pw_uid, other.pw_gid)
    assert f"belongs to user {other.pw_uid}" in node.run("volume", data_volume(exposed, adopt=True))["msg"]


def test_links_and_foreign_files_are_refused(node: Node) -> None:
    slot = node.slot()
    path = slot / "var" / "data.raw"
    target = node.folder / "target"
    target.write_bytes(b"x" * 100)
    path.symlink_to(target)
    assert node.run("volume", data_volume(path))["msg"] == f"volume {path}: a link, expected a regular file"
    path.unlink()
    shutil.copy(target, path)
    uid = OWNER.pw_uid
    assert node.run("volume", data_volume(path))["msg"] == f"volume {path}: belongs to user 0, expected {uid} ({USER})"
    path.unlink()
    os.mkfifo(path)
    assert node.run("volume", data_volume(path))["msg"] == f"volume {path}: no regular file, expected one"
    path.unlink()
    # a directory that the slot's user has turned into a link: only that user's rights count behind it
    closed = node.folder / "closed"
    closed.mkdir(mode=0o700)
    (slot / "var" / "in").symlink_to(closed)
    refused = node.run("volume", data_volume(slot / "var" / "in" / "data.raw"))
    assert "Permission denied" in refused["msg"]
    assert list(closed.iterdir()) == []
    assert target.read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"size": "1 zebibyte"}, "size '1 zebibyte': expected a number and MiB, GiB or TiB"),
        ({"size": None}, "no size, expected one like 10GiB"),
        ({"mode": "rw"}, "mode 'rw': expected three octal digits like 0600"),
        ({"owner": "no such"}, "owner 'no such': expected a user of this machine"),
        ({"path": "x"}, "volume 'x': expected an absolute path"),
        ({"path": "/nowhere/x"}, "directory /nowhere: No such file or directory, expected one"),
        ({"kind": "block"}, "nothing there, expected a block device"),
        ({"kind": "block", "volume_group": "a;b"}, "volume_group 'a;b': expected letters, digits and _ . -"),
        ({"kind": "block", "volume_group": "vg"}, "expected /dev/vg/<name>"),
        ({"state": "restored", "archive": "/nowhere/x"}, "archive /nowhere/x: expected directories that only root"),
        (
            {"state": "restored", "archive": "/var/lib/x", "restore_word": "a b"},
            "restore_word 'a b': expected letters, digits and . : + - _",
        ),
    ],
)
def test_what_is_not_sane_is_refused(node: Node, more: Options, message: str) -> None:
    refused = node.run("volume", data_volume(node.slot() / "var" / "data.raw") | more)
    assert refused["failed"]
    assert message in refused["msg"]


def test_hostile_headers_are_refused(node: Node) -> None:
    """What a guest that broke out of QEMU can write into its own file."""
    path = node.slot() / "var" / "data.qcow2"
    volume = data_volume(path, format="qcow2")
    for arguments, message in (
        (["-b", "/etc/shadow", "-F", "raw"], f"volume {path}: a layer over /etc/shadow, expected a volume that stands"),
        (
            ["-o", f"data_file={path}.data"],
            f"volume {path}: has an external data file or a key, expected a plain qcow2",
        ),
    ):
        subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", *arguments, str(path), "16M"], check=True)
        os.chown(path, OWNER.pw_uid, OWNER.pw_gid)
        refused = node.run("volume", volume | {"size": "32MiB"})
        assert message in refused["msg"]
        path.unlink()
    path.write_bytes(b"no header")
    os.chown(path, OWNER.pw_uid, OWNER.pw_gid)
    assert node.run("volume", volume)["msg"] == f"volume {path}: not qcow2, expected format qcow2"
    # in a raw volume a guest may write whatever it likes: it stays raw
    raw = path.with_name("raw.raw")
    node.ok("volume", data_volume(raw))
    with raw.open("r+b") as file:
        file.write(b"QFI\xfb" + b"\0" * 100)
    assert node.ok("volume", data_volume(raw, size="24MiB"))["capacity"] == 24 * MIB


@pytest.mark.parametrize("copy", [False, True])
def test_system_disks(node: Node, copy: bool) -> None:
    slot = node.slot()
    first, second = (make_image(node.folder / f"{name}-{copy}.qcow2", name.encode()) for name in ("first", "second"))
    path = slot / "var" / "system.qcow2"
    system = {"path": str(path), "kind": "system", "image": str(first), "owner": USER, "copy": copy}
    made = node.steps("volume", system)
    assert made[0]["capacity"] == made[1]["capacity"] == 16 * MIB
    assert content(path, size=5) == b"first"
    assert (len(layers(path)) == 1) is copy
    assert path.stat().st_uid == OWNER.pw_uid
    assert node.steps("volume", system | {"size": "32MiB"})[1]["actions"] == ["grown"]

    other = system | {"image": str(second), "size": "32MiB"}
    refused = node.run("volume", other)
    assert refused["msg"] == f"volume {path}: made from {first}, expected {second}, or recreate: image_changed"
    small = node.run("volume", other | {"recreate": "image_changed", "size": "8MiB"})
    assert small["msg"] == f"volume {path}: size 8MiB, expected at least 16MiB, which the image has"
    assert node.steps("volume", other | {"recreate": "image_changed"})[1]["actions"] == ["made anew"]
    assert content(path, size=6) == b"second"

    # disposable: no word is needed
    assert node.steps("volume", other | {"state": "absent"})[1]["actions"] == ["removed"]
    assert list(path.parent.iterdir()) == []
    first.unlink()
    second.unlink()


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_backup_and_restore(node: Node, disk_format: str) -> None:
    slot = node.slot()
    path = slot / "var" / "data.img"
    archive = node.folder / f"archive-{disk_format}.qcow2"
    volume = data_volume(path, format=disk_format)
    node.ok("volume", volume)
    write = ["qemu-io", "-f", disk_format, "-c", "write -P 0x41 0 1M", "-c", "write -P 0x42 8M 64k", str(path)]
    subprocess.run(write, check=True, capture_output=True)
    saved = node.steps("volume", volume | {"state": "backed_up", "archive": str(archive)})
    assert saved[0].get("sha256") is None
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert saved[1]["sha256"] == saved[2]["sha256"] == digest
    assert (archive.stat().st_uid, archive.stat().st_mode & 0o777) == (0, 0o600)
    assert (node.folder / f"{archive.name}.sha256").read_text() == f"{digest}  {archive.name}\n"
    subprocess.run(["sha256sum", "-c", f"{archive.name}.sha256"], cwd=node.folder, check=True, capture_output=True)

    def seen(command: str) -> bool:
        read = ["qemu-io", "-f", disk_format, "-r", "-c", command, str(path)]
        return (
            "Pattern verification failed"
            not in subprocess.run(read, check=False, capture_output=True, text=True).stdout
        )

    damage = ["qemu-io", "-f", disk_format, "-c", "write -P 0x58 0 12M", str(path)]
    subprocess.run(damage, check=True, capture_output=True)
    assert not seen("read -P 0x41 0 1M")
    restored = node.steps("volume", volume | {"state": "restored", "archive": str(archive)})
    assert restored[1]["actions"] == ["restored"]
    assert seen("read -P 0x41 0 1M")
    assert seen("read -P 0x42 8M 64k")
    assert seen("read -P 0 1M 7M")
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (OWNER.pw_uid, 0o600)
    # what was written since then is not lost by running the same again, only by the word for it
    subprocess.run(damage, check=True, capture_output=True)
    assert node.ok("volume", volume | {"state": "restored", "archive": str(archive)})["changed"] is False
    assert not seen("read -P 0x41 0 1M")
    again = volume | {"state": "restored", "archive": str(archive), "restore_again": True}
    assert node.ok("volume", again)["changed"] is True
    assert seen("read -P 0x41 0 1M")

    with archive.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    refused = node.run("volume", again)
    assert f"archive {archive}: sha256 " in refused["msg"]
    assert f"expected {digest}" in refused["msg"]
    assert seen("read -P 0x41 0 1M")
    node.ok("volume", volume | {"state": "absent", "delete_data": True})
    assert list(path.parent.iterdir()) == []


def test_a_volume_of_a_running_vm(node: Node) -> None:
    """It is made larger while it runs, and the guest's device with it; it is neither removed nor replaced."""
    slot = node.slot()
    path = slot / "var" / "data.qcow2"
    volume = data_volume(path, format="qcow2")
    node.ok("volume", volume)
    vm = node.vm("home.using", slot)
    vm["disks"].append({"path": str(path)})
    node.ok("vm", vm)
    assert node.steps("volume", volume | {"size": "32MiB"})[1]["actions"] == ["grown"]
    assert f"Capacity:       {32 * MIB}" in node.libvirtd.virsh("domblkinfo", vm["name"], "vdb")
    refused = node.run("volume", volume | {"state": "absent", "delete_data": True})
    assert refused["msg"] == f"volume {path}: used by domain home.using, which runs, expected it stopped to be removed"
    node.remove(vm)
    assert path.exists()
    node.ok("volume", volume | {"state": "absent", "delete_data": True})


def test_a_block_device_is_given_and_taken_back(node: Node, loop: str) -> None:
    volume = {"path": loop, "kind": "block", "owner": USER, "size": "16MiB"}
    before = os.stat(loop)
    given = node.steps("volume", volume)
    assert given[1]["actions"] == [f"given to {USER}"]
    assert os.stat(loop).st_uid == OWNER.pw_uid
    assert f"expected {17 * MIB}" in node.run("volume", volume | {"size": "17MiB"})["msg"]
    assert node.run("volume", volume | {"state": "backed_up", "archive": "/x"})["msg"] == (
        f"state backed_up of volume {loop}: of a block device, expected present or absent"
    )
    vm = node.vm("home.block")
    vm["disks"].append({"path": loop, "format": "raw"})
    node.ok("vm", vm)
    node.remove(vm)
    assert node.run("volume", volume | {"state": "absent"})["msg"].endswith("expected delete_data: true to remove it")
    node.ok("volume", volume | {"state": "absent", "delete_data": True})
    assert os.stat(loop).st_uid == before.st_uid


def test_logical_volumes(node: Node, loop: str) -> None:
    if shutil.which("lvcreate") is None or not Path("/dev/mapper/control").exists():
        pytest.skip("this machine cannot: LVM needs lvm2 and the kernel's device mapper")
    group = f"clachan{os.getpid()}"
    subprocess.run(["vgcreate", group, loop], check=True, capture_output=True)
    try:
        volume = {"path": f"/dev/{group}/data", "kind": "block", "volume_group": group, "size": "4MiB", "owner": USER}
        assert node.steps("volume", volume)[1]["actions"] == ["created", f"given to {USER}"]
        assert node.ok("volume", volume | {"size": "8MiB"})["capacity"] == 8 * MIB
        assert node.steps("volume", volume | {"state": "absent", "delete_data": True})[1]["actions"] == ["removed"]
    finally:
        subprocess.run(["vgremove", "-f", group], check=True, capture_output=True)


def test_a_killed_run_is_finished_by_the_next(node: Node) -> None:
    slot = node.slot()
    path, archive = slot / "var" / "data.img", node.folder / "killed.qcow2"
    volume = data_volume(path, format="qcow2")
    for options in (
        volume,
        volume | {"size": "64MiB"},
        volume | {"state": "backed_up", "archive": str(archive)},
        volume | {"state": "restored", "archive": str(archive), "size": "64MiB"},
        volume | {"state": "absent", "delete_data": True},
    ):
        for delay in (0.12, 0.16, 0.2, 0.24):
            process = node.libvirtd.begin("volume", options, node.collections)
            time.sleep(delay)
            process.kill()
            process.communicate()
        node.ok("volume", options)
        assert node.ok("volume", options)["changed"] is False
        assert not [one.name for one in path.parent.iterdir() if one.name.endswith(".new")]
    assert list(path.parent.iterdir()) == []


def test_full_disk(node: Node) -> None:
    """Nothing half-made takes the place of a volume."""
    folder = node.folder / "small"
    folder.mkdir()
    node.libvirtd.execute(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0755", "tmpfs", str(folder)])
    image = node.folder / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "16M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8M", str(image)], check=True, capture_output=True)
    system = {"path": str(folder / "system.qcow2"), "kind": "system", "image": str(image), "owner": USER, "copy": True}
    refused = node.run("volume", system)
    assert "No space left on device" in refused["msg"]
    listed = node.libvirtd.execute(["find", str(folder), "-name", "system.qcow2"]).stdout
    assert listed == ""
    node.libvirtd.execute(["umount", str(folder)])
    image.unlink()
