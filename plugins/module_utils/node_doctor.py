# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on a node for virtual machines, compared with what its instances say. Nothing here touches the machine.

A finding is {`kind`, `name`, `ok`, `found`, `expected`}. Where all of a kind is well and there is none of it, one
finding says so, so that nobody takes what was not looked at for what is well.

`node_survey` gives what was seen:

`slots`: {index: {`user`, `uid` (None: there is no such user)}}
`instances`: [{`path`, `id`, `index` of the slot, `state` that is wanted, `machine`: whether it is one}]
`domains`: {name: {`uuid`, `state`, `uid`, `disks` (paths), `backing` (paths), `taps`}}; `no_domains`: why none was seen
`files`: [{`path`, `uid`, `slot` (index) or `instance` (path): where it lies}], of backups with `busy`: whether it is
being written; `missing`: paths that domains need
`unfinished`: [{`path`, `busy`}] of the image store
`taps`: names; `members`: {tap: {`user`, `cluster`, ...}} as recorded; `steps`: what would make the machine agree with
them; `elements`: {set: {`lacks`, `has`}} that differ; `table`: (found, expected) when it differs otherwise, else None;
`unreached`: other nodes with members, each with why; `no_links`: why none was seen; `broken_links`: why they could not
be looked at
`processes`: [{`pid`, `name`, `uid`, `uuid` (of a QEMU)}] of the slots' users
"""

from __future__ import annotations

import os
import re

from ansible_collections.clachan.platform.plugins.module_utils import isolation, names

DEFINED = ("started", "stopped")
"""Wanted states in which a machine is complete; else it is about to come or to go, and its things may be there."""
DISK = re.compile(r"system-.*\.qcow2|seed\.iso")
UNFINISHED = re.compile(r"\..*\.new")
SHOWN_ELEMENTS = 20
"""Of one set; a table that somebody emptied has thousands."""


def examine(seen):
    """All findings, kind by kind."""
    kinds = (_Domains, _Volumes, _Images, _Taps, _Rules, _Users)
    return [finding for kind in kinds for finding in kind(seen).findings()]


class _Kind:
    """The findings of one kind; `look` says them."""

    kind = ""

    def __init__(self, seen):
        self.seen, self.listed = seen, []
        self.by_path = {one["path"]: one for one in seen["instances"]}
        self.by_id = {one["id"]: one for one in seen["instances"]}
        self.by_index = {one["index"]: one for one in seen["instances"]}
        self.machines = [one for one in seen["instances"] if one["machine"] and one["state"] in DEFINED]

    def findings(self):
        self.look()
        return sorted(self.listed, key=lambda one: (one["name"] != "", one["name"]))

    def _say(self, ok, name, found, expected=""):
        one = {"kind": self.kind, "name": name, "ok": ok, "found": found, "expected": expected}
        self.listed.append(one)

    def _wrong(self, name, found, expected):
        self._say(False, name, found, expected)

    def _none(self, why=None):
        """When nothing was said of this kind, say that there is none."""
        if not self.listed:
            self._say(True, "", "none" + (": " + why if why else ""))

    def _slot(self, instance):
        return self.seen["slots"].get(instance["index"], {"user": "of no slot", "uid": None})

    def _slot_of(self, uid):
        """The slot whose user has this uid; None when it is no slot's."""
        slots = self.seen["slots"].values()
        return next((slot for slot in slots if uid is not None and slot["uid"] == uid), None)

    def _named(self, uid):
        slot = self._slot_of(uid)
        return "user %s" % (slot["user"] if slot else uid)

    def _is_of_another(self, file, one):
        if file["uid"] == self._slot(one)["uid"]:
            return False
        self._wrong(file["path"], self._named(file["uid"]), "user %s" % self._slot(one)["user"])
        return True


class _Domains(_Kind):
    kind = "domain"

    def look(self):
        for name, domain in self.seen["domains"].items():
            self._one_domain(name, domain)
        if self.seen["no_domains"] and self.machines:
            self._wrong("", self.seen["no_domains"], "libvirt, as there are machines")
        for one in self.machines if not self.seen["no_domains"] else ():
            if not any(one in self._owners(name, domain) for name, domain in self.seen["domains"].items()):
                self._wrong(one["path"], "no domain", "a domain that is %s" % one["state"])
        self._none(self.seen["no_domains"])

    def _owners(self, name, domain):
        return [one for one in (self.by_id.get(domain["uuid"]), self.by_path.get(name)) if one]

    def _one_domain(self, name, domain):
        owners = self._owners(name, domain)
        if not owners and not self._is_ours(name, domain):
            self._say(True, name, "%s, not of this platform" % domain["state"])
        elif not owners:
            self._wrong(name, "%s, %s" % (domain["state"], domain["uuid"]), "none: no instance has this name or id")
        else:
            wrong = list(self._differences(name, domain, owners[0]))
            for found, expected in wrong:
                self._wrong(name, found, expected)
            if not wrong:
                self._say(True, name, domain["state"])

    def _is_ours(self, name, domain):
        """Whether it is one that this platform makes; an operator may have others."""
        named = re.fullmatch(r"%s(\.%s)+" % (names.NAME, names.NAME), name)
        return bool(named or self._slot_of(domain["uid"]) or _taps(domain["taps"]))

    def _differences(self, name, domain, one):
        if name != one["path"]:
            yield "the id of %s" % one["path"], "the name %s" % one["path"]
        if domain["uuid"] != one["id"]:
            yield "id %s" % domain["uuid"], "id %s" % one["id"]
        if not one["machine"]:
            yield domain["state"], "none: this instance is no machine"
        if domain["uid"] != self._slot(one)["uid"]:
            yield self._named(domain["uid"]), "user %s" % self._slot(one)["user"]
        if one["state"] in DEFINED and domain["state"] != one["state"]:
            yield domain["state"], one["state"]
        others = [tap for tap in domain["taps"] if tap != "cv%d" % one["index"]]
        if others:
            yield "link %s" % ", ".join(others), "link cv%d" % one["index"]


class _Volumes(_Kind):
    kind = "volume"

    def look(self):
        used = {path: name for name, domain in self.seen["domains"].items() for path in domain["disks"]}
        for file in self.seen["files"]:
            if file["slot"] is not None:
                self._slot_file(file, used)
            elif "busy" in file:
                self._archive(file, file["instance"])
            else:
                self._data_volume(file, used)
        for path in sorted(set(self.seen["missing"]) & set(used)):
            self._wrong(path, "nothing", "the disk of domain %s" % used[path])
        self._none()

    def _slot_file(self, file, used):
        path, one = file["path"], self.by_index.get(file["slot"])
        if one is None:
            self._wrong(path, "a file in a free slot", "none")
        elif one["machine"] and (path in used or is_of_machine(os.path.basename(path))):
            idle = path not in used and one["path"] in self.seen["domains"] and one["state"] in DEFINED
            if self._is_unfinished(path, one["path"]) or self._is_of_another(file, one):
                return
            if idle and DISK.fullmatch(os.path.basename(path)):
                self._wrong(path, "a disk that no domain has", "none, or a disk of %s" % one["path"])
            else:
                self._say(True, path, "of %s" % one["path"])

    def _data_volume(self, file, used):
        path, one = file["path"], self.by_path.get(file["instance"])
        if self._is_unfinished(path, file["instance"]):
            return
        if one is None:
            self._say(True, path, "data kept: instance %s is no more" % file["instance"])
        elif path not in used or not self._is_of_another(file, one):
            self._say(True, path, "of %s" % one["path"])

    def _archive(self, file, owner):
        if not UNFINISHED.fullmatch(os.path.basename(file["path"])):
            self._say(True, file["path"], "a backup of %s" % owner)
        elif file["busy"]:
            self._say(True, file["path"], "a backup of %s that is being made" % owner)
        else:
            self._wrong(file["path"], "a backup half made", "none: vm_delete_backups of %s removes it" % owner)

    def _is_unfinished(self, path, owner):
        if UNFINISHED.fullmatch(os.path.basename(path)):
            self._wrong(path, "a file half made", "none: the next run of %s ends it" % owner)
            return True
        return False


class _Images(_Kind):
    kind = "image"

    def look(self):
        used = {path: name for name, domain in self.seen["domains"].items() for path in domain["backing"]}
        for path, name in used.items():
            if path in self.seen["missing"]:
                self._wrong(path, "nothing", "the image of domain %s" % name)
            else:
                self._say(True, path, "an image of machines")
        for one in self.seen["unfinished"]:
            if one["busy"]:
                self._say(True, one["path"], "work that goes on")
            else:
                self._wrong(one["path"], "work that was cut off", "none: the next work on the store removes it")
        self._none("no machine is made from one")


class _Taps(_Kind):
    kind = "tap"

    def look(self):
        members, taps = self.seen["members"], self.seen["taps"]
        wanted = {"cv%d" % one["index"]: one for one in self.machines}
        for tap in sorted(set(members) | set(taps) | set(wanted)):
            wrong = list(self._lacks(tap, members.get(tap), wanted.get(tap)))
            for found, expected in wrong:
                self._wrong(tap, found, expected)
            if not wrong:
                self._say(True, tap, "of cluster %s" % members[tap]["cluster"])
        self._none(self.seen["no_links"])

    def _lacks(self, tap, member, machine):
        """(found, expected) for each thing that is wrong."""
        one = self.by_index.get(int(tap[2:]))
        if member is None:
            yield ("no link", "a link of %s" % machine["path"]) if machine else ("a tap", "none: no member is at it")
            return
        if one is None or not one["machine"]:
            yield "a member of cluster %s" % member["cluster"], "none: no machine is in this slot"
            return
        cluster = ".".join(one["path"].split(".")[:2])
        if member["cluster"] != cluster:
            yield "a member of cluster %s" % member["cluster"], "of cluster %s" % cluster
        if member["user"] != self._slot(one)["user"]:
            yield "user %s" % member["user"], "user %s" % self._slot(one)["user"]
        for step in self.seen["steps"]:
            if step == "tap " + tap:
                yield "no tap", "a tap of user %s" % member["user"]
            elif tap in self.seen["taps"] and _is_of(tap, step):
                yield "another link than declared", "this step: %s" % step


class _Rules(_Kind):
    kind = "rule"

    def look(self):
        if self.seen["broken_links"]:
            self._wrong("", self.seen["broken_links"], "")
        if self.seen["no_links"] and self.machines:
            self._wrong("", self.seen["no_links"], "nftables, as there are machines")
        for name, differing in sorted(self.seen["elements"].items()):
            for element in sorted(differing["lacks"])[:SHOWN_ELEMENTS]:
                self._wrong("set " + name, "an element is not there", " ".join(element))
            for element in sorted(differing["has"])[:SHOWN_ELEMENTS]:
                self._wrong("set " + name, " ".join(element), "no such element")
        if self.seen["table"]:
            self._wrong("table inet clachan", *self.seen["table"])
        for step in self.seen["steps"]:
            if not step.startswith("table ") and not any(_is_of(tap, step) for tap in self.seen["members"]):
                self._wrong("machine", "not as declared", "this step: %s" % step)
        for text in self.seen["unreached"]:
            self._wrong("way to members elsewhere", text, "a node on a network of this machine")
        if not self.listed and self.seen["members"]:
            self._say(True, "table inet clachan", "as declared, for %d members" % len(self.seen["members"]))
        self._none(self.seen["no_links"])


class _Users(_Kind):
    kind = "user"

    def look(self):
        running = {domain["uuid"] for domain in self.seen["domains"].values() if domain["state"] != "stopped"}
        for index, slot in self.seen["slots"].items():
            one, name = self.by_index.get(index), slot["user"]
            processes = [process for process in self.seen["processes"] if process["uid"] == slot["uid"]]
            strange = [process for process in processes if one is None or process["uuid"] not in running | {None}]
            for process in strange:
                what = "runs domain %s, which libvirt does not run" % process["uuid"] if one else process["name"]
                expected = "none" if one else "none: its slot is free"
                self._wrong(name, "process %d %s" % (process["pid"], what), expected)
            if slot["uid"] is None:
                self._wrong(name, "no such user", "a user of this machine, as it is a slot's")
            elif processes and not strange:
                self._say(True, name, "%d processes of %s" % (len(processes), one["path"]))
        self._none()


def is_of_machine(name):
    """Whether a file of this name in var/ is a disk of a machine, or one half made."""
    return bool(DISK.fullmatch(name) or UNFINISHED.fullmatch(name))


def _taps(devices):
    return [device for device in devices if device and re.fullmatch(isolation.TAP, device)]


def _is_of(tap, step):
    return re.search(r"\b%s\b" % tap, step) is not None
