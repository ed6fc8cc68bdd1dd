# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form of a domain: made from options, written as XML and read back, compared. Nothing of libvirt is needed."""

from __future__ import annotations

import copy
import os
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.clachan.platform.plugins.module_utils import domain, domain_compare, domain_xml
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError

UUID = "0a9a4c4e-4d55-4f5c-9d5e-0f1b3c3f2a11"


@pytest.fixture
def options(tmp_path):
    for name in ("system.qcow2", "data.raw", "more.raw", "seed.iso"):
        (tmp_path / name).write_bytes(b"")

    def make(**more):
        given = {
            "name": "lab.hadoop.worker1",
            "uuid": UUID,
            "user": "nobody",
            "cpu": None,
            "memory": {"mib": 512, "maximum_mib": None, "balloon": True, "hugepages": False},
            "disks": [{"path": str(tmp_path / "system.qcow2"), "format": "qcow2", "backing": "/images/a.qcow2"}],
            "seed": None,
            "interfaces": [],
            "console_socket": None,
            "console_log": None,
            "vnc": None,
            "agent": True,
            "rng": True,
        }
        return dict(given, **more)

    make.folder = tmp_path
    return make


def form(options, accelerator="qemu", targets=None):
    return domain.wanted(options, accelerator, targets or {})


def full(options):
    folder = options.folder
    return options(
        cpu={"count": 2, "maximum": 4, "model": "qemu64,+aes,-svm", "pinning": ["0-1,3", "2"]},
        memory={"mib": 512, "maximum_mib": 1024, "balloon": True, "hugepages": True},
        disks=[
            {"path": str(folder / "system.qcow2"), "format": "qcow2", "backing": "/images/a.qcow2"},
            {
                "path": str(folder / "data.raw"),
                "format": "raw",
                "serial": "data",
                "cache": "writeback",
                "io": "io_uring",
            },
        ],
        seed=str(folder / "seed.iso"),
        interfaces=[
            {"kind": "tap", "device": "cv3", "mac": "52:54:00:AA:00:01", "mode": None},
            {"kind": "bridge", "device": "br0", "mac": "52:54:00:aa:00:02", "mode": None},
            {"kind": "macvtap", "device": "eth0.5", "mac": "52:54:00:aa:00:03", "mode": None},
        ],
        vnc="/run/vnc.sock",
    )


def test_what_is_written_is_read_back(options):
    for wanted in (
        form(options()),
        form(full(options)),
        form(full(options), "kvm"),
        form(options(agent=False, rng=False)),
    ):
        assert domain_xml.read(domain_xml.write(wanted)) == wanted


def test_what_libvirt_adds_is_no_difference(options):
    wanted = form(full(options))
    root = ET.fromstring(domain_xml.write(wanted))
    root.set("id", "3")
    for element in root.find("devices"):
        ET.SubElement(element, "alias", name="x")
        ET.SubElement(element, "address", type="pci", bus="0x02")
    root.find("os/type").set("machine", "pc-q35-7.2")
    for tag, attributes in (
        ("input", {"type": "mouse", "bus": "ps2"}),
        ("audio", {"id": "1", "type": "none"}),
        ("controller", {"type": "sata"}),
        ("watchdog", {"model": "itco"}),
        ("emulator", {}),
    ):
        ET.SubElement(root.find("devices"), tag, attributes)
    found = domain_xml.read(ET.tostring(root, encoding="unicode"))
    assert domain_compare.differences(found, wanted) == []


@pytest.mark.parametrize(
    ("xml", "other"),
    [
        ("<hostdev mode='subsystem' type='pci'/>", "hostdev pci"),
        ("<controller type='usb' model='qemu-xhci'/>", "controller usb"),
        ("<input type='tablet' bus='usb'/>", "input tablet"),
        ("<disk type='file' device='cdrom'><target dev='sda'/></disk>", "disk file"),
        ("<graphics type='vnc' port='5900'/>", "graphics vnc"),
        ("<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>", "channel spicevmc"),
        ("<filesystem type='mount'/>", "filesystem mount"),
    ],
)
def test_foreign_devices_are_seen(options, xml, other):
    wanted = form(options())
    found = domain_xml.read(domain_xml.write(wanted).replace("</devices>", xml + "</devices>"))
    assert found["others"] == [other]
    assert domain_compare.differences(found, wanted) == ["others"]


def test_no_value_becomes_markup(options):
    wanted = form(options())
    hostile = 'a\'/><hostdev/>&<!-- "x" {{ 1 }}'
    wanted["disks"]["vda"].update(path=hostile, serial=hostile, backing=[hostile, "raw"])
    wanted.update(name=hostile, vnc=hostile, console={"socket": hostile, "log": hostile})
    root = ET.fromstring(domain_xml.write(wanted))
    assert root.find("devices/hostdev") is None
    assert domain_xml.read(domain_xml.write(wanted)) == wanted


def test_headers_of_disks_are_not_believed(options):
    root = ET.fromstring(domain_xml.write(form(full(options))))
    layer, data = root.findall("devices/disk")[:2]
    assert [one.get("file") for one in layer.iter("source")][1:] == ["/images/a.qcow2"]
    assert layer.find("backingStore/backingStore") is not None
    assert data.find("backingStore") is not None
    assert len(data.find("backingStore")) == 0


def test_disks_keep_their_places(options):
    folder = options.folder
    system, data, more = (
        {"path": str(folder / name), "format": "raw"} for name in ("system.qcow2", "data.raw", "more.raw")
    )
    first = form(options(disks=[system, data, more], seed=str(folder / "seed.iso")))
    assert list(first["disks"]) == ["vda", "vdb", "vdc", "vdz"]
    had = {disk["path"]: target for target, disk in first["disks"].items()}
    assert list(form(options(disks=[system, more]), targets=had)["disks"]) == ["vda", "vdc"]
    assert list(form(options(disks=[system, more, data]), targets=had)["disks"]) == ["vda", "vdc", "vdb"]
    assert list(form(options(disks=[system, data, dict(more, target="vdb")]))["disks"]) == ["vda", "vdc", "vdb"]
    with pytest.raises(HypervisorError, match=r"disks.target vdb: asked for twice, expected each once"):
        form(options(disks=[system, dict(data, target="vdb"), dict(more, target="vdb")]))
    with pytest.raises(HypervisorError, match=r"disks: .*data.raw twice, expected each path once"):
        form(options(disks=[system, data, data]))
    with pytest.raises(HypervisorError, match=r"disks.target vdc: of the system disk, expected vda"):
        form(options(disks=[dict(system, target="vdc")]))


def test_cpu_models():
    assert domain.cpu_model("auto", "kvm") == ("host-passthrough", [])
    model, features = domain.cpu_model("auto", "qemu")
    assert (model, "+ssse3" in features, features == sorted(features)) == ("qemu64", True, True)
    assert domain.cpu_model("Skylake-Client,+aes,-mpx", "kvm") == ("Skylake-Client", ["+aes", "-mpx"])
    assert domain.cpu_model("qemu64,+pclmulqdq", "qemu") == ("qemu64", ["+pclmuldq"])  # as libvirt calls it
    for wrong in ("", "a b", "a,b", "a,+", "a'"):
        with pytest.raises(HypervisorError, match="expected auto, or a model like"):
            domain.cpu_model(wrong, "kvm")


def test_what_a_running_domain_takes(options):
    running = form(full(options))
    running["disks"].pop("vdz")
    after = copy.deepcopy(running)
    after["cpu"].update(count=3, pinning={"0": [1], "1": [2], "2": [0]})
    after["memory"]["mib"] = 700
    after["disks"]["vdc"] = dict(after["disks"].pop("vdb"), path="/x")
    live = domain_compare.Live(running, after)
    assert (live.vcpus, live.pins, live.restart) == (3, after["cpu"]["pinning"], [])
    assert (list(live.plug), list(live.unplug)) == (["vdc"], ["vdb"])
    assert domain_compare.balloon_size(running, running, after) == 700
    assert domain_compare.balloon_size(after, running, after) is None


def test_what_needs_a_restart(options):
    running = form(full(options))
    for change, name in (
        (("cpu", "count", 1), "cpu.count"),
        (("cpu", "count", 5), "cpu.count"),
        (("cpu", "model", "max"), "cpu.model"),
        (("cpu", "features", ["+vmx"]), "cpu.features"),
        (("cpu", "pinning", {}), "cpu.pinning"),
        (("memory", "maximum_mib", 2048), "memory.maximum_mib"),
        (("memory", "hugepages", False), "memory.hugepages"),
        (("console", "log", "/x"), "console.log"),
        (("disks", "vda", {"path": "/other"}), "disks.vda"),
        (("disks", "vdb", {"path": "/other"}), "disks.vdb"),
    ):
        after = copy.deepcopy(running)
        part, member, value = change
        after[part][member] = value
        live = domain_compare.Live(running, after)
        assert (live.restart, live.anything) == ([name], False)
    for key in ("user", "interfaces", "vnc", "agent", "rng", "accelerator"):
        after = dict(running, **{key: "other"})
        assert domain_compare.Live(running, after).restart == [key]


def test_what_qemu_adds_to_the_cpu_is_no_difference(options):
    after = form(options())
    running = copy.deepcopy(after)
    running["cpu"]["features"] += ["+hypervisor", "+lahf_lm"]
    running["memory"]["mib"] = 100  # the balloon is the guest's affair
    assert domain_compare.Live(running, after).restart == []


def test_only_roots_own_directories_for_what_root_opens(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    assert domain.is_roots_alone(str(tmp_path / "x"))
    tmp_path.chmod(0o770)
    assert not domain.is_roots_alone(str(tmp_path / "x"))
    tmp_path.chmod(0o700)
    (tmp_path / "link").symlink_to("/etc")
    assert not domain.is_roots_alone(str(tmp_path / "link" / "x"))
    assert not domain.is_roots_alone(str(tmp_path / "missing" / "x"))
    os.chown(str(tmp_path), 1, 1)
    assert not domain.is_roots_alone(str(tmp_path / "x"))
