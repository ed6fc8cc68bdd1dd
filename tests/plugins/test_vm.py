"""Module vm against a real libvirtd and real QEMU processes: values, changed, differences and messages."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from . import vm_node
from .conftest import BIN
from .payloads import payloads
from .vm_node import FLOOD, MIB, Node, link

pytestmark = pytest.mark.slow

node, loop = vm_node.node, vm_node.loop
Options = dict[str, Any]


def qemu(node: Node, vm: Options) -> list[str]:
    """The arguments of the QEMU process of a VM."""
    [process] = node.libvirtd.guests(vm["uuid"])
    return Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")


def changed_definition(node: Node, vm: Options, before: str, after: str) -> None:
    """Somebody edits the definition by hand."""
    text = node.libvirtd.virsh("dumpxml", "--inactive", vm["name"])
    assert before in text
    path = node.folder / "edited.xml"
    path.write_text(text.replace(before, after))
    node.libvirtd.virsh("define", str(path))


def test_twelve_steps(node: Node) -> None:
    slot = node.slot()
    vm = node.vm("home.twelve", slot)
    made = node.steps("vm", vm)
    assert made[0]["actions"] == made[1]["actions"] == ["defined", "started"]
    assert made[1]["diff"]["before"] == {}
    after = made[1]["diff"]["after"]
    assert after["memory"] == {"mib": 32, "maximum_mib": 32, "balloon": True, "hugepages": False}
    assert after["disks"]["vda"]["cache"], after["disks"]["vda"]["io"]
    assert (after["state"], after["uuid"], made[1]["accelerator"]) == ("started", vm["uuid"], "qemu")
    assert made[0]["diff"] == made[1]["diff"]

    data = node.disk(slot / "var" / "data.raw")
    more = vm | {
        "disks": [*vm["disks"], {"path": str(data), "format": "raw", "serial": "data"}],
        "memory": {"mib": 24, "maximum_mib": 32},
    }
    changed = node.steps("vm", more)
    actions = ["changed disks.vdb while it runs", "changed memory.mib while it runs", "redefined"]
    assert changed[0]["actions"] == changed[1]["actions"] == actions
    assert changed[1]["restart_needed"] == []
    assert changed[1]["diff"]["before"]["memory"]["mib"] == 32
    assert changed[1]["diff"]["after"]["memory"]["mib"] == 24
    assert changed[1]["diff"]["after"]["disks"]["vdb"]["serial"] == "data"
    blocks = node.ok("vm_info", {})["vms"]["home.twelve"]["disks"]
    assert blocks == {"vda": vm["disks"][0]["path"], "vdb": str(data)}

    gone = node.steps("vm", more | {"state": "absent"})
    assert gone[1]["actions"][:2] == ["stopped", "undefined"]
    assert gone[1]["diff"]["before"]["state"] == "started"
    assert gone[1]["diff"]["after"] == {}
    assert node.left("home.twelve") == []
    assert data.exists()


def test_qemu_is_confined(node: Node) -> None:
    slot = node.slot()
    vm = node.vm("home.confined", slot, vnc=str(slot / "var" / "vnc.sock"))
    assert node.ok("vm", vm)["warning"] is None
    [process] = node.libvirtd.guests(vm["uuid"])
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert f"Uid:\t{os.stat(slot / 'var').st_uid}\t" in status
    assert "CapEff:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    arguments = qemu(node, vm)
    assert arguments[arguments.index("-sandbox") + 1].startswith("on,")
    assert not [word for word in arguments if "usb" in word and word.startswith("{")]
    assert arguments[arguments.index("-vnc") + 1].startswith(f"vnc=unix:{slot}/var/vnc.sock")
    # the console is opened by libvirtd, as root: only in a directory where nobody else can put a link
    assert (slot / "log" / "console.sock").is_socket()
    unsafe = node.run("vm", vm | {"console_log": str(slot / "var" / "console.log")})
    assert unsafe["msg"] == (
        f"console_log {slot}/var/console.log: {slot}/var is not root's alone, expected directories that only root can "
        "write, as libvirt opens it as root"
    )
    node.remove(vm)


def test_what_a_running_vm_cannot_take_waits_for_the_declared_policy(node: Node) -> None:
    slot = node.slot()
    vm = node.vm("home.policy", slot, cpu={"count": 1, "maximum": 2})
    node.ok("vm", vm)
    first = qemu(node, vm)
    grown = vm | {"cpu": {"count": 2, "maximum": 2, "pinning": ["0"]}}
    assert node.ok("vm", grown)["actions"] == [
        "changed cpu.count while it runs",
        "changed cpu.pinning while it runs",
        "redefined",
    ]
    assert node.libvirtd.virsh("vcpucount", "--live", "--current", vm["name"]).strip() == "2"

    other = grown | {"cpu": {"count": 2, "maximum": 3, "model": "qemu64,+aes"}, "memory": {"mib": 48}}
    other["vnc"] = str(slot / "var" / "vnc.sock")
    kept = [node.ok("vm", other), node.ok("vm", other)]
    assert [one["changed"] for one in kept] == [True, False]
    needed = ["cpu.features", "cpu.maximum", "cpu.pinning", "memory.maximum_mib", "vnc"]
    assert [one["restart_needed"] for one in kept] == [needed[1:], needed[1:]] or kept[0]["restart_needed"] == needed
    assert qemu(node, vm) == first

    again = node.steps("vm", other | {"restart": "when_needed"})
    assert again[1]["actions"] == ["stopped", "started"]
    assert again[1]["restart_needed"] == []
    assert Path(other["vnc"]).is_socket()
    assert "maxcpus=3" in qemu(node, vm)[qemu(node, vm).index("-smp") + 1]
    assert qemu(node, vm)[qemu(node, vm).index("-m") + 1] == "48"
    node.remove(vm)


def test_a_disk_that_the_guest_does_not_let_go_of_goes_at_the_next_start(node: Node) -> None:
    slot = node.slot()
    vm = node.vm("home.unplug", slot)
    data = {"path": str(node.disk(slot / "var" / "data.raw")), "format": "raw"}
    node.ok("vm", vm | {"disks": [*vm["disks"], data]})
    done = node.ok("vm", vm)
    assert (done["actions"], done["restart_needed"]) == (["redefined"], ["disks.vdb"])
    done = node.ok("vm", vm | {"restart": "when_needed"})
    assert (done["actions"], done["restart_needed"]) == (["stopped", "started"], [])
    assert list(node.ok("vm_info", {})["vms"]["home.unplug"]["disks"]) == ["vda"]
    node.remove(vm)


def test_stopped_and_paused(node: Node) -> None:
    vm = node.vm("home.halted", state="stopped")
    assert node.steps("vm", vm)[1]["actions"] == ["defined"]
    assert node.ok("vm", vm | {"state": "started"})["actions"] == ["started"]
    node.libvirtd.virsh("suspend", vm["name"])
    assert node.ok("vm_info", {})["vms"]["home.halted"]["state"] == "paused"
    assert node.steps("vm", vm | {"state": "started"})[1]["actions"] == ["resumed"]
    # this guest hears no power button: it is ended after its time
    started = time.monotonic()
    assert node.steps("vm", vm | {"stop_seconds": 2})[1]["actions"] == ["stopped"]
    assert time.monotonic() - started > 2
    assert node.libvirtd.guests(vm["uuid"]) == []
    node.remove(vm)


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("<model type='none'/>", "<model type='vga'/>", None),
        ("<on_reboot>restart</on_reboot>", "<on_reboot>restart</on_reboot><title>x</title>", None),
        ("<controller type='usb' index='0' model='none'/>", "<controller type='usb' model='qemu-xhci'/>", "others"),
        (
            "</devices>",
            "<filesystem type='mount'><source dir='/etc'/><target dir='x'/></filesystem></devices>",
            "others",
        ),
        ("relabel='no'>\n    <label>+", "relabel='no'>\n    <label>+1", "user"),
        ("<memory unit='KiB'>32768", "<memory unit='KiB'>65536", "memory"),
        ("<driver name='qemu' type='raw'", "<driver name='qemu' type='qcow2'", "disks"),
    ],
)
def test_what_was_edited_by_hand(node: Node, before: str, after: str, name: str | None) -> None:
    vm = node.vm("home.edited", state="stopped")
    node.ok("vm", vm)
    changed_definition(node, vm, before, after)
    done = [node.ok("vm", vm), node.ok("vm", vm)]
    assert [one["changed"] for one in done] == [name is not None, False]
    if name:
        difference = done[0]["diff"]
        assert difference["before"].get(name) != difference["after"].get(name)
    node.remove(vm)


def test_no_two_vms_with_one_disk(node: Node, loop: str, tmp_path: Path) -> None:
    slot = node.slot()
    first = node.vm("home.first", slot, state="stopped")
    node.ok("vm", first)
    path = first["disks"][0]["path"]
    hard = slot / "var" / "hard.raw"
    os.link(path, hard)
    for other in (path, str(hard)):
        second = node.vm("home.second", node.slot(), state="stopped", disks=[{"path": other, "format": "raw"}])
        refused = node.run("vm", second)
        assert refused["msg"] == (
            f"disk {other} of domain home.second: is {path} of domain home.first, expected one that no other VM has"
        )
    hard.unlink()

    block = {"path": loop, "format": "raw"}
    node.ok("vm", first | {"disks": [*first["disks"], block]})
    alias = f"/dev/clachan-test-{os.getpid()}"
    os.symlink(loop, alias)
    try:
        second = node.vm("home.second", node.slot(), state="stopped")
        refused = node.run("vm", second | {"disks": [*second["disks"], block | {"path": alias}]}, check=True)
    finally:
        os.unlink(alias)
    assert refused["msg"] == (
        f"disk {alias} of domain home.second: is {loop} of domain home.first, expected one that no other VM has"
    )
    assert node.libvirtd.domains() == ["home.first"]
    node.remove(first)


def test_no_device_that_the_node_uses(node: Node, loop: str, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", loop], check=True)
    subprocess.run(["mount", loop, tmp_path], check=True)
    try:
        vm = node.vm("home.mounted", state="stopped")
        refused = node.run("vm", vm | {"disks": [*vm["disks"], {"path": loop, "format": "raw"}]})
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert refused["msg"] == (
        f"disk {loop} of domain home.mounted: used by this node, expected a device that nothing uses"
    )


def test_links_to_the_network(node: Node) -> None:
    kinds = {
        "tap": {"kind": "tap", "device": link(node, "cv1"), "mac": "52:54:00:00:00:01"},
        "bridge": {"kind": "bridge", "device": link(node, "br1", "type", "bridge"), "mac": "52:54:00:00:00:02"},
        "macvtap": {
            "kind": "macvtap",
            "device": link(node, "ve1", "type", "veth", "peer", "ve2"),
            "mac": "52:54:00:00:00:03",
            "mode": "private",
        },
    }
    for name in ("br1", "ve1", "ve2"):
        node.libvirtd.execute(["ip", "link", "set", name, "up"])
    vm = node.vm("home.linked", interfaces=list(kinds.values()))
    if "Operation not supported" in (msg := node.run("vm", vm).get("msg", "")):
        pytest.skip(f"this machine cannot: {msg}")
    assert node.ok("vm", vm)["changed"] is False
    assert (
        "mac 52:54:00:00:00:01 of domain home.other: is domain home.linked's"
        in node.run("vm", node.vm("home.other", interfaces=[kinds["tap"] | {"device": "cv9"}]))["msg"]
    )
    assert (
        "tap cv1 of domain home.other: is domain home.linked's"
        in node.run("vm", node.vm("home.other", interfaces=[kinds["tap"] | {"mac": "52:54:00:00:00:09"}]))["msg"]
    )
    node.remove(vm)
    # the tap is not libvirt's, and stays
    assert node.wrong("tap") == ["tap cv1: a tap"]
    node.libvirtd.execute(["ip", "link", "delete", "cv1"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": "home"}, "domain 'home': expected an instance's path like tenant.root or tenant.root.child"),
        ({"name": ".".join(["a" * 31] * 7) + "." + "b" * 24}, "a name of 248 characters"),
        ({"uuid": "1"}, "uuid '1': expected lower case hexadecimal digits like"),
        ({"user": "root"}, "user root: is root, expected another one for QEMU"),
        ({"user": "no such"}, "user 'no such': expected one of this machine"),
        ({"cpu": {"count": 0}}, "cpu.count: 0, expected 1 to 255"),
        ({"cpu": {"count": 2, "maximum": 1}}, "cpu.maximum: 1, expected 2 to 255"),
        ({"cpu": {"model": "qemu64,x"}}, "cpu.model 'qemu64,x': expected auto, or a model like qemu64,+ssse3"),
        ({"cpu": {"pinning": ["1;2"]}}, "cpu.pinning '1;2': expected CPUs like 0-2,5"),
        ({"memory": {"mib": 8}}, "memory.mib: 8, expected 16 to"),
        ({"memory": {"mib": 32, "maximum_mib": 64, "balloon": False}}, "without balloon, expected 32 or balloon: true"),
        ({"disks": []}, "disks: none, expected the system disk first"),
        ({"disks": [{"path": "/nowhere/x"}]}, "disk /nowhere/x: nothing there, expected a file or a block device"),
        ({"disks": [{"path": "relative"}]}, "disk 'relative': expected an absolute path"),
        ({"disks": [{"path": "/a/../b"}]}, "disk '/a/../b': expected a path without '.', '..' or empty parts"),
        ({"disks": [{"path": "/dev/null"}]}, "disk /dev/null: no regular file, expected a file or a block device"),
        ({"disks": [{"path": "/etc/mtab"}]}, "disk /etc/mtab: a link, expected a file or a block device"),
        ({"interfaces": [{"device": "a b", "mac": "52:54:00:00:00:01"}]}, "interfaces.device 'a b': expected"),
        ({"interfaces": [{"device": "a", "mac": "53:54:00:00:00:01"}]}, "expected a unicast address like"),
        ({"vnc": "/" + "x" * 120}, "121 characters, expected at most 107"),
    ],
)
def test_what_is_not_sane_is_refused(node: Node, more: Options, message: str) -> None:
    refused = node.run("vm", node.vm("home.insane") | more)
    assert refused["failed"]
    assert message in refused["msg"]
    assert node.libvirtd.domains() == []


def test_payloads_stay_text_and_make_no_domain(node: Node, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    texts = list(payloads(canary).values())
    texts += [
        "</name><devices/>",
        "&xxe;",
        '<!DOCTYPE x [<!ENTITY xxe SYSTEM "file:///etc/passwd">]>',
        f"$(touch {canary})",
    ]
    vm = node.vm("home.payload")
    for text in texts:
        for more in ({"name": text}, {"disks": [{"path": text}]}):
            assert node.run("vm", vm | more, check=True).get("failed"), more
    assert not canary.exists()
    assert node.libvirtd.domains() == []


def test_name_and_uuid_belong_together(node: Node) -> None:
    vm = node.vm("home.named", state="stopped")
    node.ok("vm", vm)
    other = node.vm("home.named", state="stopped")
    assert node.run("vm", other)["msg"] == f"domain home.named: has the uuid {vm['uuid']}, expected {other['uuid']}"
    other = node.vm("home.renamed", state="stopped", uuid=vm["uuid"])
    assert node.run("vm", other)["msg"] == f"uuid {vm['uuid']}: is domain home.named's, expected home.renamed"
    node.remove(vm)


def test_console_log_stays_short(node: Node) -> None:
    slot = node.slot()
    vm = node.vm("home.flood", slot, program=FLOOD, console_log_mib=1)
    node.ok("vm", vm)
    log = slot / "log" / "console.log"
    deadline = time.monotonic() + 60
    while log.stat().st_size < MIB + 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert node.ok("vm", vm)["changed"] is False
    assert log.stat().st_size < MIB
    assert (slot / "log" / "console.log.1").stat().st_size == MIB
    before = log.stat().st_size
    time.sleep(0.5)
    with log.open("rb") as file:
        assert file.read(16) == b"A" * 16  # it goes on at the new end: no hole where the old text was
    assert log.stat().st_size > before
    node.remove(vm)
    assert node.left("home.flood") == []


def test_the_system_disk_and_the_seed(node: Node) -> None:
    """A layer over an image, whose header may say what it likes; and a seed, which is read-only and keeps its place."""
    slot = node.slot()
    image = node.disk(node.folder / "image.raw")
    image.chmod(0o444)
    system = slot / "var" / "system.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", "-u", str(system), "16M"]
    subprocess.run(command, check=True)
    os.chown(system, *[os.stat(slot / "var").st_uid] * 2)
    seed = node.disk(slot / "var" / "seed.iso", mib=1)
    disk = {"path": str(system), "backing": str(image), "backing_format": "raw"}
    vm = node.vm("home.layer", slot) | {"disks": [disk], "seed": str(seed)}
    assert node.steps("vm", vm)[1]["actions"] == ["defined", "started"]
    shown = node.libvirtd.virsh("dumpxml", vm["name"])
    assert "/etc/shadow" not in shown
    opened = {os.readlink(fd) for fd in Path(f"/proc/{node.libvirtd.guests(vm['uuid'])[0].pid}/fd").iterdir()}
    assert {str(system), str(image), str(seed)} <= opened
    assert node.ok("vm_info", {})["vms"]["home.layer"]["disks"]["vdz"] == str(seed)
    node.remove(vm)
    image.unlink()


def ansible(node: Node, vm: Options, *more: str) -> dict[str, Any]:
    """The result of the task, run by Ansible itself under a Python that has no libvirt."""
    command = [str(BIN / "ansible"), "localhost", "-o", "-m", "clachan.platform.vm", "-a", json.dumps(vm), *more]
    environment = {
        "ANSIBLE_COLLECTIONS_PATH": str(node.collections),
        "ANSIBLE_HOME": str(node.folder / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(node.folder / "ansible" / "tmp"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
    }
    done = node.libvirtd.execute(command, check=False, **environment)
    assert " => {" in done.stdout, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.partition(" => ")[2])
    return result


def test_through_ansible_with_another_python_and_then_without_asking_libvirt(node: Node) -> None:
    vm = node.vm("home.ansible")
    assert ansible(node, vm, "--check")["actions"] == ["defined", "started"]
    results = [ansible(node, vm) for _ in range(2)]
    assert [one["changed"] for one in results] == [True, False]
    # what was seen unchanged once is known to be unchanged while nothing of libvirt's changed: also without libvirtd
    node.libvirtd.kill()
    known = ansible(node, vm)
    assert (known["changed"], known["state"], known["uuid"]) == (False, "started", vm["uuid"])
    node.libvirtd.start()
    assert ansible(node, vm)["changed"] is False
    assert ansible(node, vm)["changed"] is False
    # but not when QEMU ended, the definition changed, or something else is wanted
    [process] = node.libvirtd.guests(vm["uuid"])
    process.signal(9)
    process.wait(5)
    assert ansible(node, vm)["actions"] == ["started"]
    assert [ansible(node, vm)["changed"] for _ in range(2)] == [False, False]
    changed_definition(node, vm, "<memory unit='KiB'>32768", "<memory unit='KiB'>65536")
    assert ansible(node, vm)["actions"] == ["redefined"]
    assert ansible(node, vm | {"state": "stopped"})["actions"] == ["stopped"]
    node.remove(vm)
