"""A node with VMs whose agent, libvirtd and QEMU are killed while VMs come and go: it heals, and nothing is left."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest
from house import ROOT
from testbed import soak
from testbed.vm_machine import ALIVE_SECONDS, VmMachine, obstacle, vm_machine

sys.path.insert(0, str(ROOT / "tests" / "plugins"))
from payloads import payloads

pytestmark = [pytest.mark.heavy, pytest.mark.root, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def oak() -> Iterator[VmMachine]:
    reason = obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")
    with vm_machine("faults") as machine:
        yield machine


@pytest.fixture(scope="module")
def usual(oak: VmMachine) -> float:
    """Seconds from an order to its QEMU: how long the stage is in which a VM is defined."""
    for _ in range(2):  # the first of a node has to find out whether KVM works
        oak.order("home.usual")
        took = oak.until("QEMU of home.usual", lambda: oak.emulators("home.usual"), ALIVE_SECONDS)
        oak.until("home.usual", lambda: oak.whole("home.usual"), ALIVE_SECONDS)
        end(oak, "home.usual")
    print(f"\nfrom an order to its QEMU: {took:.1f} s")
    return took


def end(oak: VmMachine, path: str) -> None:
    oak.remove(path)
    oak.until_gone(path)


def strike(oak: VmMachine, paths: list[str], chance: Random, longest: dict[str, float]) -> None:
    """Each of these dies at some moment of that many seconds; a QEMU is one of these machines'."""
    began, moments = time.monotonic(), sorted((chance.uniform(0, most), victim) for victim, most in longest.items())
    for moment, victim in moments:
        time.sleep(max(0.0, began + moment - time.monotonic()))
        path = chance.choice(paths)
        hit = "killed" if oak.kill(victim, path) else "not there"
        print(f"  {victim} {f'of {path} ' if victim == 'qemu' else ''}after {moment:.2f} s: {hit}", flush=True)


@pytest.mark.long
@pytest.mark.soak
@pytest.mark.timeout(soak.seconds(1800))
def test_whoever_is_killed_while_vms_come_and_go(oak: VmMachine, usual: float) -> None:
    """In each round agent, libvirtd and a QEMU die while VMs are defined, while they boot and while they go."""
    paths = [f"home.life{number}" for number in range(3)]
    for chance in soak.rounds("node"):
        for path in paths:
            oak.order(path)
        strike(oak, paths, chance, {"agent": usual, "libvirtd": usual})
        oak.until("a first QEMU", lambda: oak.emulators(), ALIVE_SECONDS, pause=0.05)
        strike(oak, [path for path in paths if oak.emulators(path)], chance, {"qemu": 0})
        for path in paths:
            oak.until(f"QEMU of {path}", lambda path=path: oak.emulators(path), ALIVE_SECONDS)
        strike(oak, paths, chance, {"agent": 2, "libvirtd": 2, "qemu": 2})
        for path in paths:
            oak.until(f"{path} after the kills", lambda path=path: oak.whole(path), ALIVE_SECONDS)
        for path in paths:
            oak.remove(path)
        strike(oak, paths, chance, {"agent": 3, "libvirtd": 3, "qemu": 1})
        oak.until_gone(*paths)


def test_a_vm_is_removed_while_it_boots(oak: VmMachine) -> None:
    """Its system does not hear the power button yet."""
    oak.order("home.booting", vm_image=oak.images["deaf"])
    oak.until("QEMU of home.booting", lambda: oak.emulators("home.booting"), ALIVE_SECONDS)
    end(oak, "home.booting")


def test_a_vm_is_removed_before_it_is_there(oak: VmMachine) -> None:
    oak.order("home.hasty")
    time.sleep(2)
    end(oak, "home.hasty")


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "vm_authorized_keys": lambda text: {"vm_authorized_keys": [text]},
    "vm_volumes": lambda text: {"vm_volumes": [{"name": text, "size_mib": 16}]},
    "vm_destinations": lambda text: {"vm_network": "destinations", "vm_destinations": [{"cidr": text}]},
    "vm_backups": lambda text: {"vm_backups": [{"name": text, "volume": text}]},
    "vm_restore": lambda text: {"vm_restore": {"volume": text, "backup": text, "word": text}},
    "cluster_software": lambda text: {
        "cluster_size": 1,
        "cluster_image": "0" * 64,
        "cluster_software": [{"name": text, "software": text, "type": text, "parameters": {text: [text]}}],
    },
}
"""Where any text gets through to a node (`controller/tests/decisions/test_payloads.py` has all of them)."""
CHOSEN = ("template", "statement", "shell", "newline", "yaml", "jinja_header")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=() if place in {"vm_authorized_keys", "cluster_software"} else pytest.mark.long)
        for place in PLACES
    ],
)
def test_texts_that_would_run_something_run_nowhere(oak: VmMachine, place: str) -> None:
    """From the request through the slice and the role to libvirt: refused with a reason, or text in the seed."""
    canary = Path(f"/tmp/clachan-canary-{os.getpid()}")
    texts = {name: text for name, text in payloads(canary).items() if name in CHOSEN} | {"xml": "'/><disk/>&x;</name>"}
    paths = {f"home.text_{name}": PLACES[place](text) for name, text in texts.items()}
    for path, parameters in paths.items():
        oak.order(path, place.partition("_")[0], **parameters)
    for path in paths:
        oak.until(f"a word on {path}", lambda path=path: not oak.said(path).endswith(": "), ALIVE_SECONDS)
        print(f"  {place} {path}: {oak.said(path)[:300]!r}")
    for name in oak.run("virsh list --all --name").split():
        tree = ElementTree.fromstring(oak.run(f"virsh dumpxml {name}"))
        assert [len(tree.findall(f"devices/{kind}")) for kind in ("disk", "interface")] == [2, 1], name
    assert not canary.exists()
    assert not (oak.machine.root / str(canary)[1:]).exists()
    for path in paths:
        oak.remove(path)
    oak.until_gone(*paths)
