# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on a node for virtual machines, as `node_doctor` compares it. It reads, and changes nothing.

What is not installed has left nothing: a node without libvirt has no domains, one without nftables no links.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import time

from ansible.module_utils.common.process import get_bin_path
from ansible_collections.clachan.platform.plugins.module_utils import domain_xml, hypervisor
from ansible_collections.clachan.platform.plugins.module_utils.image_store import PARTIAL, is_free
from ansible_collections.clachan.platform.plugins.module_utils.isolation import IsolationError
from ansible_collections.clachan.platform.plugins.module_utils.isolation_links import taps
from ansible_collections.clachan.platform.plugins.module_utils.isolation_node import Node
from ansible_collections.clachan.platform.plugins.module_utils.node_doctor import is_of_machine
from ansible_collections.clachan.platform.plugins.module_utils.vm_meters import STATES

MACHINE = "clachan.platform.vm"
CONNECT_SECONDS = 3
BUSY_SECONDS = 120
"""What was written to so lately is still being written."""
SHOWN_FILES = 50
"""Of one directory: what is below var/ is the slot's user's, who may put there what they like."""


class SurveyError(Exception):
    """What is wrong with a home, as "<what> <which>: <value>, expected <what>"."""


def survey(home, instances, binding, uri):
    """What `node_doctor.examine` takes. instances: None for those of the slice; binding: libvirt, None without it."""
    slots, directory = _slots(home)
    seen = {
        "slots": slots,
        "instances": _instances(home) if instances is None else instances,
        "files": _slot_files(directory, slots)
        + _data_volumes(os.path.join(home, "volumes"))
        + _archives(os.path.join(home, "backups")),
        "unfinished": _unfinished(os.path.join(home, "images")),
        "processes": _processes({slot["uid"] for slot in slots.values()} - {None}),
    }
    seen.update(_domains(binding, uri), **_links(home))
    needed = {path for domain in seen["domains"].values() for path in domain["disks"] + domain["backing"]}
    return dict(seen, missing=[path for path in needed if not os.path.lexists(path)])


def _document(path, expected):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise SurveyError("file %s: %s, expected %s" % (path, error, expected)) from None


def _slots(home):
    """(the slots by index, their directory). Where all slots are one user's there is nothing of machines in them."""
    path = os.path.join(home, "node", "config.json")
    config = _document(path, "the settings of a node")
    try:
        directory, users = config["slots_directory"], config["users"]
        indexes = range(config["slots"] if config["mode"] == "root" else 0)
        found = {index: {"user": users[index], "uid": _uid(users[index])} for index in indexes}
    except (KeyError, TypeError, IndexError):
        raise SurveyError("file %s: not complete, expected the settings of a node" % path) from None
    return found, directory


def _uid(user):
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _instances(home):
    """Those of the node's slice; none before the first one arrived."""
    path = os.path.join(home, "node", "slice.json")
    if not os.path.lexists(path):
        return []
    try:
        records = _document(path, "the node's slice")["clachan_inventory"]["records"].values()
        found = [record["clachan_instance"] for record in records if "clachan_instance" in record]
        return [
            {
                "path": one["path"],
                "id": one["id"],
                "index": one["slot"]["index"],
                "state": one["state"],
                "machine": one["software"] == MACHINE,
            }
            for one in found
        ]
    except (KeyError, TypeError, AttributeError):
        raise SurveyError("file %s: not complete, expected the node's slice" % path) from None


# -- libvirt -----------------------------------------------------------------------------------------------------------


def _domains(binding, uri):
    if binding is None:
        return {"domains": {}, "no_domains": "libvirt is not installed"}
    try:
        domains = hypervisor.connect(uri, CONNECT_SECONDS).listAllDomains()
        found = dict(_read(binding, domain) for domain in domains)
    except hypervisor.HypervisorError as error:
        return {"domains": {}, "no_domains": str(error)}
    except binding.libvirtError as error:
        return {"domains": {}, "no_domains": "libvirt %s: %s" % (uri, error)}
    found.pop(None, None)
    return {"domains": found, "no_domains": None}


def _read(binding, domain):
    """(name, what is compared); None for the name of one that went while the others were looked at."""
    try:
        form = domain_xml.read(domain.XMLDesc(binding.VIR_DOMAIN_XML_INACTIVE))
        return domain.name(), dict(_domain(form), state=STATES.get(domain.state()[0], "stopped"))
    except binding.libvirtError as error:
        if error.get_error_code() != binding.VIR_ERR_NO_DOMAIN:
            raise
        return None, None


def _domain(form):
    disks = form["disks"].values()
    return {
        "uuid": form["uuid"],
        "uid": _uid_of(form["user"]),
        "disks": [disk["path"] for disk in disks if disk["path"]],
        "backing": [disk["backing"][0] for disk in disks if disk["backing"]],
        "taps": [one["device"] for one in form["interfaces"] if one["kind"] == "tap" and one["device"]],
    }


def _uid_of(label):
    """The number in a label like "+64055:+64055"; None when it has none."""
    user = (label or "").partition(":")[0].lstrip("+")
    return int(user) if user.isdigit() else None


# -- files -------------------------------------------------------------------------------------------------------------


def _slot_files(directory, slots):
    """What lies in var/ of each slot, which is its user's: only names and owners are read, no link is followed."""
    found = []
    for index in slots:
        entries = _entries(os.path.join(directory, "s%03d" % index, "var"))
        disks_first = sorted(entries, key=lambda entry: not is_of_machine(entry.name))
        for entry in disks_first[:SHOWN_FILES]:
            found += _file(entry, slot=index)
    return found


def _data_volumes(folder):
    return [
        file
        for owner in _directories(folder)
        for entry in _entries(owner.path)[:SHOWN_FILES]
        for file in _file(entry, instance=owner.name)
        if not entry.name.startswith(".") or entry.name.endswith(".new")
    ]


def _archives(folder):
    """Of each instance, in a directory for each of its volumes: the archives, finished or not, without their notes."""
    return [
        dict(file, busy=time.time() - entry.stat(follow_symlinks=False).st_mtime < BUSY_SECONDS)
        for owner in _directories(folder)
        for volume in _directories(owner.path)
        for entry in _entries(volume.path)[:SHOWN_FILES]
        for file in _file(entry, instance=owner.name)
        if entry.name.endswith((".qcow2", ".new"))
    ]


def _directories(folder):
    return [entry for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]


def _file(entry, slot=None, instance=None):
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return []
    if not stat.S_ISREG(status.st_mode):
        return []
    path = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
    return [{"path": path, "uid": status.st_uid, "slot": slot, "instance": instance}]


def _unfinished(store):
    found = []
    for entry in _entries(store):
        if entry.name.startswith(PARTIAL) and entry.is_dir(follow_symlinks=False):
            try:
                found.append({"path": entry.path, "busy": not is_free(entry.path)})
            except FileNotFoundError:  # its work is done
                continue
    return found


def _entries(folder):
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


# -- links -------------------------------------------------------------------------------------------------------------


def _links(home):
    nothing = {"taps": [], "members": {}, "steps": [], "elements": {}, "table": None, "unreached": []}
    nothing.update(no_links=None, broken_links=None)
    lacking = [name for name in ("nft", "ip") if not _has(name)]
    if lacking:
        return dict(nothing, no_links="%s is not installed" % lacking[0])
    try:
        node = Node(home, check=True)
        members, live, wanted = node.look()
        steps, present = node.restore(), taps(node.links.read())
    except IsolationError as error:
        return dict(nothing, broken_links=str(error))
    found = _compared(live, wanted, bool(members or present), any(step.startswith("table ") for step in steps))
    return dict(nothing, taps=present, members=members, steps=steps, unreached=node.unreached, **found)


def _compared(live, wanted, needed, differs):
    """What the kernel's tables have and lack."""
    if not needed:
        return {"table": ("rules of no member", "none") if live else None}
    if live is None:
        return {"table": ("not there", "the rules that were written")}
    elements = {}
    for name, elements_wanted in wanted.items():
        there = live.elements.get(name, set())
        if there != elements_wanted:
            elements[name] = {"lacks": elements_wanted - there, "has": there - elements_wanted}
    other = differs and not elements
    return {
        "elements": elements,
        "table": ("other rules than were written", "the rules that were written") if other else None,
    }


def _has(program):
    try:
        get_bin_path(program)
    except ValueError:
        return False
    return True


# -- processes ---------------------------------------------------------------------------------------------------------


def _processes(uids):
    """Those of these users; a process in a container is nobody's here, where its number is another user's."""
    running = {pid: uuid for uuid, pid in hypervisor.emulators().items()}
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            uid = os.stat("/proc/" + name).st_uid
            if uid not in uids or os.readlink("/proc/%s/ns/pid" % name) != os.readlink("/proc/self/ns/pid"):
                continue
            with open("/proc/%s/comm" % name, encoding="utf-8", errors="replace") as file:
                comm = file.read().strip()
            if _has_ended(name):
                continue
        except OSError:  # it ended while it was looked at
            continue
        found.append({"pid": int(name), "name": comm, "uid": uid, "uuid": running.get(int(name))})
    return sorted(found, key=lambda process: process["pid"])


def _has_ended(pid):
    """Whether it only waits to be reaped."""
    with open("/proc/%s/stat" % pid, encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] in "ZX"
