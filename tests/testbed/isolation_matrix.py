#!/usr/bin/python3
"""Who reaches whom on a node: guests of three tenants' clusters, the node, and a world outside, probed and printed.

`isolation_matrix.py` probes and prints the matrix; `isolation_matrix.py --output FILE` writes it into the document's
section between its markers. Needs root, nft and /dev/net/tun; everything happens in network namespaces.
"""

import argparse
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from testbed import frames
from testbed.host import REPOSITORY, LabError
from testbed.isolation_lab import USER, Guest, Network, called, inside, source_port, token

DOCUMENT = REPOSITORY / "docs" / "isolation.md"
MARKERS = ("<!-- matrix -->\n", "<!-- end of the matrix -->\n")
PORT = 8080
RESERVED = ["10.0.0.0/8", "fd42:7::/32"]
PUBLIC = {4: "9.9.9.9", 6: "2620:fe::9"}
LAN = {4: "192.168.50.10", 6: "fd50::10"}
NODE = {4: "192.168.50.2", 6: "fd50::2"}
ROUTER = {4: "192.168.50.1", 6: "fd50::1"}
REMOTE = {4: "10.66.0.17", 6: "fd42:7:66::17"}
ELSEWHERE = {4: "10.66.0.18", 6: "fd42:7:66::18"}
METADATA = {4: "169.254.169.254", 6: "fd00:ec2::254"}
WIRESERVER = "168.63.129.16"
WORLD = [WIRESERVER, *(where[family] for where in (PUBLIC, LAN, REMOTE, ELSEWHERE, METADATA) for family in (4, 6))]
GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
LISTED = [
    {"cidr": f"{LAN[4]}/32", "protocol": "tcp", "port": PORT},
    {"cidr": f"{LAN[6]}/128", "protocol": "tcp", "port": PORT},
    {"cidr": f"{PUBLIC[4]}/32", "protocol": "udp", "port": 53},
    # what a tenant may write and never gets: everybody's private addresses, the node, a cloud's metadata
    {"cidr": "10.0.0.0/8"}, {"cidr": "fd42::/16"}, {"cidr": f"{NODE[4]}/32"}, {"cidr": f"{NODE[6]}/128"},
    {"cidr": "169.254.0.0/16"}, {"cidr": "fe80::/10"}, {"cidr": f"{WIRESERVER}/32"}, {"cidr": f"{METADATA[6]}/128"},
]  # fmt: skip
CLUSTERS = {
    "a1": ("acme.web", "internal"),
    "a2": ("acme.web", "internal"),
    "b1": ("acme.db", "internet"),
    "z1": ("zeta.web", LISTED),
    "z2": ("zeta.web", LISTED),
}
ANSWER_SECONDS = 4.0
SILENCE_SECONDS = 1.0


def member(name: str) -> dict[str, Any]:
    """What the module isolation is given for this guest."""
    index = list(CLUSTERS).index(name)
    cluster, policy = CLUSTERS[name]
    return {
        "tap": f"cv{index}",
        "cluster": cluster,
        "user": USER,
        "mac": f"52:54:00:00:00:{index + 1:02x}",
        "ipv4": f"10.77.16.{16 + index}",
        "ipv6": f"fd42:7:77:1::{16 + index:x}",
        "relay_port": 20000 + 20 * index,
        "policy": policy,
        "remote": [{"address": REMOTE[f], "via": ROUTER[f]} for f in (4, 6) if cluster == "acme.web"],
    }


def guests(network: Network) -> list[Guest]:
    return [Guest(name, member(name), f"{network.name}-{name}") for name in CLUSTERS]


def build_world(network: Network) -> None:
    """The uplink, and beyond it a router that has every address which somebody might want to reach."""
    network.wire(network.node, "up0", network.world, "down0")
    for family, length, router in ((4, 24, ROUTER[4]), (6, 64, ROUTER[6])):
        network.ip(network.node, f"address add {NODE[family]}/{length} dev up0{' nodad' if family == 6 else ''}")
        network.ip(network.world, f"address add {router}/{length} dev down0{' nodad' if family == 6 else ''}")
        network.ip(network.node, f"route replace default via {router}")
    for address in WORLD:
        length = "128 dev down0 nodad" if ":" in address else "32 dev down0"
        network.ip(network.world, f"address add {address}/{length}")
    network.ip(network.world, f"route add 10.77.16.0/20 via {NODE[4]}")
    network.ip(network.world, f"route add fd42:7:77::/48 via {NODE[6]}")
    network.sniff(network.world, "down0", "world")


def open_services(network: Network) -> None:
    """Everybody answers: each guest and the world at 8080, 80 and 53, the node at 22 and 123, and the relays."""
    for guest in network.guests.values():
        for address in ("0.0.0.0", "::"):
            network.listen(guest.namespace, guest.name, address, PORT)
        network.listen(network.node, f"relay of {guest.name}", GATEWAY[4], guest.member["relay_port"])
    for address in ("0.0.0.0", "::"):
        for port in (22, 123):
            network.listen(network.node, "node", address, port)
    for address in WORLD:
        for port in (53, 80, PORT):
            network.listen(network.world, "world", address, port)


@dataclass
class Probe:
    """One question; `reach` is the answer that is expected."""

    source: str
    target: str
    address: str
    port: int
    kind: str
    reach: bool
    origin: str | None = None
    """The source address, where it is not the only one."""
    answered: bool = False
    seen: str = ""
    """Where it arrived, when it should not."""

    @property
    def family(self) -> int:
        return 6 if ":" in self.address else 4

    @property
    def held(self) -> bool:
        return self.answered == self.reach and not (self.seen and not self.reach)

    def __str__(self) -> str:
        what = self.kind if self.kind == "ping" else f"{self.kind} {self.port}"
        found = "reached" if self.answered else f"ARRIVED at {self.seen}" if self.seen else "stopped"
        return (
            f"{self.source:<5} -> {self.target:<24} IPv{self.family} {what:<9} "
            f"{'reached' if self.reach else 'stopped':<8} {found:<8} {'held' if self.held else 'NOT HELD'}"
        )


def probes() -> list[Probe]:
    return [*_between_guests(), *_to_the_node(), *_to_the_world(), *_from_outside()]


def _between_guests() -> Iterable[Probe]:
    for source in CLUSTERS:
        for target in CLUSTERS:
            for family in (4, 6):
                if source != target:
                    same = CLUSTERS[source][0] == CLUSTERS[target][0]
                    for kind in ("tcp", "udp", "ping"):
                        yield Probe(source, target, member(target)[f"ipv{family}"], PORT, kind, same)


def _to_the_node() -> Iterable[Probe]:
    for source in CLUSTERS:
        for other in CLUSTERS:
            own = "its own relay" if source == other else "another's relay"
            yield Probe(source, own, GATEWAY[4], member(other)["relay_port"], "tcp", source == other)
        yield Probe(source, "its own relay", GATEWAY[4], member(source)["relay_port"], "udp", False)
        for family in (4, 6):
            for name, address in (("node", NODE[family]), ("gateway", GATEWAY[family])):
                yield Probe(source, name, address, 22, "tcp", False)
                yield Probe(source, name, address, 123, "udp", False)
                yield Probe(source, name, address, 0, "ping", False)


def _to_the_world() -> Iterable[Probe]:
    for source, (cluster, policy) in CLUSTERS.items():
        for family in (4, 6):
            public, listed = policy == "internet", policy is LISTED
            yield Probe(source, "internet", PUBLIC[family], PORT, "tcp", public)
            yield Probe(source, "internet", PUBLIC[family], 53, "udp", public or (listed and family == 4))
            yield Probe(source, "internet", PUBLIC[family], 0, "ping", public)
            yield Probe(source, "a listed host, its port", LAN[family], PORT, "tcp", listed)
            yield Probe(source, "a listed host, its port", LAN[family], PORT, "udp", False)
            yield Probe(source, "a listed host, another", LAN[family], 80, "tcp", False)
            yield Probe(source, "metadata of a cloud", METADATA[family], 80, "tcp", False)
            yield Probe(source, "acme.web elsewhere", REMOTE[family], PORT, "tcp", cluster == "acme.web")
            yield Probe(source, "platform elsewhere", ELSEWHERE[family], PORT, "tcp", False)
        yield Probe(source, "metadata (public)", WIRESERVER, 80, "tcp", False)


def _from_outside() -> Iterable[Probe]:
    for target, (cluster, _) in CLUSTERS.items():
        for family in (4, 6):
            address = member(target)[f"ipv{family}"]
            yield Probe("node", target, address, PORT, "tcp", True)
            yield Probe("slot", target, address, PORT, "tcp", False)
            yield Probe("world", target, address, PORT, "tcp", cluster == "acme.web", REMOTE[family])
            for origin in (ELSEWHERE, PUBLIC, LAN):
                yield Probe("world", target, address, PORT, "tcp", False, origin[family])


def ask(network: Network, probe: Probe) -> None:
    """Put the question, wait for the answer or for silence, and write down both."""
    mark = token()
    marks = [mark]
    if probe.source == "slot":
        _ask_as_a_slot(network, probe, mark)
    else:
        guest = network.guests.get(probe.source)
        with inside(guest.namespace if guest else network.node if probe.source == "node" else network.world):
            asker = _socket(probe)
        with asker, suppress(OSError):
            if probe.kind == "tcp":
                port = source_port()
                asker.bind((probe.origin or ("::" if probe.family == 6 else "0.0.0.0"), port))
                marks.append(called(port))
            _exchange(asker, probe, mark)
    places = {place for one in marks for place in network.seen.of(one)}
    ours = {f"{probe.source} (wire)"}  # the answer comes by there
    probe.seen = ", ".join(sorted(places - ours))


def _socket(probe: Probe) -> socket.socket:
    family = socket.AF_INET6 if probe.family == 6 else socket.AF_INET
    if probe.kind == "ping":
        return socket.socket(family, socket.SOCK_RAW, 58 if probe.family == 6 else 1)
    return socket.socket(family, socket.SOCK_STREAM if probe.kind == "tcp" else socket.SOCK_DGRAM)


def _exchange(asker: socket.socket, probe: Probe, mark: bytes) -> None:
    asker.settimeout(ANSWER_SECONDS if probe.reach and probe.kind == "tcp" else SILENCE_SECONDS)
    scope = (0, socket.if_nametoindex("eth0")) if probe.address.startswith("fe80") else ()
    message = mark
    if probe.kind == "ping":
        # the kernel fills in the checksum of ICMPv6
        message = frames.icmp(128 if probe.family == 6 else 8, 0, b"\0\1\0\1" + mark)
    asker.connect((probe.address, probe.port, *scope))
    # a network may lose a datagram; TCP sends again by itself
    for _ in range(int(ANSWER_SECONDS) if probe.reach and probe.kind != "tcp" else 1):
        asker.send(message)
        with suppress(TimeoutError):
            while mark not in asker.recv(4096):
                pass
            probe.answered = True
            return


SLOT = (
    "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[4]));"
    "s.send(sys.argv[3].encode()); print(s.recv(99).decode())"
)


def _ask_as_a_slot(network: Network, probe: Probe, mark: bytes) -> None:
    """From the node, but as an ordinary user."""
    words = [SLOT, probe.address, str(probe.port), mark.decode(), str(SILENCE_SECONDS)]
    with inside(network.node):
        done = subprocess.run(
            ["/usr/bin/python3", "-c", *words], user=USER, capture_output=True, text=True, check=False
        )
    probe.answered = mark.decode() in done.stdout


def ask_all(network: Network, asked: Sequence[Probe]) -> list[Probe]:
    """Puts all questions, many at once; those that did not hold."""
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda probe: ask(network, probe), asked))
    return [probe for probe in asked if not probe.held]


def table(asked: Sequence[Probe]) -> str:
    """Rows are sources, columns are targets; a cell says which questions were answered, as a document shows it."""
    columns = list(dict.fromkeys([*CLUSTERS, *(probe.target for probe in asked)]))
    rows = list(dict.fromkeys(probe.source for probe in asked))
    lines = [f"| from \\ to | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [[one for one in asked if (one.source, one.target) == (row, column)] for column in columns]
        lines.append(f"| **{row}** | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _cell(asked: Sequence[Probe]) -> str:
    if not asked:
        return ""
    reached = [one for one in asked if one.answered]
    found = sorted({f"{one.kind}{one.family}" for one in reached})
    leaks = sum(1 for one in asked if not one.held)
    said = " ".join(found) if len(reached) < len(asked) else "all"
    return f"{said if found else '-'} ({len(reached)}/{len(asked)})" + (f" **{leaks} NOT HELD**" if leaks else "")


def isolate(network: Network, home: Path) -> None:
    """Declare every guest's link with the module's own code, and make the node serve them."""
    from ansible.plugins.loader import init_plugin_loader
    from ansible.utils.collection_loader import AnsibleCollectionConfig

    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([str(REPOSITORY / "collections")])
    from ansible_collections.clachan.platform.plugins.modules.isolation import OPTIONS, work

    defaults = {name: option.get("default") for name, option in OPTIONS.items()}
    with inside(network.node):
        for name in CLUSTERS:
            work(defaults | member(name) | {"home": str(home), "reserved": RESERVED}, False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="a document to write the matrix into")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as home, Network("matrix") as network:
        build_world(network)
        isolate(network, Path(home))
        network.plug(*guests(network))
        open_services(network)
        asked = probes()
        failed = ask_all(network, asked)
    print("\n".join(map(str, asked)))
    print(f"\n{table(asked)}\n{len(asked)} probes, {len(failed)} not held")
    if options.output:
        _write(options.output, f"{table(asked)}\n{len(asked)} probes, {len(failed)} leaks or losses.\n")
    return 1 if failed else 0


def _write(document: Path, text: str) -> None:
    old = document.read_text()
    pattern = re.compile(f"({re.escape(MARKERS[0])}).*?({re.escape(MARKERS[1])})", re.DOTALL)
    if not pattern.search(old):
        raise LabError(f"document {document}: no markers of the matrix, expected them")
    document.write_text(pattern.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", old))


if __name__ == "__main__":
    sys.exit(main())
