"""One real guest, from its image to its removal: seed, console and screen, changes while it runs, shutdown, its data
saved and restored."""

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import vm_node
from .conftest import BIN
from .streaming import agent_part
from .vm_node import USER, Node
from .vm_role import Backups

from testbed import host, images  # isort: skip - found by what vm_node puts on the path
from testbed.libvirt_guest import LibvirtGuest  # isort: skip

pytestmark = [pytest.mark.heavy, pytest.mark.guest, pytest.mark.root, pytest.mark.timeout(1200)]
node = vm_node.node


def until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


@pytest.fixture
def disk(node: Node) -> Path:
    reason = images.obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")
    return images.node_image(node.folder / "image", agent=False)


@dataclass
class Case:
    """One VM with a real system, and the options of all that it has."""

    node: Node
    guest: LibvirtGuest
    slot: Path
    image: Path

    def __post_init__(self) -> None:
        token = self.node.folder / "token.json"
        token.write_text('{"node": "vm_guest", "token": "jt_never_left_behind"}')
        var = self.slot / "var"
        join = {"url": "https://controller.clachan.internal:20020", "token_file": str(token)}
        self.seed = self.guest.seed(var / "seed.iso", self.slot / "log/host_key", USER, join=join)
        system = {"path": str(var / "system.qcow2"), "kind": "system", "image": str(self.image)}
        self.system = system | {"size": "5GiB", "owner": USER}
        self.data = {"path": str(var / "data.raw"), "format": "raw", "size": "64MiB", "owner": USER}
        self.more = {"path": str(var / "more.qcow2"), "format": "qcow2", "size": "64MiB", "owner": USER}
        self.key = ""

    @property
    def vm(self) -> dict[str, Any]:
        return self.node.vm("home.guest", self.slot) | {
            "uuid": "0a9a4c4e-4d55-4f5c-9d5e-0f1b3c3f2a11",
            "memory": {"mib": 384, "maximum_mib": 512},
            "cpu": {"count": 1, "maximum": 2},
            "disks": [
                {"path": self.system["path"], "backing": str(self.image)},
                {"path": self.data["path"], "format": "raw", "serial": "data"},
            ],
            "seed": self.seed["path"],
            "interfaces": [{"device": self.guest.tap, "mac": self.guest.mac}],
            "vnc": str(self.slot / "var/vnc.sock"),
            "stop_seconds": 60,
        }

    @property
    def backups(self) -> Backups:
        volume = {"name": "data", "path": self.data["path"], "size": "64MiB", "format": "raw", "disk": {}}
        return Backups(self.node, self.node.folder, self.vm, [volume])

    @property
    def small(self) -> dict[str, Any]:
        """How it is at the end."""
        return self.vm | {"cpu": {"count": 2, "maximum": 2}, "memory": {"mib": 320, "maximum_mib": 512}}

    def has(self, serial: str, size: str) -> bool:
        return self.guest.ssh(f"lsblk -dn -o SERIAL,SIZE | grep {serial}", check=False).split() == [serial, size]

    def memory_kib(self) -> int:
        return int(self.guest.ssh("awk '/MemTotal/ {print $2}' /proc/meminfo"))

    def meters(self, **more: Any) -> dict[str, int]:
        found: dict[str, int] = self.node.ok("vm_info", more)["vms"]["home.guest"]["meters"]
        return found


def make(case: Case) -> None:
    case.guest.make_link()
    case.node.ok("volume", case.system)
    case.node.ok("volume", case.data)
    case.key = case.node.ok("seed", case.seed)["host_public_key"]
    assert case.node.steps("vm", case.vm)[1]["actions"] == ["defined", "started"]
    print(f"banner {case.guest.wait(case.key):.1f} s after the second run")


def the_seed_arrived(case: Case) -> None:
    assert case.guest.ssh("hostname") == "guest1\n"
    assert case.guest.ssh("hostname", host=case.guest.ipv6) == "guest1\n"
    assert "jt_never_left_behind" in case.guest.ssh("cat /var/lib/clachan/node/join.json")
    case.node.ok("seed", case.seed | {"state": "emptied"})
    read = "echo 3 > /proc/sys/vm/drop_caches; cat /dev/disk/by-label/cidata | grep -c jt_never"
    assert case.guest.ssh(read, check=False).strip() == "0"


@contextmanager
def connecting(case: Case, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`clachan instance connect` to the guest, with a controller and an agent for which its slot is an instance's."""
    from live import artifact, node_fact, role, running_controller

    folder = case.node.folder / f"connect{len(list(case.node.folder.glob('connect*')))}"
    folder.mkdir()
    number = int(case.slot.name[1:])
    with running_controller(folder / "home", process=True) as live:
        node = live.join("here", slots=0)
        node.accepted(node_fact(9, slots_directory=str(case.node.folder), users=[USER] * 9))
        live.register(artifact(folder, "acme.machines", {"box": role({}, {"makes_node": True, "needs_root": True})}))
        live.supply("here", "acme.machines.box")
        for index in range(number + 1):
            live.request(f"home.box{index}", "acme.machines.box")
        assert live.ok("GET", f"/instances/home.box{number}")["slot"]["directory"] == str(case.slot)
        environment = os.environ | {"CLACHAN_HOME": str(live.home)}
        command = [BIN / "clachan", "instance", "connect", f"home.box{number}", *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with (
            agent_part(live, node, folder / "agent"),
            subprocess.Popen(command, env=environment, **pipes) as running,  # type: ignore[call-overload]
        ):
            try:
                yield running
            finally:
                running.kill()


def its_console_asks_who_one_is(case: Case) -> None:
    said = b""
    with connecting(case, "--console") as running:
        began = time.monotonic()
        running.stdin.write(b"\r")
        running.stdin.flush()
        while b"login: " not in said:
            data = os.read(running.stdout.fileno(), 4096)
            assert data, said
            said += data
        print(f"console: {said[-40:]!r} after {time.monotonic() - began:.1f} s")
        assert b"guest1 login: " in said
        running.stdin.close()
        assert running.wait(20) == 0, "QEMU hangs up when its caller does"


def its_screen_is_shown_to_a_viewer(case: Case) -> None:
    with connecting(case, "--vnc", "--listen", "127.0.0.1:0") as running:
        port = int(running.stdout.readline().split(b":")[1])
        with socket.create_connection(("127.0.0.1", port), 30) as viewer:
            assert viewer.recv(12, socket.MSG_WAITALL) == b"RFB 003.008\n"
            viewer.sendall(b"RFB 003.008\n")
            assert viewer.recv(2, socket.MSG_WAITALL) == b"\x01\x01", "no password: who may connect was asked before"
            viewer.sendall(b"\x01")
            assert viewer.recv(4, socket.MSG_WAITALL) == bytes(4)
            viewer.sendall(b"\x01")
            width, height = struct.unpack(">HH16x", viewer.recv(20, socket.MSG_WAITALL))
            assert (width, height) >= (640, 400)
            (length,) = struct.unpack(">I", viewer.recv(4, socket.MSG_WAITALL))
            assert viewer.recv(length, socket.MSG_WAITALL) == b"QEMU (home.guest)"


def it_takes_changes_while_it_runs(case: Case) -> None:
    case.guest.ssh("mkfs.ext4 -q /dev/disk/by-id/virtio-data && mount /dev/disk/by-id/virtio-data /mnt")
    case.guest.ssh("echo precious > /mnt/file; sync")
    case.node.ok("volume", case.more)
    large = case.vm | {"cpu": {"count": 2, "maximum": 2}, "memory": {"mib": 512, "maximum_mib": 512}}
    large["disks"] = [*large["disks"], {"path": case.more["path"], "serial": "more"}]
    assert case.node.steps("vm", large)[1]["restart_needed"] == []
    assert until(lambda: case.has("more", "64M"))
    case.node.ok("volume", case.more | {"size": "96MiB"})
    assert until(lambda: case.has("more", "96M"))
    assert until(lambda: case.guest.ssh("cat /sys/devices/system/cpu/present") == "0-1\n")
    assert until(lambda: case.memory_kib() > 400 * 1024)
    gone = case.node.ok("vm", case.small)
    assert "changed disks.vdc while it runs" in gone["actions"]
    assert gone["restart_needed"] == []
    assert until(lambda: case.guest.ssh("lsblk -dn -o SERIAL | grep more", check=False) == "")
    assert until(lambda: case.memory_kib() < 320 * 1024)
    assert case.meters(balloon=True)["memory_mib"] == 320


def its_work_is_metered_from_its_own_point_of_view(case: Case) -> None:
    before = case.meters()
    case.guest.ssh("base64 -w0 /dev/urandom | head -c 3000000 > /mnt/more; sync; cat /mnt/more")
    after = case.meters()
    assert after["disk_write_bytes"] - before["disk_write_bytes"] >= 3_000_000
    assert after["network_send_bytes"] - before["network_send_bytes"] >= 3_000_000
    assert after["network_receive_bytes"] - before["network_receive_bytes"] < 1_000_000
    assert after["vcpu_time_ns"] > before["vcpu_time_ns"]


def its_data_is_saved_while_it_runs(case: Case) -> None:
    """What a program has written and not synced is in it, as the guest's file systems are frozen for the moment."""
    case.guest.ssh("echo saved > /mnt/saved")
    wanted = {"backups": [{"name": "one", "volume": "data"}]}
    changed, saved = case.backups.ok(**wanted)
    assert (changed, saved[0]["consistency"], saved[0]["size_mib"]) == (2, "frozen", 64)
    assert case.backups.ok(**wanted) == (0, saved)
    # it goes on where it was
    case.guest.ssh("echo overwritten > /mnt/file; rm /mnt/saved; sync")


def a_backup_is_brought_back_and_it_powers_off_for_that(case: Case) -> None:
    back = {"restore": {"volume": "data", "backup": "one"}}
    assert "expected vm_restart when_needed" in case.backups.run(**back, restart="never").stdout
    assert case.guest.ssh("cat /mnt/file") == "overwritten\n"
    began = time.monotonic()
    assert case.backups.ok(**back) == (2, [])
    print(f"stopped and brought back in {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 60
    assert case.node.ok("vm", case.small | {"state": "stopped"})["changed"] is False
    assert case.backups.ok(**back) == (0, [])
    log = (case.slot / "log/console.log").read_text(errors="replace")
    assert "login:" in log or "Linux" in log


def its_data_survives_the_loss_of_everything_else(case: Case) -> None:
    archive = {"archive": str(case.node.folder / "data.qcow2")}
    case.node.ok("volume", case.data | archive | {"state": "backed_up"})
    Path(case.data["path"]).write_bytes(b"")
    case.node.ok("volume", case.data | archive | {"state": "restored"})
    case.node.ok("volume", case.system | {"state": "absent"})
    case.node.ok("volume", case.system)
    case.node.ok("seed", case.seed | {"instance_id": "guest-again", "join": None})
    case.node.ok("vm", case.small)
    print(f"banner {case.guest.wait(case.key):.1f} s after its start")
    assert case.guest.ssh("ls /var/lib/clachan/node/join.json", check=False) == ""
    assert case.guest.ssh("mount /dev/disk/by-id/virtio-data /mnt && cat /mnt/file") == "precious\n"
    assert case.guest.ssh("cat /mnt/saved") == "saved\n"


def removed_while_it_runs_nothing_of_it_is_left(case: Case) -> None:
    case.node.ok("vm", case.small | {"state": "absent", "stop_seconds": 0})
    case.node.ok("seed", case.seed | {"state": "absent"})
    case.node.ok("volume", case.system | {"state": "absent"})
    for volume in (case.data, case.more):
        case.node.ok("volume", volume | {"state": "absent", "delete_data": True})
    assert case.node.left("home.guest") == []
    case.node.libvirtd.execute(["ip", "link", "delete", case.guest.tap])
    (case.slot / "var/system.raw").unlink()
    assert case.node.wrong("domain", "volume", "image", "tap", "rule") == []


def test_from_its_image_to_its_removal(node: Node, disk: Path) -> None:
    case = Case(node, LibvirtGuest(node.libvirtd, node.folder), node.slot(), disk)
    with host.locked(host.testbed() / "guest.lock"):
        try:
            make(case)
            the_seed_arrived(case)
            its_console_asks_who_one_is(case)
            its_screen_is_shown_to_a_viewer(case)
            it_takes_changes_while_it_runs(case)
            its_work_is_metered_from_its_own_point_of_view(case)
            its_data_is_saved_while_it_runs(case)
            a_backup_is_brought_back_and_it_powers_off_for_that(case)
            its_data_survives_the_loss_of_everything_else(case)
            removed_while_it_runs_nothing_of_it_is_left(case)
        finally:
            node.remove(case.small)
