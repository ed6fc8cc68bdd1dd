# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cluster requests: its members, virtual machines, and inside them a probe of the network and the software."""

from __future__ import annotations

DOCUMENTATION = r"""
name: cluster_requests
short_description: The child requests of a cluster
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives the complete set of child requests of an instance of the software P(clachan.platform.cluster#role), by name.
  - Members are V(m1) to V(mN), each an instance of the software P(clachan.platform.vm#role). A software in a member is
    named V(<name>_m1) and placed inside it.
  - Each member has a probe, V(probe_m1) and so on, an instance of the software P(clachan.platform.probe#role) that is
    placed inside it. It asks whether the other members answer, those that have joined, and whether the canary of its
    host is silent.
  - When image or flavour change, a member that still has the old ones is requested with them until its turn comes. At
    most C(at_once) members are away for that reason at a time; those that do not run have their turn at once.
options:
  _input:
    description: The variable C(clachan_instance) of the cluster.
    type: dict
    required: true
  wanted:
    description: The cluster's options, without their prefix.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Describe the cluster
  clachan.platform.slot:
    requests: "{{ clachan_instance | clachan.platform.cluster_requests(wanted) }}"
"""

RETURN = r"""
_value:
  description: Requests by name, for the option RV(ignore:requests) of the module P(clachan.platform.slot#module).
  type: dict
"""

from ansible.errors import AnsibleFilterError

BUILT = ("image", "cpus", "memory_mib", "disk_mib")
"""What a member is made of: a change of one makes its system anew or restarts it, so it waits for its turn."""
PROBE = "probe"
"""The first part of the probes' names."""
HEARD = ("converging", "started", "failing", "failed")
"""States of a probe whose member's agent has spoken. From then on the others shall reach the member, also while it is
away: their parameters change when members come and go, and not with every restart."""
GATEWAYS = ("169.254.1.1", "fe80::1")
"""Where a member sees its host."""


def cluster_requests(instance, wanted):
    members = ["m%d" % number for number in range(1, wanted["size"] + 1)]
    built = dict(wanted["flavour"], image=wanted["image"])
    present = roll(members, instance["children"], built, wanted["at_once"])
    together = wanted["placement"] == "together"
    home = _published(instance["children"], members[0]).get("host") if together else None
    requests = {}
    for member in members:
        if together and member != members[0] and home is None:
            continue  # the first one decides where
        placement = {"node": home} if home and member != members[0] else {"spread": wanted["placement"] == "spread"}
        requests[member] = {
            "software": "clachan.platform.vm",
            "parameters": dict(_parameters(present[member], wanted), **_saved(instance, member, members, wanted)),
            "placement": placement,
        }
        requests["%s_%s" % (PROBE, member)] = _probe(instance, member, members)
    for software in wanted["software"]:
        requests.update(_inside(instance["path"], software, members))
    return requests


def roll(members, children, built, at_once):
    """Member -> what it is to be made of now: the new, or what it has until its turn comes."""
    running = {name for name in members if children.get(name, {}).get("state") == "started"}
    old = {name: _built(children, name) for name in members}
    behind = [name for name in members if old[name] is not None and old[name] != built]
    away = sum(name in children and name not in running for name in members)
    present = dict.fromkeys(members, built)
    for name in behind:
        if name not in running:
            continue  # it serves nobody now: it takes the new at once
        if away < at_once:
            away += 1
        else:
            present[name] = old[name]
    return present


def _built(children, name):
    """What a member says that it is made of; None when it has said nothing yet."""
    said = _published(children, name)
    return {key: said[key] for key in BUILT} if all(key in said for key in BUILT) else None


def _published(children, name):
    return children.get(name, {}).get("published", {})


def _parameters(built, wanted):
    parameters = {"vm_%s" % key: built[key] for key in BUILT}
    for key in ("volumes", "network", "destinations", "authorized_keys"):
        parameters["vm_%s" % key] = wanted[key]
    return parameters


def _saved(instance, member, members, wanted):
    """The backups, alike for all members, and what this one is brought back to."""
    found = {"vm_backups": wanted["backups"]} if wanted.get("backups") else {}
    if wanted.get("delete_backups"):
        found["vm_delete_backups"] = True
    back = wanted.get("restore")
    if back and "m%s" % back.get("member") not in members:
        raise AnsibleFilterError(
            "restore of %s: member %s, expected 1 to %d" % (instance["path"], back.get("member"), len(members))
        )
    if back and "m%s" % back["member"] == member:
        found["vm_restore"] = {key: back[key] for key in ("volume", "backup", "word") if back.get(key)}
    return found


def _probe(instance, member, members):
    """The instance inside a member that asks whether it reaches the others, and nobody else."""
    children = instance["children"]
    joined = [
        one for one in members if one != member and children.get("%s_%s" % (PROBE, one), {}).get("state") in HEARD
    ]
    reached = [
        {"name": one, "address": _published(children, one)[key]}
        for one in joined
        for key in ("address", "address6")
        if _published(children, one).get(key)
    ]
    port = _published(children, member).get("canary")
    silent = [{"name": "the host of %s" % member, "address": one, "port": port} for one in GATEWAYS if port]
    return {
        "software": "clachan.platform.probe",
        "parameters": {"probe_reached": reached, "probe_silent": silent},
        "placement": {"inside": "%s.%s" % (instance["path"], member)},
    }


def _inside(path, software, members):
    """The instances of one software, each inside its member."""
    if software["name"] == PROBE:
        raise AnsibleFilterError(
            "software %s of %s: the name of the cluster's own probes, expected another" % (software["name"], path)
        )
    numbers = software.get("members") or range(1, len(members) + 1)
    for number in numbers:
        if not 1 <= number <= len(members):
            raise AnsibleFilterError(
                "software %s of %s: member %d, expected 1 to %d" % (software["name"], path, number, len(members))
            )
    return {
        "%s_m%d" % (software["name"], number): {
            "software": software["software"],
            "type": software.get("type") or "main",
            "parameters": software.get("parameters") or {},
            "placement": {"inside": "%s.m%d" % (path, number)},
        }
        for number in numbers
    }


class FilterModule:
    def filters(self):
        return {"cluster_requests": cluster_requests}
