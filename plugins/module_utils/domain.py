# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain as this platform sees it: the options of a VM checked, and made into a form that can be compared.

The form is a dict that JSON can carry. `domain_xml` writes it as libvirt's XML and reads it back out of libvirt's XML;
`domain_compare` says how two differ and what that costs. Whatever libvirt adds (addresses, aliases, controllers,
defaults) is not in the form, so it is never a difference:

`name`, `uuid`, `accelerator` (kvm, qemu), `machine`, `user` ("+uid:+gid"), `agent`, `rng` (bool), `vnc` (path or None)
`cpu`: `count`, `maximum`, `model`, `features` (["+aes"]), `pinning` ({"0": [1]}: vCPU to CPUs of the node)
`memory`: `mib`, `maximum_mib`, `balloon`, `hugepages`
`disks`: {target: {`path`, `type` (file, block), `format`, `backing` ([path, format] or None), `cache`, `io`, `discard`,
    `readonly`, `serial`}}; `boot`: the target it boots from
`interfaces`: [{`kind` (tap, bridge, macvtap), `device`, `mac`, `mode`}]
`console`: `socket`, `log` (paths or None)
`others`: devices that this platform never makes; wanted is always none
"""

from __future__ import annotations

import os
import pwd
import re
import stat

from ansible_collections.clachan.platform.plugins.module_utils import names
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError

LONGEST_NAME = 247
"""libvirt writes files `<name>.xml.new`, and a file's name has at most 255 bytes."""
LONGEST_SOCKET = 107
PATH = r"/[A-Za-z0-9._/+@:=,-]{0,4000}"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MAC = r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}"
DEVICE = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}"
SERIAL = r"[A-Za-z0-9_.-]{1,20}"
TARGET = r"vd[a-z]"
CPU_MODEL = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(,[+-][a-z0-9][a-z0-9_.-]{0,31})*"
CPU_LIST = r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*"
# with aes, but without pclmulqdq, Linux 6.1 runs into an instruction that is not there
TCG_MODEL = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq"
"""What QEMU's emulation can do and current distributions expect."""
NAMED_OTHERWISE = {"pclmulqdq": "pclmuldq"}
"""QEMU's names of features that libvirt knows by another one."""
KVM_MODEL = "host-passthrough"
SEED_TARGET = "vdz"
LARGEST_MIB = 16 * 1024 * 1024


def check(what, value, pattern, expected):
    """Refuse a text that does not match as a whole."""
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise HypervisorError("%s %r: expected %s" % (what, value, expected))
    return value


def check_path(what, value):
    check(what, value, PATH, "an absolute path of letters, digits and . _ + @ : = , -")
    if os.path.normpath(value) != value:
        raise HypervisorError("%s %r: expected a path without '.', '..' or empty parts" % (what, value))
    return value


def check_name(value):
    if not names.is_path(value):
        raise HypervisorError("domain %r: expected an instance's path like tenant.root or tenant.root.child" % (value,))
    if len(value) > LONGEST_NAME:
        raise HypervisorError(
            "domain %s: a name of %d characters, expected at most %d" % (value, len(value), LONGEST_NAME)
        )
    return value


def check_uuid(value):
    return check("uuid", value, UUID, "lower case hexadecimal digits like 12345678-1234-4123-8123-123456789abc")


def wanted(params, accelerator, targets, checking=False):
    """The form of a VM's options; raises HypervisorError for what is not sane.

    targets: path -> target of the disks that the domain already has, which keep their places.
    checking: in check mode a disk may be still to be made.
    """
    disks = _disks(params, targets, checking)
    return {
        "name": check_name(params["name"]),
        "uuid": check_uuid(params["uuid"]),
        "accelerator": accelerator,
        "machine": "q35",
        "user": label(params["user"]),
        "cpu": _cpu(params["cpu"] or {}, accelerator),
        "memory": _memory(params["memory"]),
        "disks": disks,
        "boot": "vda",
        "interfaces": [_interface(one) for one in params["interfaces"]],
        "console": {
            "socket": _socket("console_socket", params["console_socket"]),
            "log": params["console_log"] and _root_file("console_log", params["console_log"]),
        },
        "vnc": params["vnc"] and check_socket("vnc", params["vnc"]),
        "agent": params["agent"],
        "rng": params["rng"],
        "others": [],
    }


def label(user):
    """libvirt's label of a unix user: numbers, so that no other user of that name is ever meant."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise HypervisorError("user %r: expected one of this machine" % user) from None
    if entry.pw_uid == 0:
        raise HypervisorError("user %s: is root, expected another one for QEMU" % user)
    return "+%d:+%d" % (entry.pw_uid, entry.pw_gid)


def check_socket(what, path):
    check_path(what, path)
    if len(path) > LONGEST_SOCKET:
        raise HypervisorError("%s %s: %d characters, expected at most %d" % (what, path, len(path), LONGEST_SOCKET))
    return path


def _socket(what, path):
    return path and _root_file(what, check_socket(what, path))


def _root_file(what, path):
    """Refuse a path that libvirtd, as root, would open in a directory where somebody else may have put a link."""
    check_path(what, path)
    open_to = _not_roots_alone(path)
    if open_to:
        raise HypervisorError(
            "%s %s: %s is not root's alone, expected directories that only root can write, as libvirt opens it as root"
            % (what, path, open_to)
        )
    return path


def is_roots_alone(path):
    """Whether nobody but root can have made what stands at this path, or at a link on the way to it."""
    return _not_roots_alone(path) is None


def _not_roots_alone(path):
    """The first directory on the way to a path that is missing, a link, or writable by others; None when none is."""
    probe = ""
    for part in os.path.dirname(path).split("/"):
        probe = os.path.join(probe or "/", part)
        try:
            found = os.lstat(probe)
        except OSError:
            return probe
        shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or shared:
            return probe
    return None


def _number(what, value, lowest, highest):
    if not lowest <= value <= highest:
        raise HypervisorError("%s: %d, expected %d to %d" % (what, value, lowest, highest))
    return value


def _cpu(options, accelerator):
    count = _number("cpu.count", 1 if options.get("count") is None else options["count"], 1, 255)
    maximum = _number("cpu.maximum", count if options.get("maximum") is None else options["maximum"], count, 255)
    model, features = cpu_model(options.get("model") or "auto", accelerator)
    pinning = options.get("pinning") or []
    if len(pinning) > maximum:
        raise HypervisorError("cpu.pinning: %d entries, expected at most one for each of %d" % (len(pinning), maximum))
    pins = {str(number): _cpus(text) for number, text in enumerate(pinning)}
    return {"count": count, "maximum": maximum, "model": model, "features": features, "pinning": pins}


def cpu_model(text, accelerator):
    """(model, sorted features) of "auto" or of QEMU's form "qemu64,+aes"."""
    if text == "auto":
        text = KVM_MODEL if accelerator == "kvm" else TCG_MODEL
    check("cpu.model", text, CPU_MODEL, "auto, or a model like qemu64,+ssse3")
    model, *features = text.split(",")
    return model, sorted(one[0] + NAMED_OTHERWISE.get(one[1:], one[1:]) for one in features)


def _cpus(text):
    """The numbers in a list like 0-2,5."""
    check("cpu.pinning", text, CPU_LIST, "CPUs like 0-2,5")
    found = set()
    for part in text.split(","):
        first, _dash, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    if not found:
        raise HypervisorError("cpu.pinning %r: no CPU, expected CPUs like 0-2,5" % text)
    return sorted(found)


def _memory(options):
    mib = _number("memory.mib", options["mib"], 16, LARGEST_MIB)
    maximum = _number(
        "memory.maximum_mib", mib if options.get("maximum_mib") is None else options["maximum_mib"], mib, LARGEST_MIB
    )
    if maximum != mib and not options["balloon"]:
        raise HypervisorError("memory.maximum_mib: %d without balloon, expected %d or balloon: true" % (maximum, mib))
    return {"mib": mib, "maximum_mib": maximum, "balloon": options["balloon"], "hugepages": options["hugepages"]}


def _interface(options):
    kind = options["kind"]
    if kind != "macvtap" and options.get("mode"):
        raise HypervisorError("interfaces.mode %s: only for macvtap, expected none for %s" % (options["mode"], kind))
    return {
        "kind": kind,
        "device": check("interfaces.device", options["device"], DEVICE, "a name of a network device"),
        "mac": check("interfaces.mac", options["mac"].lower(), MAC, "a unicast address like 52:54:00:12:34:56"),
        "mode": (options.get("mode") or "bridge") if kind == "macvtap" else None,
    }


def _disks(params, targets, checking):
    options = list(params["disks"])
    if not options:
        raise HypervisorError("disks: none, expected the system disk first")
    if params["seed"]:
        options.append({"path": params["seed"], "format": "raw", "readonly": True, "target": SEED_TARGET})
    places = _places(options, targets)
    paths = [one["path"] for one in options]
    if len(set(paths)) != len(paths):
        raise HypervisorError("disks: %s twice, expected each path once" % max(paths, key=paths.count))
    return {place: _disk(one, checking) for place, one in zip(places, options)}  # noqa: B905 - Python 3.8


def _places(options, targets):
    """The target of each disk: what is asked for, else what it has in the domain, else the first that is free."""
    asked = [one.get("target") or ("vda" if not number else None) for number, one in enumerate(options)]
    for place in filter(None, asked):
        check("disks.target", place, TARGET, "vda to vdz")
        if asked.count(place) > 1:
            raise HypervisorError("disks.target %s: asked for twice, expected each once" % place)
    if asked[0] != "vda":
        raise HypervisorError("disks.target %s: of the system disk, expected vda" % asked[0])
    for number, one in enumerate(options):
        had = targets.get(one["path"])
        if asked[number] is None and had not in (None, *asked):
            asked[number] = had
    free = ["vd" + letter for letter in "bcdefghijklmnopqrstuvwxy"]
    for number, place in enumerate(asked):
        if place is None:
            left = [one for one in free if one not in asked]
            if not left:
                raise HypervisorError("disks: %d, expected at most %d" % (len(options), len(free) + 2))
            asked[number] = left[0]
    return asked


def _disk(options, checking):
    path = check_path("disk", options["path"])
    kind = _disk_type(path, checking)
    cache = options.get("cache") or "auto"
    if cache == "auto":
        cache = "none" if kind == "block" or _opens_directly(path) else "writeback"
    io = options.get("io") or "auto"
    if io == "auto":
        io = "native" if cache in ("none", "directsync") else "threads"
    elif io == "native" and cache not in ("none", "directsync"):
        raise HypervisorError("disk %s: io native with cache %s, expected cache none or directsync" % (path, cache))
    serial = options.get("serial")
    backing = options.get("backing")
    return {
        "path": path,
        "type": kind,
        "format": options["format"],
        "backing": [check_path("disk.backing", backing), options.get("backing_format") or "qcow2"] if backing else None,
        "cache": cache,
        "io": io,
        "discard": bool(options.get("discard", True)) and not options.get("readonly"),
        "readonly": bool(options.get("readonly")),
        "serial": serial and check("disks.serial", serial, SERIAL, "at most 20 letters, digits and _ . -"),
    }


def _disk_type(path, checking):
    try:
        found = os.stat(path) if path.startswith("/dev/") else os.lstat(path)
    except FileNotFoundError:
        if checking:
            return "block" if path.startswith("/dev/") else "file"
        raise HypervisorError("disk %s: nothing there, expected a file or a block device" % path) from None
    if stat.S_ISBLK(found.st_mode):
        return "block"
    if stat.S_ISREG(found.st_mode):
        return "file"
    kind = "a link" if stat.S_ISLNK(found.st_mode) else "no regular file"
    raise HypervisorError("disk %s: %s, expected a file or a block device" % (path, kind))


def _opens_directly(path):
    """Whether the file's file system can do without the page cache (tmpfs and some network file systems cannot)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        return False
    return True
