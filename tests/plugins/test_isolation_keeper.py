"""What the unit clachan-isolation does when somebody takes rules and links away; and what a probe says meanwhile."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from testbed.host import until
from testbed.isolation_lab import Network, inside, obstacle
from testbed.isolation_matrix import build_world, guests, isolate, member

ROOT = Path(__file__).resolve().parents[2]
KEEPER = "ansible_collections.clachan.platform.plugins.module_utils.isolation_keeper"
PROBE = ROOT / "roles/probe/files/probe.py"
PORT = 4444
CANARY = 20001
LONGEST_GAP = 0.5
"""Seconds; 0.04 were seen."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(obstacle() is not None, reason=str(obstacle())),
]


@dataclass
class Lab:
    network: Network
    home: Path
    runtime: Path

    @contextmanager
    def keeper(self) -> Iterator[subprocess.Popen[str]]:
        """The program of the unit; gives it when it has compared for the first time."""
        kept = self.runtime / "kept"
        kept.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "collections"), "RUNTIME_DIRECTORY": str(self.runtime)}
        with inside(self.network.node):
            process = subprocess.Popen(
                [sys.executable, "-m", KEEPER, str(self.home)], env=environment, stdout=subprocess.PIPE, text=True
            )
        with process:
            try:
                assert until(kept.exists, 20)
                yield process
            finally:
                process.terminate()

    def rules(self) -> str:
        """As the records have them, without what the rules count themselves."""
        tables = (["inet", "clachan"], ["arp", "clachan"])
        listed = "".join(self.network.nft("-s", "list", "table", *table) for table in tables)
        return re.sub(r"\tset (flows|calls|visits) \{.*?\n\t\}\n", "", listed, flags=re.DOTALL)

    def probe(self, guest: str, expected: str, **targets: Any) -> tuple[int, str]:
        file = self.runtime / "probe.json"
        file.write_text(json.dumps(targets))
        with inside(self.network.guests[guest].namespace):
            done = subprocess.run(
                ["/usr/bin/python3", "-I", PROBE, file, expected], capture_output=True, text=True, check=False
            )
        assert done.stderr == ""
        return done.returncode, done.stdout.strip()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Five guests on a node: a1 and a2 are of one cluster."""
    folder = tmp_path_factory.mktemp("keeper")
    with Network("kpr") as network:
        build_world(network)
        isolate(network, folder / "home")
        network.plug(*guests(network))
        yield Lab(network, folder / "home", folder)


@contextmanager
def flood(network: Network, source: str, target: str) -> Iterator[list[float]]:
    """Datagrams from one guest to another, 2,000 a second; gives when those that arrived were sent."""
    arrived: list[float] = []
    ending = threading.Event()
    with inside(network.guests[target].namespace):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("0.0.0.0", PORT))
    with inside(network.guests[source].namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect((member(target)["ipv4"], PORT))
    receiver.settimeout(0.2)

    def send() -> None:
        while not ending.is_set():
            with suppress(OSError):
                sender.send(str(time.monotonic()).encode())
            time.sleep(0.0005)

    def receive() -> None:
        while not ending.is_set():
            with suppress(TimeoutError):
                arrived.append(float(receiver.recv(99)))

    threads = [threading.Thread(target=work) for work in (send, receive)]
    with sender, receiver:
        for one in threads:
            one.start()
        try:
            yield arrived
        finally:
            ending.set()
            for one in threads:
                one.join()


@pytest.mark.parametrize(
    "harm",
    [
        "flush ruleset",
        "delete table inet clachan",
        "flush chain inet clachan between",
        "insert rule inet clachan forward accept",
        'add element inet clachan peers { "cv2" . "cv0" }',
        'delete element inet clachan peers { "cv0" . "cv1" }',
    ],
)
def test_what_somebody_does_by_hand_is_mended_at_once(lab: Lab, harm: str) -> None:
    before = lab.rules()
    with lab.keeper() as keeper, flood(lab.network, "b1", "a1") as arrived:
        time.sleep(0.3)
        assert arrived == []
        began = time.monotonic()
        lab.network.nft(harm)
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "mended: table inet clachan\n"
        time.sleep(0.5)
        gap = max(arrived, default=began) - began
        print(f"{harm}: {len(arrived)} datagrams passed in {gap * 1000:.0f} ms")
        assert gap < LONGEST_GAP
    assert lab.rules() == before


def test_without_it_the_flood_goes_on(lab: Lab) -> None:
    """So that the gap above is one that it closed."""
    with flood(lab.network, "b1", "a1") as arrived:
        lab.network.nft("flush", "ruleset")
        began = time.monotonic()
        assert until(lambda: bool(arrived) and arrived[-1] - began > LONGEST_GAP, 10)
    isolate(lab.network, lab.home)


def test_a_link_that_somebody_deletes_is_made_again(lab: Lab) -> None:
    with lab.keeper() as keeper:
        lab.network.ip(lab.network.node, "link delete cv4")
        assert keeper.stdout is not None
        assert "tap cv4, " in keeper.stdout.readline()
        assert "cv4" in lab.network.links()
        assert "10.77.16.20 dev cv4" in lab.network.ip(lab.network.node, "route show")


def test_at_a_boot_it_makes_all_before_it_is_ready(lab: Lab) -> None:
    """systemd starts libvirtd after it, which needs the links."""
    before = lab.rules()
    lab.network.nft("flush", "ruleset")
    with lab.keeper():
        assert lab.rules() == before


def test_what_the_module_changes_is_not_undone(lab: Lab, run_module: Callable[..., dict[str, Any]]) -> None:
    given = {"home": str(lab.home), "tap": "cv3"}
    with lab.keeper() as keeper, inside(lab.network.node):
        assert run_module("isolation", given | {"state": "absent"})["changed"] is True
        time.sleep(0.5)
        assert "cv3" not in lab.network.links()
        assert run_module("isolation", member("z1") | {"home": str(lab.home)})["changed"] is True
        time.sleep(0.5)
        keeper.terminate()
        assert keeper.stdout is not None
        assert keeper.stdout.read() == "", "nothing was to be mended"


def test_it_rests_while_guests_are_busy(lab: Lab) -> None:
    """What the rules add to their own sets for each flow is no sign of a change."""
    with lab.keeper() as keeper, flood(lab.network, "a2", "a1") as arrived:
        assert until(lambda: len(arrived) > 100, 10)
        stat = Path(f"/proc/{keeper.pid}/stat")
        before = stat.read_text().rpartition(")")[2].split()[11:15]
        time.sleep(1)
        assert stat.read_text().rpartition(")")[2].split()[11:15] == before


def test_it_ends_when_it_cannot_mend(lab: Lab) -> None:
    record = lab.home / "node/isolation/cv4.json"
    text = record.read_text()
    with lab.keeper() as keeper:
        record.write_text("{}")
        lab.network.nft("flush", "chain", "inet", "clachan", "between")
        assert keeper.wait(10) == 1
    record.write_text(text)
    isolate(lab.network, lab.home)


def others_of(name: str) -> list[dict[str, Any]]:
    return [{"name": name, "address": member(name)[f"ipv{family}"]} for family in (4, 6)]


def test_a_probe_says_who_does_not_answer_and_who_should_not(lab: Lab) -> None:
    network = lab.network
    both, own = others_of("a2"), others_of("b1")
    assert lab.probe("a1", "reached", reached=both) == (0, "2 of 2 answer"), "nobody serves the port: refusals"
    assert lab.probe("a1", "silent", silent=own) == (0, "2 of 2 are silent")
    network.nft("delete", "element", "inet", "clachan", "peers", '{ "cv1" . "cv0" }')
    assert lab.probe("a1", "reached", reached=both) == (
        1,
        "a2 is not reached by IPv4; a2 is not reached by IPv6",
    ), "the answers do not pass"
    many = [one | {"name": f"m{number}"} for number in range(4) for one in own]
    assert lab.probe("a1", "reached", reached=many)[1].endswith("m2 is not reached by IPv4; and 3 more")
    isolate(network, lab.home)
    assert lab.probe("a1", "reached", reached=both)[0] == 0


def test_the_canary_of_the_host_is_silent_as_long_as_there_are_rules(lab: Lab) -> None:
    network = lab.network
    network.listen(network.node, "canary", "169.254.1.1", CANARY)
    silent = [{"name": "the host", "address": address, "port": CANARY} for address in ("169.254.1.1", "fe80::1")]
    assert lab.probe("a1", "silent", silent=silent) == (0, "2 of 2 are silent")
    network.nft("add", "element", "inet", "clachan", "relay", f'{{ "cv0" . {CANARY} }}')
    assert lab.probe("a1", "silent", silent=silent) == (1, "the host is reached by IPv4, expected silence")
    network.nft("flush", "ruleset")
    assert lab.probe("a1", "silent", silent=silent) == (
        1,
        "the host is reached by IPv4, expected silence; the host is reached by IPv6, expected silence",
    )
    isolate(network, lab.home)
    assert lab.probe("a1", "silent", silent=silent)[0] == 0
