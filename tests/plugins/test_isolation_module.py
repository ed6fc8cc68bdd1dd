"""The module isolation: what it changes on a node, what it refuses, and that it ends what a kill began."""

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .payloads import payloads

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from testbed.isolation_lab import USER, Network, inside, obstacle
from testbed.isolation_matrix import (
    RESERVED,
    ask_all,
    build_world,
    guests,
    member,
    open_services,
    probes,
)

Module = Callable[..., dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
RUN = (
    "import json, sys; sys.path.insert(0, sys.argv[2]);"
    "from ansible.plugins.loader import init_plugin_loader; init_plugin_loader([sys.argv[2]]);"
    "from ansible_collections.clachan.platform.plugins.modules.isolation import OPTIONS, work;"
    "given = json.loads(sys.argv[1]); params = {key: one.get('default') for key, one in OPTIONS.items()};"
    "print('begin', flush=True); print(json.dumps(work({**params, **given}, False)), flush=True)"
)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(obstacle() is not None, reason=str(obstacle())),
]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Network, dict[str, Any]]]:
    """A node without guests, and a home for them."""
    with Network("one") as network:
        yield network, {"home": str(tmp_path / "home")}


def steps(module: Module, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of: check mode, for real, for real again, check mode again; and asserts what changed."""
    results = [module("isolation", arguments, check) for check in (True, False, False, True)]
    assert [result.get("changed") for result in results] == [True, True, False, False], results
    assert results[0]["changes"] == results[1]["changes"]
    return results


def test_in_twelve_steps(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    network, home = node
    given = member("a1") | home
    records = Path(home["home"]) / "node/isolation"
    with inside(network.node):
        assert run_module("isolation", given, check=True)["changed"] is True
        assert not records.exists()
        created = steps(run_module, given)
        assert created[1]["diff"]["before"] == {"member": {}}
        assert created[1]["diff"]["after"]["member"]["policy"] == "internal"
        order = created[1]["changes"]
        wanted = ["record cv0", "table inet clachan", "setting net.ipv4.ip_forward 1", "tap cv0", "tap cv0 up"]
        assert [one for one in order if one in wanted] == wanted
        assert (records / "cv0.json").stat().st_mode & 0o777 == 0o600
        assert created[1]["open"] is False

        changed = steps(run_module, given | {"policy": "internet", "ipv4": "10.77.16.99"})
        assert changed[1]["changes"] == [
            "record cv0", "table inet clachan", "route 10.77.16.16 of cv0 delete", "route 10.77.16.99 of cv0",
        ]  # fmt: skip
        assert changed[1]["diff"]["before"]["member"]["policy"] == "internal"
        assert changed[1]["diff"]["after"]["member"]["policy"] == "internet"

        gone = steps(run_module, home | {"tap": "cv0", "state": "absent"})
        assert gone[1]["changes"] == ["tap cv0 delete", "record cv0 delete", "table inet clachan"]
        assert gone[1]["diff"]["after"]["member"] == {}
    assert network.links() == set()
    assert network.nft("-s", "list", "ruleset") == ""
    assert network.ip(network.node, "route show table main") == network.ip(network.node, "-6 route show") == ""
    assert sorted(os.listdir(records)) == [".lock"]


def test_after_a_boot_all_is_made_again(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    network, home = node
    with inside(network.node):
        for name in ("a1", "a2", "z1"):
            run_module("isolation", member(name) | home)
        rules = network.nft("-s", "list", "ruleset")
        forget_all(network)
        results = steps(run_module, home | {"state": "restored"})
    order = results[1]["changes"]
    assert order.index("table inet clachan") < order.index("setting net.ipv4.ip_forward 1") < order.index("tap cv0")
    assert order.index("table inet clachan") < order.index("setting net.ipv6.conf.all.forwarding 1")
    assert network.nft("-s", "list", "ruleset") == rules
    assert network.links() == {"cv0", "cv1", "cv3"}
    assert "10.77.16.17 dev cv1" in network.ip(network.node, "route show")


def forget_all(network: Network) -> None:
    """What a boot does: no taps, no rules, no forwarding; the disk stays."""
    for name in network.links():
        network.ip(network.node, f"link delete {name}")
    network.nft("flush", "ruleset")
    network.setting("ipv4/ip_forward", "0")
    network.setting("ipv6/conf/all/forwarding", "0")


def test_a_stray_tap_is_told_and_closed(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    network, home = node
    with inside(network.node):
        network.ip(network.node, "tuntap add dev cv7 mode tap")
        result = run_module("isolation", home | {"state": "restored"})
    assert result["strays"] == ["cv7"]
    assert network.has_table()


def test_rules_that_somebody_changed_are_mended(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    network, home = node
    with inside(network.node):
        for name in ("a1", "a2"):
            run_module("isolation", member(name) | home)
        rules = network.nft("-s", "list", "ruleset")
        for harm in (
            "flush chain inet clachan between",
            "insert rule inet clachan forward accept",
            'add element inet clachan peers { "cv0" . "cv9" }',
            'delete element inet clachan peers { "cv0" . "cv1" }',
            'add element inet clachan networks4 { "cv0" . 192.0.2.0-192.0.2.9 }',
            "add chain inet clachan mine",
            "delete table arp clachan",
            "flush ruleset",
        ):
            network.nft(harm)
            result = run_module("isolation", home | {"state": "restored"})
            assert result["changes"] == ["table inet clachan"], harm
            assert network.nft("-s", "list", "ruleset") == rules, harm
            assert run_module("isolation", home | {"state": "restored"})["changed"] is False


def test_tables_of_others_are_left_alone(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    network, home = node
    network.nft("-f", "-", text="table inet firewalld { chain c { type filter hook forward priority 10; accept; }; }\n")
    others = network.nft("-s", "list", "ruleset")
    with inside(network.node):
        run_module("isolation", member("a1") | home)
        assert "table inet firewalld" in network.nft("-s", "list", "ruleset")
        run_module("isolation", home | {"tap": "cv0", "state": "absent"})
    assert network.nft("-s", "list", "ruleset") == others


def test_the_file_of_rules_serves_an_operators_own(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    """`flush ruleset`, the operator's rules and ours in one transaction."""
    network, home = node
    with inside(network.node):
        run_module("isolation", member("a1") | home)
        rules = network.nft("-s", "list", "ruleset")
        network.nft("-f", "-", text=f'flush ruleset\ninclude "{home["home"]}/node/isolation/*.nft"\n')
        assert network.nft("-s", "list", "ruleset") == rules
        assert run_module("isolation", home | {"state": "restored"})["changed"] is False


def test_the_host_keeps_its_own_advertised_routes(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    network, home = node
    network.wire(network.node, "up0", network.world, "down0")
    network.setting("ipv6/conf/up0/accept_ra", "1")
    with inside(network.node):
        run_module("isolation", member("a1") | home)
    assert network.setting("ipv6/conf/up0/accept_ra") == "2"
    assert network.setting("ipv6/conf/cv0/accept_ra") == "0"
    assert network.setting("ipv6/conf/all/forwarding") == "1"


def test_what_stands_in_the_way_is_told(
    node: tuple[Network, dict[str, Any]], run_module: Module, tmp_path: Path
) -> None:
    network, home = node
    given = member("a1") | home

    def message(**more: Any) -> str:
        result = run_module("isolation", given | more)
        assert result["failed"] is True
        return str(result["msg"])

    with inside(network.node):
        assert message(user="no_such_user") == "user of tap cv0: no_such_user, expected a unix user of this machine"
        network.ip(network.node, "link add cv0 type bridge")
        assert message() == "interface cv0: bridge, expected a tap or none of that name"
        network.ip(network.node, "link delete cv0")
        run_module("isolation", given)
        assert message(tap="cv1") == "mac of tap cv1: 52:54:00:00:00:01, expected another than tap cv0 has"
        told = message(home=str(tmp_path / "another"))
        assert told.startswith("table inet clachan: belongs to another home (home_")
        assert message(reserved=["10.0.0.1/8"]) == "reserved network: '10.0.0.1/8', expected a network as 192.0.2.0/24"
        (Path(home["home"]) / "node/isolation/cv5.json").write_text("{}")
        path = Path(home["home"]) / "node/isolation/cv5.json"
        assert message() == f"file {path}: not to be read, expected format 1"


@pytest.mark.parametrize("key", ["tap", "cluster", "user", "mac", "ipv4", "ipv6", "policy"])
def test_texts_that_would_run_something(
    node: tuple[Network, dict[str, Any]], run_module: Module, tmp_path: Path, key: str
) -> None:
    network, home = node
    canary = tmp_path / "canary"
    texts = [*payloads(canary).values(), 'cv0" accept; }\nflush ruleset\n', "cv0\naddress flush dev lo", "10.0.0.1/8"]
    with inside(network.node):
        for text in texts:
            value: Any = [{"cidr": text}] if key == "policy" else text
            if key == "ipv6" and not text:
                continue
            assert run_module("isolation", member("a1") | home | {key: value}).get("failed") is True, text
    assert not canary.exists()
    assert not network.has_table()
    assert network.links() == set()


def test_connections_are_forgotten_with_their_member(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    """The slot's next member has the same address."""
    network, home = node
    build_world(network)
    with inside(network.node):
        for name in ("b1", "a1"):
            run_module("isolation", member(name) | home | {"reserved": RESERVED})
    wanted = [one for one in guests(network) if one.name in {"b1", "a1"}]
    network.plug(*wanted)
    open_services(network)
    asked = [
        one
        for one in probes()
        if one.reach and one.kind == "tcp" and {one.source, one.target} <= {"b1", "internet", "node"}
    ]
    assert not ask_all(network, asked)
    assert len(asked) >= 3
    assert int(network.setting("netfilter/nf_conntrack_count")) >= 3
    with inside(network.node):
        run_module("isolation", home | {"tap": "cv2", "state": "absent"})
    assert network.setting("netfilter/nf_conntrack_count") == "0"


@pytest.mark.slow
@pytest.mark.parametrize("state", ["present", "absent", "restored"])
def test_killed_at_any_point_the_next_run_ends_it(
    node: tuple[Network, dict[str, Any]], run_module: Module, state: str
) -> None:
    network, home = node
    given = member("a1") | home | {"state": state} if state == "present" else home | {"state": state, "tap": "cv0"}
    before = member("a1") if state != "present" else {"tap": "cv0", "state": "absent"}
    seconds, ended, stages = 0.0, False, set()
    with inside(network.node):
        run_module("isolation", member("a2") | home)
        while not ended:
            run_module("isolation", before | home)
            if state == "restored":
                forget_all(network)
            ended = _ended_within(seconds, given)
            stages.add(("cv0" in network.links(), network.has_table()))
            assert network.has_table() or not network.links()
            assert network.has_table() or network.setting("ipv4/ip_forward") == "0"
            assert run_module("isolation", given).get("failed") is None
            assert run_module("isolation", given)["changed"] is False
            assert ("cv0" in network.links()) is (state != "absent")
            seconds += 0.006
        partial = Path(home["home"]) / "node/isolation/.partial"
        run_module("isolation", home | {"tap": "cv0", "state": "absent"})
        run_module("isolation", home | {"tap": "cv1", "state": "absent"})
    print(f"{state}: ended by itself within {seconds:.3f} s; tap, table: {stages}")
    assert len(stages) > 1
    assert not partial.exists()
    assert network.links() == set()
    assert network.nft("-s", "list", "ruleset") == ""


def _ended_within(seconds: float, given: dict[str, Any]) -> bool:
    """Runs the module's work in a process of its own, and kills that after some time. Whether it ended by itself."""
    command = [sys.executable, "-c", RUN, json.dumps(given), str(ROOT / "collections")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        time.sleep(seconds)
        process.kill()
        ended = process.stdout.read() != ""
    time.sleep(0.05)  # a child of it, nft or ip, may still end what it does
    return ended


def test_an_ordinary_user_is_told(run_module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = run_module("isolation", {"state": "restored"})
    assert result["msg"] == "user: 1000, expected root, who alone makes links"


def test_the_owner_alone_opens_a_tap(node: tuple[Network, dict[str, Any]], run_module: Module) -> None:
    network, home = node
    attempt = (
        "import fcntl, struct, sys; fcntl.ioctl(int(sys.argv[1]), 0x400454CA, struct.pack('16sH22x', b'cv0', 0x1002));"
        "print('open')"
    )

    def open_as(user: str) -> subprocess.CompletedProcess[str]:
        with open("/dev/net/tun", "r+b", buffering=0) as tap:
            number = tap.fileno()
            command = ["/usr/bin/python3", "-c", attempt, str(number)]
            return subprocess.run(command, user=user, pass_fds=[number], capture_output=True, text=True, check=False)

    with inside(network.node):
        run_module("isolation", member("a1") | home)
        other = next(one.pw_name for one in pwd.getpwall() if one.pw_name not in {"root", USER} and one.pw_uid)
        opened = {user: open_as(user) for user in (USER, other)}
    assert opened[USER].stdout == "open\n", opened[USER].stderr
    assert "Operation not permitted" in opened[other].stderr
