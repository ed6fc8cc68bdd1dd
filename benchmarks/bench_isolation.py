"""Isolation's cost: throughput of a filtered link, sets of 1,000 clusters replaced, one member added.

Links are veth pairs named as taps: through a real tap a Python program would carry each frame, and its speed would be
all that is measured. Three namespaces: the node between two guests; TCP from one to the other, with the tables and
without, in turn; without, the kernel tracks no connections either. The peer of the sets is a chain of rules for each
cluster, the way without sets, in the same nft. Times are the best, throughput is the median of several rounds.
"""

import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NoReturn

from measured import ROOT, header, row

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "collections"))
from ansible.plugins.loader import init_plugin_loader
from testbed.isolation_lab import Network, inside

init_plugin_loader([str(ROOT / "collections")])
from ansible_collections.clachan.platform.plugins.module_utils import isolation, isolation_rules  # noqa: E402
from ansible_collections.clachan.platform.plugins.module_utils.isolation_table import Table  # noqa: E402

CLUSTERS, MEMBERS = 1000, 3
SECONDS, ROUNDS = 1.0, 15
HOME = "/var/lib/clachan"


def member(index: int, cluster: int, mark: int = 0) -> dict[str, object]:
    policies = ("internal", "internet", [{"cidr": "192.0.2.0/24", "protocol": "tcp", "port": 443}], "internal")
    return isolation.member(
        {
            "tap": f"cv{index}",
            "cluster": f"acme.c{cluster}",
            "user": "nobody",
            "mac": f"52:54:{mark:02x}:00:{index >> 8:02x}:{index & 255:02x}",
            "ipv4": f"10.77.{index >> 8}.{index & 255}",
            "ipv6": f"fd42:7:77:{mark + 1:x}::{index + 16:x}",
            "relay_port": 20000 + index,
            "policy": policies[cluster % 4],
            "remote": [],
        }
    )


def members(mark: int = 0) -> list[dict[str, object]]:
    return [member(index, index // MEMBERS, mark) for index in range(CLUSTERS * MEMBERS)]


def table(folder: pathlib.Path) -> Table:
    return Table(HOME, str(folder / "rules.json"))


def apply(text: str) -> float:
    """Seconds of the transaction, with the start of nft."""
    started = time.perf_counter()
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    return time.perf_counter() - started


def by_chains(count: int) -> str:
    """The same clusters, without sets: a chain for each, a rule for each member, in the way of generated rules."""
    lines = ["table inet peer { }", "delete table inet peer", "table inet peer {"]
    lines += [f"  chain c{cluster} {{ }}" for cluster in range(count)]
    for cluster in range(count):
        own = [member(index, cluster) for index in range(cluster * MEMBERS, (cluster + 1) * MEMBERS)]
        lines.append(f"  chain c{cluster} {{")
        for one in own:
            lines.append(f'    oifname "{one["tap"]}" ip daddr {one["ipv4"]} accept')
            lines.append(f'    oifname "{one["tap"]}" ip6 daddr {one["ipv6"]} accept')
        lines.append("    drop\n  }")
    lines.append("  chain forward { type filter hook forward priority -10; policy accept;")
    for index in range(count * MEMBERS):
        one = member(index, index // MEMBERS)
        lines.append(f'    iifname "{one["tap"]}" ether saddr {one["mac"]} jump c{index // MEMBERS}')
    return "\n".join([*lines, "  }", "}"]) + "\n"


def sets(network: Network, folder: pathlib.Path) -> None:
    with inside(network.node):
        old = isolation.elements(members(), isolation.RESERVED)
        new = isolation.elements(members(mark=1), isolation.RESERVED)
        started = time.perf_counter()
        whole = isolation_rules.whole(HOME, new)
        made = time.perf_counter() - started
        apply(isolation_rules.whole(HOME, old))
        replaced = min(apply(isolation_rules.whole(HOME, wanted)) for wanted in (new, old) * 3)
        changed = min(apply(isolation_rules.change(*pair)) for pair in ((old, new), (new, old)) * 3)
        peer = min(apply(by_chains(CLUSTERS)) for _ in range(6))
        row(
            "sets of 1,000 clusters replaced", f"{replaced:.3f} s", f"{peer:.3f} s", f"{replaced / peer:.2f}", "< 0.5 s"
        )
        row("  each element by itself instead", f"{changed:.3f} s")
        row("  their text made", f"{made:.3f} s", "", "", f"{len(whole) / 2**20:.1f} MiB")
        more = isolation.elements([*members(), member(CLUSTERS * MEMBERS, 2)], isolation.RESERVED)
        added = []
        for _ in range(ROUNDS):
            added.append(apply(isolation_rules.change(old, more)))
            apply(isolation_rules.change(more, old))
        row("  one member added", f"{1000 * min(added):.1f} ms", "", "", "< 20 ms")
        ours = table(folder)
        started = time.perf_counter()
        live = ours.read()
        read = time.perf_counter() - started
        assert live is not None
        row("  read and parsed, to compare", f"{read:.3f} s")
        for family in isolation_rules.FAMILIES:
            subprocess.run(["nft", "delete", "table", family, isolation_rules.NAME], check=True)
        subprocess.run(["nft", "delete", "table", "inet", "peer"], check=True)


def links(network: Network) -> list[dict[str, object]]:
    """Two guests behind veth pairs whose ends at the node are named cv0 and cv1."""
    ours = [member(0, 0), member(1, 0)]
    for index, one in enumerate(ours):
        guest = f"{network.name}-g{index}"
        subprocess.run(["ip", "netns", "add", guest], check=True)
        network.owned.append(guest)
        network.wire(network.node, str(one["tap"]), guest, "eth0")
        for words in (f"link set eth0 address {one['mac']}", f"address add {one['ipv4']}/32 dev eth0",
                      "route add default via 169.254.1.1 dev eth0 onlink"):  # fmt: skip
            network.ip(guest, words)
        network.ip(network.node, f"address add 169.254.1.1/32 dev {one['tap']} scope link")
        network.ip(network.node, f"route add {one['ipv4']} dev {one['tap']}")
    with inside(network.node):
        pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    return ours


def throughput(network: Network, target: str) -> float:
    """Gbit/s of one TCP connection from the first guest to the second; each end is a process on a processor of its own,
    as far as there are some."""
    with inside(f"{network.name}-g1"):
        listener = socket.create_server((target, 5001))
    with inside(f"{network.name}-g0"):
        sender = socket.create_connection((target, 5001), 10)
    receiver, _ = listener.accept()
    listener.close()
    processors = os.sched_getaffinity(0)
    child = os.fork()
    if child == 0:
        receiver.close()
        _send(sender, max(processors))
    sender.close()
    os.sched_setaffinity(0, {min(processors)})
    taken, buffer, started = 0, bytearray(1 << 20), time.perf_counter()
    while count := receiver.recv_into(buffer):
        taken += count
    seconds = time.perf_counter() - started
    os.sched_setaffinity(0, processors)
    os.waitpid(child, 0)
    receiver.close()
    return taken * 8 / seconds / 1e9


def _send(sender: socket.socket, processor: int) -> NoReturn:
    """The other end; never comes back."""
    try:
        os.sched_setaffinity(0, {processor})
        data, end = bytes(1 << 20), time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            sender.sendall(data)
    finally:
        os._exit(0)


def link(network: Network) -> None:
    ours = links(network)
    crowd = isolation.elements([*ours, *members()[6:]], isolation.RESERVED)
    measured: dict[bool, list[float]] = {True: [], False: []}
    for number in range(ROUNDS):
        # who is first changes, as the machine's other work does
        for is_filtered in (number % 2 == 0, number % 2 == 1):
            with inside(network.node):
                apply(isolation_rules.whole(HOME, crowd) if is_filtered else isolation_rules.removal())
            measured[is_filtered].append(throughput(network, str(ours[1]["ipv4"])))
    filtered, bare = (statistics.median(measured[which]) for which in (True, False))
    ratio = statistics.median(one / other for one, other in zip(measured[True], measured[False], strict=True))
    row(
        "two links, 1,000 clusters beside them",
        f"{filtered:.1f} Gbit/s",
        f"{bare:.1f} Gbit/s",
        f"{ratio:.2f}",
        f">= 0.95 {'ok' if ratio >= 0.95 else 'MISSED'}",
    )


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("bench_isolation: needs root, for network namespaces")
    header("without sets")
    with tempfile.TemporaryDirectory() as folder, Network("bench") as network:
        sets(network, pathlib.Path(folder))
        link(network)


if __name__ == "__main__":
    main()
