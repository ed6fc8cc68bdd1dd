# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How two forms of a domain differ (see domain.py), and which differences a running domain can take.

A difference is named by a dotted path: `cpu.count`, `disks.vdb`, `interfaces`. Pure functions.
"""

from __future__ import annotations

PARTS = ("cpu", "memory", "disks", "console")
"""Parts that differ member by member; the others differ as a whole."""


def differences(before, after):
    """The names of what differs, sorted; a domain's name, and a uuid that nobody asked for, are no difference."""
    found = []
    for key in after:
        if key == "name" or (key == "uuid" and after[key] is None):
            continue
        if key in PARTS:
            members = sorted(set(before[key]) | set(after[key]))
            found += ["%s.%s" % (key, name) for name in members if before[key].get(name) != after[key].get(name)]
        elif before[key] != after[key]:
            found.append(key)
    return sorted(found)


class Live:
    """What is to be done to a domain that runs: now (`vcpus`, `pins`, `plug`, `unplug`) and at its next start."""

    def __init__(self, running, after):
        self.restart, self.plug, self.unplug, self.pins = [], {}, {}, {}
        self.vcpus = None
        for name in differences(_comparable(running, after), after):
            self._sort(name, running, after)

    @property
    def anything(self):
        """Whether something is to be done now."""
        return bool(self.vcpus or self.pins or self.plug or self.unplug)

    def _sort(self, name, running, after):
        part, _dot, member = name.partition(".")
        if name == "cpu.count" and running["cpu"]["count"] < after["cpu"]["count"] <= running["cpu"]["maximum"]:
            self.vcpus = after["cpu"]["count"]
        elif name == "cpu.pinning" and set(running["cpu"]["pinning"]) <= set(after["cpu"]["pinning"]):
            self.pins = after["cpu"]["pinning"]
        elif part == "disks" and member != after["boot"] and member not in running["disks"]:
            self.plug[member] = after["disks"][member]
        elif part == "disks" and member != running["boot"] and member not in after["disks"]:
            self.unplug[member] = running["disks"][member]
        else:
            self.restart.append(name)


def _comparable(running, after):
    """The running form without what libvirt learned from QEMU: more CPU features, the balloon's size."""
    cpu, asked = dict(running["cpu"]), after["cpu"]
    if asked["model"] == "host-model":  # libvirt replaces it by the model that it found
        cpu["model"], cpu["features"] = asked["model"], asked["features"]
    elif set(asked["features"]) <= set(cpu["features"]):
        cpu["features"] = asked["features"]
    memory = dict(running["memory"], mib=after["memory"]["mib"])
    return dict(running, cpu=cpu, memory=memory)


def balloon_size(before, running, after):
    """The size in MiB that the balloon of a running domain is to be set to; None when nothing was changed.

    before: the definition as it was. The balloon's real size is the guest's affair, so it is never compared.
    """
    size = after["memory"]["mib"]
    if before["memory"]["mib"] == size or not running["memory"]["balloon"]:
        return None
    return size if size <= running["memory"]["maximum_mib"] else None


def shown(form):
    """A form as a difference shows it: nested dicts, no empty values; {} for nothing."""
    if form is None:
        return {}
    return {key: value for key, value in form.items() if value not in (None, [], {})}
