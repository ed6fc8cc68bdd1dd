"""Isolation on a node, with real taps, real rules and everything in network namespaces: who reaches whom, and when."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from testbed.isolation_attacks import attack_all, attacks
from testbed.isolation_lab import Network, inside, obstacle, token
from testbed.isolation_matrix import (
    GATEWAY,
    PORT,
    PUBLIC,
    RESERVED,
    Probe,
    ask_all,
    build_world,
    guests,
    isolate,
    member,
    open_services,
    probes,
)

Module = Callable[..., dict[str, Any]]
TABLES = (("inet", "clachan"), ("arp", "clachan"))


pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(obstacle() is not None, reason=str(obstacle())),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Network, Path]]:
    """Five guests of three clusters on a node, and a world around it."""
    home = tmp_path_factory.mktemp("isolation") / "home"
    with Network("iso") as network:
        build_world(network)
        isolate(network, home)
        network.plug(*guests(network))
        open_services(network)
        yield network, home


def said(failed: list[Any]) -> str:
    return "\n".join(map(str, failed))


@pytest.mark.slow
def test_the_matrix(lab: tuple[Network, Path]) -> None:
    asked = probes()
    failed = ask_all(lab[0], asked)
    print("\n".join(map(str, asked)))
    assert len(asked) >= 60
    assert not failed, said(failed)


@pytest.mark.slow
def test_attacks(lab: tuple[Network, Path]) -> None:
    tried = attacks()
    failed = attack_all(lab[0], tried)
    print("\n".join(map(str, tried)))
    assert not failed, said(failed)


@pytest.mark.slow
def test_without_the_rules_probes_and_attacks_arrive(lab: tuple[Network, Path]) -> None:
    """So that a silent network is not taken for an isolated one."""
    network, home = lab
    try:
        for family, name in TABLES:
            network.nft("delete", "table", family, name)
        asked = [
            one for one in probes() if not one.reach and one.kind != "ping" and one.source not in {"slot", "world"}
        ]
        ask_all(network, asked)
        arrived = [one for one in asked if one.seen]
        assert len(arrived) > 60
        assert {"node", "world", "a1", "z1", "relay of a1"} <= {
            one.seen.partition(" (")[0].partition(",")[0] for one in arrived
        }
        assert len(attack_all(network, attacks())) > 12
    finally:
        isolate(network, home)
    assert not ask_all(network, [one for one in probes() if one.target in {"a2", "b1"}])


@pytest.mark.slow
def test_nothing_passes_while_rules_are_replaced(lab: tuple[Network, Path]) -> None:
    """Elements, rules and whole tables, again and again, under a flood of what must not pass."""
    network, home = lab
    whole = (home / "node/isolation/table.nft").read_text()
    ending = threading.Event()
    counts = {"rounds": 0, "sent": 0}
    mark = token()

    def replace() -> None:
        with inside(network.node):
            while not ending.is_set():
                subprocess.run(["nft", "-f", "-"], input=whole, text=True, check=True)
                peers = 'element inet clachan peers { "cv0" . "cv1" }'
                subprocess.run(["nft", "-f", "-"], input=f"delete {peers}\nadd {peers}\n", text=True, check=True)
                counts["rounds"] += 1

    def flood() -> None:
        with inside(network.guests["z1"].namespace):
            asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asker:
            while not ending.is_set():
                for target in ("a1", "a2", "b1"):
                    asker.sendto(mark, (member(target)["ipv4"], PORT))
                    counts["sent"] += 1
                if counts["sent"] % 300 == 0:
                    time.sleep(0.002)

    workers = [threading.Thread(target=work) for work in (replace, flood)]
    for worker in workers:
        worker.start()
    try:
        # whoever floods starves its own link: its fellow is not asked for it
        sources, targets = {"a1", "a2", "z1", "z2"}, {"a1", "a2", "b1"}
        asked = [one for _ in range(4) for one in probes() if one.source in sources and one.target in targets]
        failed = ask_all(network, asked)
    finally:
        ending.set()
        for worker in workers:
            worker.join()
    print(counts)
    assert counts["rounds"] > 30
    assert not failed, said(failed)
    assert network.seen.of(mark) == {}


@pytest.mark.slow
def test_a_flood_takes_nothing_from_others(lab: tuple[Network, Path]) -> None:
    network, _ = lab
    before = int(network.setting("netfilter/nf_conntrack_count"))
    with inside(network.guests["z1"].namespace):
        flooder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ending = time.monotonic() + 4
    sent = 0

    def flood() -> None:
        nonlocal sent
        while time.monotonic() < ending:
            for port in range(20000, 20100):
                for target in (member("a1")["ipv4"], PUBLIC[4], GATEWAY[4]):
                    flooder.sendto(b"x" * 64, (target, port))
                    sent += 1

    worker = threading.Thread(target=flood)
    worker.start()
    asked = [
        Probe("a1", "a2", member("a2")[f"ipv{f}"], PORT, kind, True) for f in (4, 6) for kind in ("tcp", "udp", "ping")
    ]
    failed = ask_all(network, asked)
    worker.join()
    flooder.close()
    after = int(network.setting("netfilter/nf_conntrack_count"))
    print(f"{sent} packets sent, tracked connections {before} before, {after} after")
    assert sent > 5000
    assert not failed, said(failed)
    assert after - before < 50


@pytest.mark.slow
def test_a_narrower_policy_ends_what_was_open(lab: tuple[Network, Path], run_module: Module) -> None:
    network, home = lab
    guest = network.guests["b1"]
    with inside(guest.namespace):
        talk = socket.create_connection((PUBLIC[4], PORT), 5)
    talk.settimeout(1)

    def echo(text: bytes) -> bytes:
        talk.send(text)
        try:
            return talk.recv(99)
        except TimeoutError:
            return b""

    assert echo(b"before") == b"before"
    given = member("b1") | {"home": str(home), "reserved": RESERVED}
    with inside(network.node):
        assert run_module("isolation", given | {"policy": "internal"})["changed"] is True
        assert echo(b"during") == b""
        assert run_module("isolation", given)["changed"] is True
    assert talk.recv(99) == b"during"
    talk.close()
