"""Members of a cluster on two nodes reach each other, and nobody else's there: real taps, rules and routes."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from testbed.host import run
from testbed.isolation_lab import inside, obstacle, token
from testbed.isolation_matrix import PORT, ask_all
from testbed.isolation_nodes import LINKS, PLACES, ROUTER, Nodes, address, probes, remote, two_nodes

Module = Callable[..., dict[str, Any]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(obstacle() is not None, reason=str(obstacle())),
]

TO_A3 = [f"{address('a3', family)} via {LINKS['two'][family]}" for family in (4, 6)]
TO_Z2 = [f"{address('z2', family)} via {LINKS['two'][family]}" for family in (4, 6)]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Without members and guests."""
    with two_nodes(tmp_path) as found:
        yield found


@pytest.fixture
def lab(nodes: Nodes, run_module: Module) -> Nodes:
    """With all of them."""
    for name in PLACES:
        result = nodes.run(run_module, name)
        assert (result["changed"], result["unreached"]) == (True, [])
    nodes.plug()
    return nodes


def between(nodes: Nodes) -> list[str]:
    """What did not hold between the two nodes."""
    ones = [name for name in PLACES if PLACES[name] == "one"]
    twos = [name for name in PLACES if PLACES[name] == "two"]
    return [str(one) for one in ask_all(nodes.asker, [*probes(ones, twos), *probes(twos, ones)])]


def arrived(nodes: Nodes, source: str, target: str, family: int = 4) -> dict[str, str]:
    """Where a datagram came, and from which address."""
    mark = token()
    with inside(nodes.asker.guests[source].namespace):
        asker = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    with asker:
        for sent in range(10):
            if sent >= 3 and nodes.asker.seen.of(mark):
                break
            asker.sendto(mark, (address(target, family), PORT))
            time.sleep(0.2)
    return nodes.asker.seen.of(mark)


def boot(nodes: Nodes, node: str) -> None:
    """No taps, rules, routes of ours or forwarding; the disk stays."""
    network = nodes.networks[node]
    for name in network.links():
        network.ip(network.node, f"link delete {name}")
    network.nft("flush", "ruleset")
    for family in ("-4", "-6"):
        network.ip(network.node, f"{family} route flush proto 108")
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        network.setting(setting, "0")


def test_members_reach_each_other_and_others_do_not(lab: Nodes) -> None:
    asked = probes()
    failed = ask_all(lab.asker, asked)
    print("\n".join(map(str, asked)))
    assert len(asked) == 120
    assert sum(one.reach for one in asked) == 48
    assert not failed, "\n".join(map(str, failed))
    assert not [one for one in asked if "router" in one.seen and not one.reach]


def test_they_see_each_others_own_addresses_whatever_others_masquerade(lab: Nodes) -> None:
    """Also a member that reaches the internet as its node, and with a strict check of ways back."""
    for network in lab.networks.values():
        own = 'chain p { type nat hook postrouting priority 100; oifname "up0" masquerade; }'
        network.nft("-f", "-", text=f"table inet others {{ {own}; }}\n")
        network.setting("ipv4/conf/all/rp_filter", "1")
    for source, target in (("a1", "a3"), ("a3", "a1"), ("a2", "a3")):
        for family in (4, 6):
            assert arrived(lab, source, target, family)[target] == address(source, family)
    assert not between(lab)
    # the others' rule would, where ours does not say the last word
    one = lab.networks["one"]
    one.nft("flush", "chain", "inet", "clachan", "disguise")
    assert arrived(lab, "a1", "a3") == {}


def test_after_a_boot_all_is_back(lab: Nodes, run_module: Module) -> None:
    before = {node: (lab.routes(node), lab.elements(node)) for node in LINKS}
    for node in LINKS:
        lab.networks[node].unplug("+".join(lab.networks[node].guests if node == "two" else ["a1", "a2", "z1"]))
        boot(lab, node)
        would = lab.run(run_module, node, check=True, state="restored")
        assert lab.routes(node) == []
        result = lab.run(run_module, node, state="restored")
        assert would["changes"] == result["changes"]
        assert [one for one in result["changes"] if one.startswith("route") and " via " in one]
        assert lab.run(run_module, node, state="restored")["changed"] is False
        assert (lab.routes(node), lab.elements(node)) == before[node]


def test_a_way_that_is_gone_leads_nowhere_else(lab: Nodes, run_module: Module) -> None:
    """The default router must not get what is for another node's member."""
    network = lab.networks["one"]
    assert "a3" in arrived(lab, "a2", "a3")
    for family in (4, 6):
        network.ip(network.node, f"-{family} route flush proto 108")
        assert arrived(lab, "a2", "a3", family) == {}
        assert arrived(lab, "a1", "a3", family) == {}
    back = lab.run(run_module, "one", state="restored")
    assert sorted(back["changes"]) == sorted(f"route {one}" for one in [*TO_A3, *TO_Z2])
    assert not between(lab)


def test_nobody_speaks_for_a_member_from_another_network(lab: Nodes) -> None:
    network = lab.networks["one"]
    outsider = f"{network.name}-out"
    network.ip(network.node, "link add side0 type veth peer name side1")
    network.ip(network.node, "address add 198.18.0.1/24 dev side0")
    network.ip(network.node, "link set side0 up")
    run(["ip", "netns", "add", outsider])
    network.owned.append(outsider)
    network.ip(network.node, f"link set side1 netns {outsider}")
    network.ip(outsider, "link set side1 up")
    for one in (f"{address('a3', 4)}/32", "198.18.0.2/24"):
        network.ip(outsider, f"address add {one} dev side1")
    network.ip(outsider, "route add default via 198.18.0.1")
    for name in ("all", "side0", "up0"):
        network.setting(f"ipv4/conf/{name}/rp_filter", "0")

    def seen() -> dict[str, str]:
        mark = token()
        with inside(outsider):
            forger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with forger:
            forger.bind((address("a3", 4), 0))
            forger.sendto(mark, (address("a1", 4), PORT))
            time.sleep(0.5)
        return lab.asker.seen.of(mark)

    assert seen() == {}
    network.nft("flush", "chain", "inet", "clachan", "arriving")
    network.nft("add", "rule", "inet", "clachan", "arriving", "accept")
    assert seen()["a1"] == address("a3", 4)


def test_in_twelve_steps(nodes: Nodes, run_module: Module) -> None:
    def steps(name: str, **more: Any) -> list[dict[str, Any]]:
        results = [nodes.run(run_module, name, check, **more) for check in (True, False, False, True)]
        assert [one["changed"] for one in results] == [True, True, False, False], results
        assert results[0]["changes"] == results[1]["changes"]
        return results

    network = nodes.networks["one"]
    foreign = [f"{address('a3', 4)}/32 via {ROUTER[4]} metric 7000", f"10.99.0.1/32 via {ROUTER[4]} proto 99"]
    for one in foreign:
        network.ip(network.node, f"route add {one}")
    first = steps("a1")[1]
    assert first["changes"][-2:] == [f"route {one}" for one in TO_A3]
    assert first["diff"]["after"]["member"]["remote"] == sorted(remote("a1"), key=lambda one: one["address"])
    assert nodes.routes("one") == TO_A3
    # the second one wants the same way: it is there
    assert not [one for one in steps("a2")[1]["changes"] if " via " in one]
    assert steps("a1", remote=[])[1]["changes"] == ["record cv0", "table inet clachan"]
    assert nodes.routes("one") == TO_A3
    assert f'"cv0" . {address("a3", 4)}' not in nodes.elements("one")
    assert f'"cv1" . {address("a3", 4)} . {LINKS["two"][4]}' in nodes.elements("one")
    gone = steps("a2", remote=remote("a2")[:1])[1]["changes"]
    assert gone == ["record cv1", "table inet clachan", f"route {TO_A3[1]} delete"]
    assert nodes.routes("one") == TO_A3[:1]
    gone = steps("a2", state="absent")[1]["changes"]
    assert gone == ["tap cv1 delete", "record cv1 delete", "table inet clachan", f"route {TO_A3[0]} delete"]
    assert nodes.routes("one") == []
    assert address("a3", 4) not in nodes.elements("one")
    shown = network.ip(network.node, "route show")
    assert f"{address('a3', 4)} via {ROUTER[4]} dev up0 metric 7000" in shown
    assert "10.99.0.1 via" in shown


def test_a_node_that_is_reached_elsewhere_from_now_on(nodes: Nodes, run_module: Module) -> None:
    """The newest word counts; who has not heard it yet does not take it back."""
    nodes.run(run_module, "a1")
    nodes.run(run_module, "a2")
    other = [dict(one, via="192.168.50.4" if "." in one["via"] else "fd50::4") for one in remote("a1")]
    moved = nodes.run(run_module, "a1", remote=other)["changes"]
    expected = [f"{address('a3', 4)} via 192.168.50.4", f"{address('a3', 6)} via fd50::4"]
    assert moved[2:] == [f"route {one}" for one in expected]
    assert nodes.routes("one") == expected
    assert nodes.run(run_module, "one", state="restored")["changed"] is False
    assert nodes.run(run_module, "a2", remote=other)["changes"] == ["record cv1", "table inet clachan"]
    assert nodes.routes("one") == expected


def test_what_is_on_no_network_of_the_node_is_told_and_not_sent_elsewhere(nodes: Nodes, run_module: Module) -> None:
    far = [dict(one, via="192.0.2.7" if "." in one["via"] else "2001:db8::7") for one in remote("a1")]
    told = ["192.0.2.7: not on a network of this machine", "2001:db8::7: not on a network of this machine"]
    for check in (True, False, False):
        assert nodes.run(run_module, "a1", check, remote=far)["unreached"] == told
    restored = nodes.run(run_module, "one", state="restored")
    assert (restored["changed"], restored["unreached"]) == (False, told)
    own = [dict(one, via=LINKS["one"][4 if "." in one["via"] else 6]) for one in remote("a1")]
    itself = ["192.168.50.2: is this machine", "fd50::2: is this machine"]
    assert nodes.run(run_module, "a1", remote=own)["unreached"] == itself
    # only its own nodes' are told to a member
    assert nodes.run(run_module, "z1")["unreached"] == []
    nodes.run(run_module, "a1", remote=far)
    nodes.plug()
    for family in (4, 6):
        assert arrived(nodes, "a1", "a3", family) == {}
    network = nodes.networks["one"]
    for family in (4, 6):
        network.ip(network.node, f"-{family} route delete default")
    assert nodes.run(run_module, "a1", remote=far)["unreached"] == ["192.0.2.7: no route", "2001:db8::7: no route"]
