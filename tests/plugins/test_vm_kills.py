"""VMs while something dies or two want the same: the next run of the same declaration heals, and nothing is left."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import vm_node
from .vm_node import MIB, USER, WRITER, Node

from testbed.host import until  # isort: skip - found by what vm_node puts on the path

pytestmark = pytest.mark.heavy

loop = vm_node.loop
node = vm_node.node
Options = dict[str, Any]
DELAYS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
"""Seconds after the start of a run that takes about half a second in all: before, in and after what it does."""


def ended(node: Node, vm: Options, *delays: float, change: Options | None = None) -> None:
    """Runs that are killed after each of these times, then one that is not, then one that finds nothing to do."""
    for delay in delays:
        process = node.libvirtd.begin("vm", vm | (change or {}), node.collections)
        time.sleep(delay)
        process.kill()
        process.communicate()
    node.ok("vm", vm | (change or {}))
    assert node.ok("vm", vm | (change or {}))["changed"] is False


def test_the_module_is_killed_at_each_stage(node: Node) -> None:
    slot = node.slot()
    vm = node.vm("home.killed", slot)
    ended(node, vm, *DELAYS)
    data = {"path": str(node.disk(slot / "var" / "data.raw")), "format": "raw"}
    ended(node, vm, *DELAYS, change={"disks": [*vm["disks"], data], "memory": {"mib": 24, "maximum_mib": 32}})
    wide = {"disks": [*vm["disks"], data], "memory": {"mib": 48}, "restart": "when_needed"}
    ended(node, vm, *DELAYS, change=wide)
    assert len(node.libvirtd.guests(vm["uuid"])) == 1
    ended(node, vm, *DELAYS, change={"state": "absent"})
    assert node.left("home.killed") == []


def test_libvirtd_is_killed_at_each_stage(node: Node) -> None:
    vm = node.vm("home.without")
    for delay in DELAYS:
        process = node.libvirtd.begin("vm", vm, node.collections)
        time.sleep(delay)
        node.libvirtd.kill()
        node.libvirtd.start()
        process.communicate()
        node.ok("vm", vm)
        assert node.ok("vm", vm)["changed"] is False
        assert len(node.libvirtd.guests(vm["uuid"])) == 1
        if delay in DELAYS[1::2]:
            node.remove(vm)
            assert node.left("home.without") == []
    node.remove(vm)


def test_a_run_waits_for_a_libvirtd_that_is_started_again(node: Node) -> None:
    vm = node.vm("home.waiting")
    node.libvirtd.kill()
    process = node.libvirtd.begin("vm", vm, node.collections)
    time.sleep(0.5)
    node.libvirtd.start()
    assert node.libvirtd.finish(process, "vm")["actions"] == ["defined", "started"]
    node.remove(vm)


def test_qemu_is_killed(node: Node) -> None:
    vm = node.vm("home.crashed")
    node.ok("vm", vm)
    for number in (signal.SIGKILL, signal.SIGTERM):
        [process] = node.libvirtd.guests(vm["uuid"])
        process.signal(number)
        # not waited for longer than that: libvirtd may not have heard of it yet
        assert process.wait(10)
        assert node.ok("vm", vm)["actions"] == ["started"]
    node.remove(vm)


def test_a_process_without_a_domain_is_ended(node: Node) -> None:
    """libvirtd and its notes were lost while a VM ran: a second QEMU on the disk would not start."""
    vm = node.vm("home.orphan")
    node.ok("vm", vm)
    [orphan] = node.libvirtd.guests(vm["uuid"])
    node.libvirtd.kill()
    for path in (node.libvirtd.folder / "run" / "qemu").glob("home.orphan.*"):
        path.unlink()
    node.libvirtd.start()
    assert node.ok("vm_info", {})["vms"]["home.orphan"]["state"] == "stopped"
    assert node.ok("vm", vm)["actions"] == ["started"]
    assert not orphan.alive
    assert len(node.libvirtd.guests(vm["uuid"])) == 1

    node.libvirtd.kill()
    for path in (node.libvirtd.folder / "run" / "qemu").glob("home.orphan.*"):
        path.unlink()
    node.libvirtd.start()
    node.steps("vm", vm | {"state": "absent"})
    assert node.left("home.orphan") == []


def test_removal_while_it_starts(node: Node) -> None:
    for delay in (0.15, 0.25, 0.35, 0.45):
        vm = node.vm("home.short")
        starting = node.libvirtd.begin("vm", vm, node.collections)
        time.sleep(delay)
        node.run("vm", vm | {"state": "absent"})
        starting.communicate()
        # whichever came last: once more, and nothing is left
        node.ok("vm", vm | {"state": "absent"})
        assert node.left("home.short") == []


def test_two_vms_at_once(node: Node) -> None:
    machines = [node.vm(f"home.twin{number}") for number in range(4)]
    running = [node.libvirtd.begin("vm", vm, node.collections) for vm in machines]
    results = [node.libvirtd.finish(process, "vm") for process in running]
    assert [one.get("actions") for one in results] == [["defined", "started"]] * 4, results
    assert len({process.pid for vm in machines for process in node.libvirtd.guests(vm["uuid"])}) == 4
    node.remove(*machines)


def test_two_vms_that_ask_for_one_disk_at_once(node: Node) -> None:
    slot = node.slot()
    shared = [{"path": str(node.disk(slot / "var" / "system.raw")), "format": "raw"}]
    machines = [node.vm(f"home.rival{number}", disks=shared, state="stopped") for number in range(4)]
    running = [node.libvirtd.begin("vm", vm, node.collections) for vm in machines]
    results = [node.libvirtd.finish(process, "vm") for process in running]
    refused = [one["msg"] for one in results if one.get("failed")]
    assert len(refused) == 3, results
    assert all("expected one that no other VM has" in text for text in refused)
    assert len(node.libvirtd.domains()) == 1
    node.remove(*machines)


@pytest.fixture
def small(node: Node, loop: str) -> Iterator[tuple[Path, Path]]:
    """A slot's directory on a file system of some MiB, as the node sees it, and as this process does."""
    slot = node.slot()
    assert node.libvirtd.holder
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", loop], check=True)
    node.libvirtd.execute(["mount", loop, str(slot / "var")])
    seen = Path(f"/proc/{node.libvirtd.holder.pid}/root{slot}/var")
    shutil.chown(seen, USER, pwd.getpwnam(USER).pw_gid)
    yield slot, seen
    node.libvirtd.execute(["umount", str(slot / "var")])


def test_a_full_disk_pauses_the_vm_and_room_lets_it_go_on(node: Node, small: tuple[Path, Path]) -> None:
    """Nothing that the guest wrote is lost, and the next run resumes it."""
    slot, seen = small
    ballast = seen / "ballast"
    ballast.write_bytes(bytes(6 * MIB))
    disk = node.disk(seen / "writing.raw", WRITER, mib=64)
    vm = node.vm("home.full", slot, disks=[{"path": str(slot / "var" / disk.name), "format": "raw"}])

    def state() -> Any:
        return node.ok("vm_info", {})["vms"]["home.full"]["state"]

    def used() -> int:
        return disk.stat().st_blocks * 512

    node.ok("vm", vm)
    assert until(lambda: state() == "paused", 60)
    before = used()
    assert MIB < before < 10 * MIB
    assert node.ok("vm", vm)["actions"] == ["resumed"], "nobody knows whether there is room but by trying"
    assert until(lambda: state() == "paused", 60)
    assert used() <= before + MIB
    ballast.unlink()
    assert node.ok("vm", vm)["actions"] == ["resumed"]
    assert until(lambda: used() > before + 4 * MIB, 60)
    node.remove(vm)
    assert disk.read_bytes()[:18] == WRITER[:18]


COUNTED = """
import json, sys, types
import libvirt
calls = []
def counting(kind):
    for name, method in list(vars(kind).items()):
        if isinstance(method, types.FunctionType) and not name.startswith("_") and name != "close":
            def counted(*given, __method=method, __name=name, **more):
                calls.append(__name)
                return __method(*given, **more)
            setattr(kind, name, counted)
counting(libvirt.virConnect)
from ansible_collections.clachan.platform.plugins.module_utils import hypervisor, vm_meters
found = vm_meters.read_all(libvirt, hypervisor.connect("qemu:///system"))
print(json.dumps([len(found), calls]))
"""


def test_meters_are_one_question_for_all(node: Node) -> None:
    machines = [node.vm(f"home.meter{number}", state="started" if number < 2 else "stopped") for number in range(4)]
    for vm in machines:
        node.ok("vm", vm)
    found = node.ok("vm_info", {})["vms"]
    assert [found[vm["name"]]["state"] for vm in machines] == ["started", "started", "stopped", "stopped"]
    assert all("meters" not in found[vm["name"]] for vm in machines[2:])
    meters = found["home.meter0"]["meters"]
    assert meters["vcpus"] == 1
    memory = node.ok("vm_info", {"balloon": True})["vms"]["home.meter0"]["meters"]
    assert (memory["memory_mib"], memory["memory_maximum_mib"]) == (32, 32)
    assert meters["disk_read_bytes"] >= 512
    assert meters["disk_reads"] >= 1
    assert meters["cpu_time_ns"] > 0
    assert meters["vcpu_time_ns"] > 0
    assert 0 < meters["memory_resident_mib"] < 500
    assert all(isinstance(value, int) for name, value in meters.items() if name != "epoch")
    later = node.ok("vm_info", {})["vms"]["home.meter0"]["meters"]
    assert later["cpu_time_ns"] >= meters["cpu_time_ns"]
    assert later["epoch"] == meters["epoch"]
    node.ok("vm", machines[0] | {"state": "stopped"})
    node.ok("vm", machines[0])
    assert node.ok("vm_info", {})["vms"]["home.meter0"]["meters"]["epoch"] != meters["epoch"]
    done = node.libvirtd.script(COUNTED, node.collections)
    assert json.loads(done) == [4, ["getAllDomainStats"]]
    node.remove(*machines)


def test_kvm_is_believed_only_after_a_boot(node: Node, tmp_path: Path) -> None:
    if not os.path.exists("/dev/kvm"):
        vm = node.vm("home.auto", accelerator="auto", state="stopped")
        assert node.ok("vm", vm)["warning"].startswith("KVM does not work here: there is no /dev/kvm; software")
        node.remove(vm)
        return
    no_kernel = tmp_path / "vmlinuz"
    no_kernel.write_bytes(b"\0" * MIB)
    vm = node.vm("home.auto", accelerator="auto", kvm_probe_kernel=str(no_kernel), state="stopped")
    first = node.ok("vm", vm)
    assert first["accelerator"] == "qemu"
    assert first["warning"].startswith("KVM does not work here: a kernel ")
    assert first["warning"].endswith("; software emulation (TCG), many times slower")
    assert first["warning"] in str(first["warnings"])
    # the answer is kept: the boot took seconds
    began = time.monotonic()
    assert node.ok("vm", vm)["warning"] == first["warning"]
    assert time.monotonic() - began < 5
    refused = node.run("vm", vm | {"accelerator": "kvm"})
    assert refused["msg"].startswith("accelerator kvm: does not work here (a kernel ")
    node.remove(vm)


def test_qemu_without_its_sandbox_is_told(node: Node) -> None:
    settings = node.libvirtd.settings
    node.libvirtd.configure(settings | {"seccomp_sandbox": "0"})
    node.libvirtd.kill()
    node.libvirtd.start()
    vm = node.vm("home.open")
    try:
        assert node.ok("vm", vm)["warning"] == (
            "QEMU runs without its sandbox: expected seccomp_sandbox = 1 in libvirt's qemu.conf"
        )
        node.remove(vm)
    finally:
        node.libvirtd.configure(settings)
        node.libvirtd.kill()
        node.libvirtd.start()
