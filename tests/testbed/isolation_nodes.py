"""Two nodes with guests of two clusters on each, on one network with a router, for the tests between nodes.

Each node is a `Network` of isolation_lab; their uplinks are ports of a bridge in the first one's world, which is the
router that both have as their default way. What is seen anywhere is seen by both.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed.isolation_lab import USER, Guest, Network, inside
from testbed.isolation_matrix import PORT, RESERVED, Probe

ROUTER = {4: "192.168.50.1", 6: "fd50::1"}
LINKS = {"one": {4: "192.168.50.2", 6: "fd50::2"}, "two": {4: "192.168.50.3", 6: "fd50::3"}}
PLACES = {"a1": "one", "a2": "one", "z1": "one", "a3": "two", "z2": "two"}
CLUSTERS = {"a": "acme.web", "z": "zeta.web"}
POLICIES = {"a1": "internet", "z1": [{"cidr": "10.0.0.0/8"}, {"cidr": "fd42::/16"}]}


def address(name: str, family: int) -> str:
    node, index = list(LINKS).index(PLACES[name]) + 1, 16 + list(PLACES).index(name)
    return f"10.77.{16 * node}.{index}" if family == 4 else f"fd42:7:77:{node}::{index:x}"


def remote(name: str) -> list[dict[str, str]]:
    """Its cluster's members on the other node."""
    others = [one for one in PLACES if one[0] == name[0] and PLACES[one] != PLACES[name]]
    return [{"address": address(one, family), "via": LINKS[PLACES[one]][family]} for one in others for family in (4, 6)]


def member(name: str) -> dict[str, Any]:
    """What the module isolation is given for this guest on its node."""
    index = list(PLACES).index(name)
    return {
        "tap": f"cv{index}",
        "cluster": CLUSTERS[name[0]],
        "user": USER,
        "mac": f"52:54:00:00:01:{index:02x}",
        "ipv4": address(name, 4),
        "ipv6": address(name, 6),
        "relay_port": 20000 + 20 * index,
        "policy": POLICIES.get(name, "internal"),
        "remote": remote(name),
        "reserved": RESERVED,
    }


class Nodes:
    """Both nodes: `networks` by name, `asker` for questions of any guest, `homes` of the module."""

    def __init__(self, networks: dict[str, Network], folder: Path) -> None:
        self.networks = networks
        self.homes = {name: str(folder / name) for name in networks}
        self.asker = networks["one"]

    def run(self, module: Any, name: str, check: bool = False, **more: Any) -> dict[str, Any]:
        """The result of the module for that guest, or at that node."""
        node = PLACES.get(name, name)
        given = (member(name) if name in PLACES else {}) | {"home": self.homes[node]} | more
        with inside(self.networks[node].node):
            result: dict[str, Any] = module("isolation", given, check=check)
        return result

    def routes(self, node: str) -> list[str]:
        """Those that are ours, as text."""
        network = self.networks[node]
        shown = [network.ip(network.node, f"{family} route show proto 108") for family in ("-4", "-6")]
        return [" ".join(line.split()[:3]) for line in "".join(shown).splitlines()]

    def elements(self, node: str) -> str:
        return "".join(self.networks[node].nft("list", "set", "inet", "clachan", name) for name in SETS)

    def plug(self) -> None:
        """Boot the guests; each answers."""
        for name, network in self.networks.items():
            mine = [Guest(one, member(one), f"{network.name}-{one}") for one in PLACES if PLACES[one] == name]
            network.plug(*mine)
            for guest in mine:
                for anywhere in ("0.0.0.0", "::"):
                    network.listen(guest.namespace, guest.name, anywhere, PORT)
            self.asker.guests.update(network.guests)


SETS = ("remote4", "remote6", "ways4", "ways6")


@contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    with Network("no") as one, Network("nt") as two:
        two.seen = one.seen
        one.ip(one.world, "link add lan type bridge")
        one.ip(one.world, "link set lan up")
        networks = {"one": one, "two": two}
        for number, (name, network) in enumerate(networks.items()):
            network.wire(network.node, "up0", one.world, f"port{number}")
            one.ip(one.world, f"link set port{number} master lan")
            for family, length in ((4, "24"), (6, "64 nodad")):
                link, prefix, *flags = LINKS[name][family], *length.split()
                network.ip(network.node, " ".join(["address add", f"{link}/{prefix}", "dev up0", *flags]))
                network.ip(network.node, f"route add default via {ROUTER[family]}")
        for family, length in ((4, "24"), (6, "64 nodad")):
            prefix, *flags = length.split()
            one.ip(one.world, " ".join(["address add", f"{ROUTER[family]}/{prefix}", "dev lan", *flags]))
        one.sniff(one.world, "lan", "router")
        yield Nodes(networks, folder)


def probes(sources: Iterable[str] = PLACES, targets: Iterable[str] = PLACES) -> list[Probe]:
    """Everybody to everybody, by everything; those of one cluster reach each other."""
    return [
        Probe(source, target, address(target, family), PORT, kind, source[0] == target[0])
        for source in sources
        for target in targets
        if source != target
        for family in (4, 6)
        for kind in ("tcp", "udp", "ping")
    ]
