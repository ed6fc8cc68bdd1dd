"""Module node_doctor on a node with a real libvirt, real links and rules: all well, and then each thing that is not."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from . import vm_node
from .vm_node import Node

from testbed.host import until  # isort: skip - found by what vm_node puts on the path
from testbed.libvirtd import PYTHON, python_path  # isort: skip

pytestmark = [pytest.mark.slow, pytest.mark.root]

node = vm_node.node
Finding = dict[str, Any]


@dataclass
class Machine:
    """An instance in a slot, and what the role vm makes for it."""

    path: str
    index: int
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def mac(self) -> str:
        return f"52:54:00:00:09:{self.index:02x}"

    def wanted(self, state: str = "started") -> dict[str, Any]:
        return {"path": self.path, "id": self.id, "index": self.index, "state": state}


@dataclass
class Home:
    """A Clachan home with a slot for each of two users, whom no other test has."""

    node: Node
    path: Path
    users: list[str]

    def __post_init__(self) -> None:
        (self.path / "node").mkdir(parents=True)
        slots = {"slots": len(self.users), "users": self.users, "slots_directory": str(self.path / "slots")}
        (self.path / "node/config.json").write_text(json.dumps({"mode": "root"} | slots))
        for index in range(len(self.users)):
            (self.slot(index) / "var").mkdir(parents=True)
            (self.slot(index) / "log").mkdir()

    def slot(self, index: int) -> Path:
        return self.path / "slots" / f"s{index:03d}"

    def disk(self, machine: Machine) -> Path:
        return self.slot(machine.index) / "var/system-0123456789abcdef.qcow2"

    def data(self, machine: Machine) -> Path:
        return self.path / "volumes" / machine.path / "data.raw"

    def file(self, path: Path, user: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.node.disk(path)
        shutil.chown(path, user)
        return path

    def link(self, machine: Machine) -> dict[str, Any]:
        return {
            "home": str(self.path),
            "tap": f"cv{machine.index}",
            "cluster": ".".join(machine.path.split(".")[:2]),
            "user": self.users[machine.index],
            "mac": machine.mac,
            "ipv4": f"10.77.16.{16 + machine.index}",
            "ipv6": f"fd42:7:77:1::{16 + machine.index:x}",
            "relay_port": 20000 + 20 * machine.index,
        }

    def vm(self, machine: Machine) -> dict[str, Any]:
        slot = self.slot(machine.index)
        return {
            "name": machine.path,
            "uuid": machine.id,
            "user": self.users[machine.index],
            "accelerator": "qemu",
            "memory": {"mib": 32},
            "disks": [{"path": str(path), "format": "raw"} for path in (self.disk(machine), self.data(machine))],
            "interfaces": [{"device": f"cv{machine.index}", "mac": machine.mac}],
            "console_socket": str(slot / "log/console.sock"),
            "console_log": str(slot / "log/console.log"),
            "stop_seconds": 0,
        }

    def make(self, machine: Machine) -> Machine:
        for path in (self.disk(machine), self.data(machine)):
            if not path.exists():
                self.file(path, self.users[machine.index])
        self.node.ok("isolation", self.link(machine))
        self.node.ok("vm", self.vm(machine))
        return machine

    def remove(self, machine: Machine) -> None:
        self.node.ok("vm", self.vm(machine) | {"state": "absent"})
        self.node.ok("isolation", {"home": str(self.path), "tap": f"cv{machine.index}", "state": "absent"})
        self.disk(machine).unlink(missing_ok=True)

    def asked(self, *instances: dict[str, Any]) -> dict[str, Any]:
        return {"home": str(self.path), "instances": list(instances)}

    def look(self, *instances: dict[str, Any]) -> list[Finding]:
        found: list[Finding] = self.node.ok("node_doctor", self.asked(*instances))["findings"]
        return found

    def wrong(self, *instances: dict[str, Any]) -> list[str]:
        """What is wrong, each as one line."""
        found = [one for one in self.look(*instances) if not one["ok"]]
        return ["{kind} {name}: {found}, expected {expected}".format(**one) for one in found]


@pytest.fixture(scope="module")
def users() -> Iterator[list[str]]:
    names = [f"cld{os.getpid()}{letter}" for letter in "ab"]
    command = ["useradd", "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin"]
    for name in names:
        subprocess.run([*command, name], check=True, capture_output=True)
    yield names
    for name in names:
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.fixture
def home(users: list[str], node: Node) -> Iterator[Home]:
    if shutil.which("nft") is None:
        pytest.skip("this machine cannot: it needs nftables")
    made = Home(node, node.folder / f"home{next(node.numbers)}", users)
    yield made
    assert made.wrong() == []
    shutil.rmtree(made.path)


@pytest.fixture
def machine(home: Home) -> Iterator[Machine]:
    made = home.make(Machine("home.well.m1", 0))
    yield made
    home.remove(made)


def test_all_is_well_and_nothing_is_left(home: Home) -> None:
    assert [(one["kind"], one["name"], one["ok"], one["found"].partition(":")[0]) for one in home.look()] == [
        (kind, "", True, "none") for kind in ("domain", "volume", "image", "tap", "rule", "user")
    ]
    machine = home.make(Machine("home.well.m1", 0))
    assert [(one["kind"], one["name"], one["found"]) for one in home.look(machine.wanted())] == [
        ("domain", "home.well.m1", "started"),
        ("volume", str(home.disk(machine)), "of home.well.m1"),
        ("volume", str(home.data(machine)), "of home.well.m1"),
        ("image", "", "none: no machine is made from one"),
        ("tap", "cv0", "of cluster home.well"),
        ("rule", "table inet clachan", "as declared, for 1 members"),
        ("user", home.users[0], "1 processes of home.well.m1"),
    ]
    assert home.wrong(machine.wanted()) == []
    assert home.wrong(machine.wanted("absent")) == []
    assert home.wrong(machine.wanted("stopped")) == ["domain home.well.m1: started, expected stopped"]
    looks = [home.node.ok("node_doctor", home.asked(machine.wanted()), check) for check in (True, False)]
    assert looks[0] == looks[1]
    assert looks[0]["changed"] is False
    home.remove(machine)
    kept = next(one for one in home.look() if one["kind"] == "volume")
    assert kept == {
        "kind": "volume",
        "name": str(home.data(machine)),
        "ok": True,
        "found": "data kept: instance home.well.m1 is no more",
        "expected": "",
    }


def test_a_machine_of_which_nothing_is_there(home: Home) -> None:
    wanted = Machine("home.lost.m1", 1).wanted()
    assert home.wrong(wanted) == [
        "domain home.lost.m1: no domain, expected a domain that is started",
        "tap cv1: no link, expected a link of home.lost.m1",
    ]
    assert home.wrong(wanted | {"machine": False}) == home.wrong(wanted | {"state": "waiting"}) == []


def test_a_machine_that_no_instance_is(home: Home, machine: Machine) -> None:
    [process] = home.node.libvirtd.guests(machine.id)
    assert home.wrong() == [
        f"domain home.well.m1: started, {machine.id}, expected none: no instance has this name or id",
        f"volume {home.disk(machine)}: a file in a free slot, expected none",
        "tap cv0: a member of cluster home.well, expected none: no machine is in this slot",
        f"user {home.users[0]}: process {process.pid} qemu-system-x86, expected none: its slot is free",
    ]


def test_domains_by_hand(home: Home, machine: Machine) -> None:
    """One that somebody defined as if it were the platform's, and one that is the operator's own."""
    virsh = home.node.libvirtd.virsh
    text = virsh("dumpxml", "--inactive", machine.path)
    other = str(uuid.uuid4())
    definition = home.path / "domain.xml"
    definition.write_text(text.replace(machine.id, other).replace("<name>home.well.m1", "<name>home.stray"))
    virsh("define", str(definition))
    definition.write_text(
        "<domain type='qemu'><name>win10</name><memory>32768</memory><os><type>hvm</type></os></domain>"
    )
    virsh("define", str(definition))
    assert home.wrong(machine.wanted()) == [
        f"domain home.stray: stopped, {other}, expected none: no instance has this name or id"
    ]
    assert {
        "kind": "domain",
        "name": "win10",
        "ok": True,
        "found": "stopped, not of this platform",
        "expected": "",
    } in (home.look(machine.wanted()))
    virsh("undefine", "home.stray")
    virsh("undefine", "win10")
    renamed = machine.wanted() | {"id": other}
    assert home.wrong(renamed) == [f"domain home.well.m1: id {machine.id}, expected id {other}"]
    moved = machine.wanted() | {"index": 1}
    assert f"domain home.well.m1: user {home.users[0]}, expected user {home.users[1]}" in home.wrong(moved)
    assert "domain home.well.m1: link cv0, expected link cv1" in home.wrong(moved)
    virsh("destroy", machine.path)
    assert home.wrong(machine.wanted()) == ["domain home.well.m1: stopped, expected started"]


def test_links_and_rules_by_hand(home: Home, machine: Machine) -> None:
    execute = home.node.libvirtd.execute
    execute(["ip", "tuntap", "add", "cv7", "mode", "tap"])
    assert home.wrong(machine.wanted()) == ["tap cv7: a tap, expected none: no member is at it"]
    execute(["ip", "link", "delete", "cv7"])

    execute(["ip", "route", "delete", "10.77.16.16", "dev", "cv0"])
    assert home.wrong(machine.wanted()) == [
        "tap cv0: another link than declared, expected this step: route 10.77.16.16 of cv0"
    ]
    element = f"cv0 . {machine.mac} . 10.77.16.16"
    execute(["nft", "delete element inet clachan source4 { " + element + " }"])
    execute(["nft", "add element inet clachan internet { cv0 }"])
    assert home.wrong(machine.wanted())[1:] == [
        "rule set internet: cv0, expected no such element",
        f"rule set source4: an element is not there, expected {element.replace(' . ', ' ')}",
    ]
    home.node.ok("isolation", {"home": str(home.path), "state": "restored"})
    assert home.wrong(machine.wanted()) == []

    execute(["nft", "flush chain inet clachan between"])
    assert home.wrong(machine.wanted()) == [
        "rule table inet clachan: other rules than were written, expected the rules that were written"
    ]
    execute(["nft", "flush", "ruleset"])
    execute(["sysctl", "-q", "net.ipv4.ip_forward=0"])
    # all interfaces forget it with the machine
    assert home.wrong(machine.wanted()) == [
        "tap cv0: another link than declared, expected this step: setting net.ipv4.conf.cv0.forwarding 1",
        "rule machine: not as declared, expected this step: setting net.ipv4.ip_forward 1",
        "rule table inet clachan: not there, expected the rules that were written",
    ]
    home.node.ok("isolation", {"home": str(home.path), "state": "restored"})
    assert home.wrong(machine.wanted()) == []


def test_files_that_nobody_has(home: Home, machine: Machine) -> None:
    former = home.file(home.slot(0) / "var/system-fedcba9876543210.qcow2", home.users[0])
    half = home.file(home.slot(0) / "var/.seed.iso.new", home.users[0])
    stray = home.file(home.slot(1) / "var/system-fedcba9876543210.qcow2", home.users[1])
    foreign = home.data(machine)
    shutil.chown(foreign, "root")
    cut = home.path / "images/.partial-cut"
    cut.mkdir(parents=True)
    assert home.wrong(machine.wanted()) == [
        f"volume {half}: a file half made, expected none: the next run of home.well.m1 ends it",
        f"volume {former}: a disk that no domain has, expected none, or a disk of home.well.m1",
        f"volume {stray}: a file in a free slot, expected none",
        f"volume {foreign}: user 0, expected user {home.users[0]}",
        f"image {cut}: work that was cut off, expected none: the next work on the store removes it",
    ]
    shutil.chown(foreign, home.users[0])
    for path in (former, half, stray):
        path.unlink()
    cut.rmdir()
    moved = foreign.rename(foreign.with_name("moved.raw"))
    assert home.wrong(machine.wanted()) == [f"volume {foreign}: nothing, expected the disk of domain home.well.m1"]
    moved.rename(foreign)


def test_processes_left_behind(home: Home, machine: Machine) -> None:
    """libvirt and its notes were lost while the machine ran; and something runs as the user of a free slot."""
    sleeper = subprocess.Popen(["setpriv", "--reuid", home.users[1], "--clear-groups", "sleep", "600"])
    try:
        wait_until_runs(sleeper.pid, "sleep")
        assert home.wrong(machine.wanted()) == [
            f"user {home.users[1]}: process {sleeper.pid} sleep, expected none: its slot is free"
        ]
        assert home.wrong(machine.wanted(), Machine("home.other", 1).wanted() | {"machine": False}) == []
    finally:
        sleeper.kill()
        sleeper.wait()
    [process] = home.node.libvirtd.guests(machine.id)
    home.node.libvirtd.kill()
    for path in (home.node.libvirtd.folder / "run/qemu").glob(f"{machine.path}.*"):
        path.unlink()
    home.node.libvirtd.start()
    assert home.wrong(machine.wanted()) == [
        "domain home.well.m1: stopped, expected started",
        f"user {home.users[0]}: process {process.pid} runs domain {machine.id}, which libvirt does not run, "
        "expected none",
    ]


def wait_until_runs(pid: int, name: str) -> None:
    assert until(lambda: Path(f"/proc/{pid}/comm").read_text().strip() == name, 10)


def test_what_is_wanted_is_in_the_slice(home: Home, machine: Machine) -> None:
    instance = {"path": machine.path, "id": machine.id, "slot": {"index": 0}, "state": "started"}
    records = {machine.path: {"clachan_instance": instance | {"software": "clachan.platform.vm"}}, "here": {}}
    kept = home.path / "node/slice.json"
    kept.write_text(json.dumps({"etag": "x", "clachan_inventory": {"records": records}}))
    found = home.node.ok("node_doctor", {"home": str(home.path)})["findings"]
    assert [one for one in found if not one["ok"]] == []
    kept.write_text("{}")
    refused = home.node.run("node_doctor", {"home": str(home.path)})
    assert refused["msg"] == f"file {kept}: not complete, expected the node's slice"
    (home.path / "node/config.json").rename(home.path / "node/moved.json")
    refused = home.node.run("node_doctor", {"home": str(home.path)})
    assert refused["msg"].startswith(f"file {home.path}/node/config.json: ")
    assert refused["msg"].endswith("expected the settings of a node")
    (home.path / "node/moved.json").rename(home.path / "node/config.json")


def test_the_agent_shows_it(home: Home, machine: Machine) -> None:
    """Its Python has no libvirt: the module runs itself again under the system's."""
    config = json.loads((home.path / "node/config.json").read_text())
    own = {
        "controller_url": "https://127.0.0.1:9",
        "node_name": "here",
        "supervisor_socket": str(home.path / "no.sock"),
    }
    own["platform_path"] = str(home.node.collections)
    (home.path / "node/config.json").write_text(json.dumps(config | own))
    instance = {"path": machine.path, "id": machine.id, "slot": {"index": 0}, "state": "started"}
    records = {machine.path: {"clachan_instance": instance | {"software": "clachan.platform.vm"}}}
    (home.path / "node/slice.json").write_text(json.dumps({"etag": "x", "clachan_inventory": {"records": records}}))
    command = [sys.executable, "-m", "clachan.agent", "doctor", "--home", str(home.path)]
    lines = home.node.libvirtd.execute(command, check=False).stdout.splitlines()
    assert lines[-7:] == [
        "ok    domain home.well.m1: started",
        f"ok    volume {home.disk(machine)}: of home.well.m1",
        f"ok    volume {home.data(machine)}: of home.well.m1",
        "ok    image: none: no machine is made from one",
        "ok    tap cv0: of cluster home.well",
        "ok    rule table inet clachan: as declared, for 1 members",
        f"ok    user {home.users[0]}: 1 processes of home.well.m1",
    ], lines
    home.node.libvirtd.virsh("destroy", machine.path)
    lines = home.node.libvirtd.execute(command, check=False).stdout.splitlines()
    assert "FAIL  domain home.well.m1: stopped, expected started" in lines
    (home.path / "node/slice.json").unlink()


BARE = """
import json, sys
from ansible_collections.clachan.platform.plugins.module_utils import node_doctor, node_survey
home, instances = json.loads(sys.argv[1])
seen = node_survey.survey(home, instances, None, "")
print(json.dumps([[one["kind"], one["ok"], one["found"]] for one in node_doctor.examine(seen)]))
"""


WITHOUT_NFT = 'mount --bind /dev/null "$(command -v nft)" && exec "$@"'


def test_a_node_without_libvirt_and_nftables(home: Home) -> None:
    def said(*instances: dict[str, Any]) -> list[list[Any]]:
        given = json.dumps([str(home.path), list(instances)])
        command = ["unshare", "-m", "sh", "-c", WITHOUT_NFT, "sh", PYTHON, "-c", BARE, given]
        done = home.node.libvirtd.execute(command, **python_path(home.node.collections))
        found: list[list[Any]] = json.loads(done.stdout)
        return found

    assert said() == [
        ["domain", True, "none: libvirt is not installed"],
        ["volume", True, "none"],
        ["image", True, "none: no machine is made from one"],
        ["tap", True, "none: nft is not installed"],
        ["rule", True, "none: nft is not installed"],
        ["user", True, "none"],
    ]
    wanted = Machine("home.lost.m1", 1).wanted() | {"machine": True}
    assert [one for one in said(wanted) if not one[1]] == [
        ["domain", False, "libvirt is not installed"],
        ["tap", False, "no link"],
        ["rule", False, "nft is not installed"],
    ]
