# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain's form (see domain.py) written as libvirt's XML, and read out of libvirt's XML.

`read(write(form)) == form`, also after libvirt has added what it adds. Every value goes in by ElementTree, so none can
become markup; nothing is read by a pattern.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

SPARE_PORTS = 8
"""PCIe ports beyond those of the devices at the start: so many volumes can be added while the domain runs."""
AGENT = "org.qemu.guest_agent.0"
KINDS = {"tap": "ethernet", "bridge": "bridge", "macvtap": "direct"}
IGNORED = {"emulator", "audio", "video", "watchdog", "console"}
"""Devices that libvirt adds by itself, or that follow from another (video from vnc, console from serial)."""
HANDLED = {"disk", "interface", "serial", "channel", "graphics", "memballoon", "rng"}


def write(form):
    root = ET.Element("domain", type=form["accelerator"])
    _add(root, "name", form["name"])
    if form["uuid"]:
        _add(root, "uuid", form["uuid"])
    _write_memory(root, form["memory"])
    _write_cpu(root, form["cpu"])
    _add(_add(root, "os"), "type", "hvm", arch="x86_64", machine=form["machine"])
    features = _add(root, "features")
    for name in ("acpi", "apic"):
        _add(features, name)
    _add(root, "clock", offset="utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _add(root, event, action)
    _write_devices(root, form)
    security = _add(root, "seclabel", type="static", model="dac", relabel="no")
    _add(security, "label", form["user"])
    return ET.tostring(root, encoding="unicode")


def write_disk(target, disk, boot=False):
    """One disk, as it is also plugged in or out while the domain runs."""
    return ET.tostring(_disk(target, disk, boot), encoding="unicode")


def _add(parent, tag, text=None, **attributes):
    child = ET.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})
    child.text = text
    return child


def _write_memory(root, memory):
    _add(root, "memory", str(memory["maximum_mib"]), unit="MiB")
    _add(root, "currentMemory", str(memory["mib"]), unit="MiB")
    if memory["hugepages"]:
        _add(_add(root, "memoryBacking"), "hugepages")


def _write_cpu(root, cpu):
    _add(root, "vcpu", str(cpu["maximum"]), placement="static", current=cpu["count"])
    if cpu["pinning"]:
        tune = _add(root, "cputune")
        for number, cpus in sorted(cpu["pinning"].items(), key=lambda pin: int(pin[0])):
            _add(tune, "vcpupin", vcpu=number, cpuset=",".join(map(str, cpus)))
    if cpu["model"] in ("host-passthrough", "host-model", "maximum"):
        processor = _add(root, "cpu", mode=cpu["model"])
    else:
        processor = _add(root, "cpu", mode="custom", match="exact", check="none")
        _add(processor, "model", cpu["model"], fallback="forbid")
    for feature in cpu["features"]:
        _add(processor, "feature", policy="force" if feature[0] == "+" else "disable", name=feature[1:])


def _write_devices(root, form):
    devices = _add(root, "devices")
    for target, disk in sorted(form["disks"].items()):
        devices.append(_disk(target, disk, target == form["boot"]))
    _add(devices, "controller", type="usb", model="none")
    _add(devices, "controller", type="pci", index=0, model="pcie-root")
    for number in range(SPARE_PORTS + _ports(form)):
        _add(devices, "controller", type="pci", index=number + 1, model="pcie-root-port")
    for interface in form["interfaces"]:
        _write_interface(devices, interface)
    _write_console(devices, form["console"])
    if form["agent"]:
        _add(_add(devices, "channel", type="unix"), "target", type="virtio", name=AGENT)
    if form["vnc"]:
        graphics = _add(devices, "graphics", type="vnc")
        _add(graphics, "listen", type="socket", socket=form["vnc"])
    _add(_add(devices, "video"), "model", type="vga" if form["vnc"] else "none")
    if form["memory"]["balloon"]:
        balloon = _add(devices, "memballoon", model="virtio", freePageReporting="on")
        _add(balloon, "stats", period=10)
    else:
        _add(devices, "memballoon", model="none")
    if form["rng"]:
        _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")


def _ports(form):
    """How many PCIe ports the devices take that a domain has at its start."""
    devices = len(form["disks"]) + len(form["interfaces"]) + form["rng"] + form["agent"]
    return devices + form["memory"]["balloon"]


def _disk(target, disk, boot):
    element = ET.Element("disk", type=disk["type"], device="disk")
    driver = {"name": "qemu", "type": disk["format"], "cache": disk["cache"], "io": disk["io"]}
    discard = "unmap" if disk["discard"] else "ignore"
    _add(element, "driver", **driver, discard=discard, detect_zeroes="unmap" if disk["discard"] else "off")
    _add(element, "source", **{"dev" if disk["type"] == "block" else "file": disk["path"]})
    # told in full: else QEMU would believe what the disk's own header names, which a guest that broke out can write
    backing = _add(element, "backingStore")
    if disk["backing"]:
        backing.set("type", "file")
        _add(backing, "format", type=disk["backing"][1])
        _add(backing, "source", file=disk["backing"][0])
        _add(backing, "backingStore")
    _add(element, "target", dev=target, bus="virtio")
    if disk["readonly"]:
        _add(element, "readonly")
    if disk["serial"]:
        _add(element, "serial", disk["serial"])
    if boot:
        _add(element, "boot", order=1)
    return element


def _write_interface(devices, interface):
    element = _add(devices, "interface", type=KINDS[interface["kind"]])
    _add(element, "mac", address=interface["mac"])
    if interface["kind"] == "tap":
        _add(element, "target", dev=interface["device"], managed="no")
    elif interface["kind"] == "bridge":
        _add(element, "source", bridge=interface["device"])
    else:
        _add(element, "source", dev=interface["device"], mode=interface["mode"])
    _add(element, "model", type="virtio")


def _write_console(devices, console):
    if not console["socket"] and not console["log"]:
        return
    serial = _add(devices, "serial", type="unix" if console["socket"] else "null")
    if console["socket"]:
        _add(serial, "source", mode="bind", path=console["socket"])
    if console["log"]:
        # appended to, so that a log that was cut short goes on at its new end
        _add(serial, "log", file=console["log"], append="on")
    _add(serial, "target", port=0)


def read(text):
    """The form of a domain in libvirt's XML (of a definition, or of a domain that runs)."""
    root = ET.fromstring(text)  # noqa: S314 - libvirtd wrote it
    devices = root.find("devices")
    disks = {one.find("target").get("dev"): _read_disk(one) for one in devices.iterfind("disk[@device='disk']")}
    boots = [one.find("target").get("dev") for one in devices.iterfind("disk") if one.find("boot") is not None]
    return {
        "name": root.findtext("name"),
        "uuid": root.findtext("uuid"),
        "accelerator": root.get("type"),
        "machine": _machine(root.find("os/type")),
        "user": root.findtext("seclabel[@model='dac']/label"),
        "cpu": _read_cpu(root),
        "memory": _read_memory(root, devices),
        "disks": disks,
        "boot": ",".join(boots) or None,
        "interfaces": [_read_interface(one) for one in devices.iterfind("interface")],
        "console": _read_console(devices),
        "vnc": _attribute(devices, "graphics[@type='vnc']/listen[@type='socket']", "socket"),
        "agent": devices.find("channel/target[@name='%s']" % AGENT) is not None,
        "rng": devices.find("rng") is not None,
        "others": _others(root, devices),
    }


def agent_connected(text):
    """Whether the guest agent of a domain that runs answers."""
    root = ET.fromstring(text)  # noqa: S314 - libvirtd wrote it
    target = root.find("devices/channel/target[@name='%s']" % AGENT)
    return target is not None and target.get("state") == "connected"


def _attribute(element, path, name):
    found = element.find(path)
    return None if found is None else found.get(name)


def _machine(element):
    """q35 for every version of it: libvirt keeps the version that a domain was defined with."""
    machine = element.get("machine", "")
    return "q35" if machine.startswith("pc-q35-") or element.text != "hvm" else machine


def _mib(element):
    units = {"b": 1, "bytes": 1, "KiB": 1024, "k": 1024, "MiB": 1024**2, "M": 1024**2, "GiB": 1024**3, "G": 1024**3}
    return int(element.text) * units[element.get("unit", "KiB")] // 1024**2


def _read_memory(root, devices):
    current = root.find("currentMemory")
    maximum = _mib(root.find("memory"))
    return {
        "mib": maximum if current is None else _mib(current),
        "maximum_mib": maximum,
        "balloon": _attribute(devices, "memballoon", "model") == "virtio",
        "hugepages": root.find("memoryBacking/hugepages") is not None,
    }


def _read_cpu(root):
    vcpu, cpu = root.find("vcpu"), root.find("cpu")
    mode = "" if cpu is None else cpu.get("mode", "custom")
    features = [] if cpu is None else cpu.iterfind("feature")
    signs = {"force": "+", "require": "+", "disable": "-", "forbid": "-"}
    return {
        "count": int(vcpu.get("current", vcpu.text)),
        "maximum": int(vcpu.text),
        "model": mode if mode != "custom" else cpu.findtext("model"),
        "features": sorted(signs.get(one.get("policy"), "?") + one.get("name") for one in features),
        "pinning": {one.get("vcpu"): _cpus(one.get("cpuset")) for one in root.iterfind("cputune/vcpupin")},
    }


def _cpus(text):
    """The numbers in libvirt's list like 0-4,^2."""
    found, left_out = set(), set()
    for part in text.split(","):
        first, _dash, last = part.lstrip("^").partition("-")
        (left_out if part.startswith("^") else found).update(range(int(first), int(last or first) + 1))
    return sorted(found - left_out)


def _read_disk(element):
    driver, source = element.find("driver"), element.find("source")
    values = {} if driver is None else driver.attrib
    path = None if source is None else source.get("file") or source.get("dev")
    return {
        "path": path,
        "type": element.get("type"),
        "format": values.get("type"),
        "backing": _read_backing(element.find("backingStore")),
        "cache": values.get("cache", "default"),
        "io": values.get("io", "default"),
        "discard": values.get("discard") == "unmap",
        "readonly": element.find("readonly") is not None,
        "serial": element.findtext("serial"),
    }


def _read_backing(element):
    if element is None or element.find("source") is None:
        return None
    return [element.find("source").get("file"), _attribute(element, "format", "type")]


def _read_interface(element):
    kinds = {value: key for key, value in KINDS.items()}
    kind = kinds.get(element.get("type"), element.get("type"))
    source, target = element.find("source"), element.find("target")
    values = {} if source is None else source.attrib
    device = values.get("dev") or values.get("bridge")
    if kind == "tap" and target is not None and target.get("managed") == "no":
        device = target.get("dev")
    return {
        "kind": kind,
        "device": device,
        "mac": _attribute(element, "mac", "address"),
        "mode": values.get("mode") if kind == "macvtap" else None,
    }


def _read_console(devices):
    serial = devices.find("serial")
    if serial is None:
        return {"socket": None, "log": None}
    return {"socket": _attribute(serial, "source[@mode='bind']", "path"), "log": _attribute(serial, "log", "file")}


def _others(root, devices):
    """What a domain has that this platform never gives it."""
    found = [_foreign(one) for one in devices] + [_second(devices, tag) for tag in ("serial", "graphics", "rng")]
    found += ["namespace %s" % one.tag for one in root if one.tag.startswith("{") and len(one)]
    return sorted(filter(None, found))


def _second(devices, tag):
    return "second %s" % tag if len(devices.findall(tag)) > 1 else None


def _foreign(element):
    """The word for a device that does not belong; None for what does."""
    tag, kind = element.tag, element.get("type")
    if tag in IGNORED:
        return None
    if tag == "input":
        return None if element.get("bus") == "ps2" else "input %s" % kind
    if tag == "controller":
        return "controller usb" if kind == "usb" and element.get("model") != "none" else None
    own = tag in HANDLED
    if tag == "channel":
        own = _attribute(element, "target", "name") == AGENT
    elif tag == "graphics":
        own = kind == "vnc" and element.find("listen[@type='socket']") is not None
    elif tag == "serial":
        own = kind in ("unix", "null")
    elif tag == "disk":
        own = element.get("device") == "disk"
    return None if own else "%s %s" % (tag, kind or element.get("model") or "")
