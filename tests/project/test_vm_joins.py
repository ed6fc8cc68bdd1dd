"""A cluster of real guests: killed while they boot and while they join, and then another flavour rolls through it."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from testbed import guest, host, images, soak
from testbed.vm_machine import VmMachine, obstacle, vm_machine

pytestmark = [pytest.mark.heavy, pytest.mark.guest, pytest.mark.root, pytest.mark.long]
CLUSTER, MEMBERS = "home.lab", ("home.lab.m1", "home.lab.m2")
BOOT_SECONDS = 600.0
"""For two guests at once under emulation, on two cores that do more than that; alone it is a tenth."""


@pytest.fixture(scope="module")
def oak() -> Iterator[VmMachine]:
    reason = images.obstacle() or guest.obstacle() or obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")
    with tempfile.TemporaryDirectory(dir=host.testbed()) as scratch:
        disk = images.node_image(Path(scratch))
    with vm_machine("joins", {"/srv/images": str(disk.parent)}) as machine:
        machine.take("node", f"/srv/images/{disk.name}")
        yield machine


@pytest.mark.soak
@pytest.mark.timeout(soak.seconds(2400))
def test_members_are_killed_while_they_join_and_a_change_rolls_through(oak: VmMachine) -> None:
    """In each round each of two members loses its power amid its joining, agent and libvirtd die meanwhile."""
    for chance in soak.rounds("guest", every=15):
        with host.locked(host.testbed() / "guest.lock"):
            wanted = {"cluster_size": 2, "cluster_image": oak.images["node"]}
            oak.order(CLUSTER, "cluster", **wanted, cluster_flavour={"memory_mib": 384})
            for path in MEMBERS:
                oak.until(f"QEMU of {path}", lambda path=path: oak.emulators(path), BOOT_SECONDS)
            the_node_suffers(oak, chance)
            members_are_cut_off_while_they_join(oak, chance)
            whole(oak)
            oak.order(CLUSTER, "cluster", **wanted, cluster_flavour={"memory_mib": 448})
            assert not the_change_rolls_through(oak)
            whole(oak)
            oak.remove(CLUSTER)
            oak.until_gone(*MEMBERS, CLUSTER)


def the_node_suffers(oak: VmMachine, chance: Random) -> None:
    before = {path: oak.emulators(path) for path in MEMBERS}
    for victim in ("agent", "libvirtd"):
        time.sleep(chance.uniform(0, 5))
        assert oak.kill(victim, "")
    assert {path: oak.emulators(path) for path in MEMBERS} == before


def members_are_cut_off_while_they_join(oak: VmMachine, chance: Random) -> None:
    """Each one, once: within a second and a half from its agent's first call to the controller."""
    waiting = {path: oak.relay(path) for path in MEMBERS}

    def look() -> bool:
        for path, port in list(waiting.items()):
            if oak.run(f"ss -Htn state established 'sport = :{port}'").strip():
                delay = chance.uniform(0, 1.5)
                time.sleep(delay)
                print(f"  {path} calls; killed {delay:.2f} s later: {oak.kill('qemu', path)}, {oak.said(path)}")
                del waiting[path]
        return not waiting

    oak.until("every member's first call", look, BOOT_SECONDS, pause=0.1)


def whole(oak: VmMachine) -> None:
    took = oak.until(f"{CLUSTER} started", lambda: oak.said(CLUSTER).startswith("started"), BOOT_SECONDS, pause=1)
    print(f"  {CLUSTER}: started after {took:.0f} s")
    assert [len(oak.emulators(path)) for path in MEMBERS] == [1, 1]


def the_change_rolls_through(oak: VmMachine) -> list[str]:
    """One QEMU after the other is made anew, never both at once; says which went while the other guest was away."""
    old = {path: oak.emulators(path) for path in MEMBERS}
    new, early = list[str](), list[str]()

    def look() -> bool:
        present = {path: oak.emulators(path) for path in MEMBERS}
        assert any(present.values()), "both members are away, expected one at a time"
        for path in MEMBERS:
            if path not in new and present[path] != old[path]:
                early.extend(f"{path} goes, {other} is away" for other in new if not oak.answers(other))
                new.append(path)
        return len(new) == len(MEMBERS)

    oak.until("both members made anew", look, BOOT_SECONDS, pause=0.3)
    for path in MEMBERS:
        oak.until(f"{path} started", lambda path=path: oak.said(path).startswith("started"), BOOT_SECONDS, pause=1)
        assert oak.run(f"virsh dominfo {path} | grep 'Max memory'").split()[2] == str(448 * 1024)
    return early
