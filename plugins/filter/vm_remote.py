# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The members of a cluster on other nodes, as the module isolation takes them, and those that cannot be reached."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vm_remote
short_description: The ways to the members of a cluster on other nodes
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives each address of each member the address of its node that is of the same family.
options:
  _input:
    description: The members, as C(clachan_instance.remote).
    type: list
    elements: dict
    required: true
  node:
    description: The name of the node that this is done for.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Link a virtual machine with its cluster on other nodes
  clachan.platform.isolation:
    tap: cv3
    remote: "{{ (clachan_instance.remote | clachan.platform.vm_remote(clachan_instance.node)).members }}"
"""

RETURN = r"""
_value:
  description: C(members), a list of C(address) and C(via), and C(missing), what cannot be reached, as texts.
  type: dict
"""


def vm_remote(remote, node):
    members, missing = [], {}
    for one in remote:
        ways = {":" in link: link for link in one["links"]}
        for family in ("ipv4", "ipv6"):
            via = ways.get(family == "ipv6")
            if via is not None:
                members.append({"address": one[family], "via": via})
            else:
                missing.setdefault(one["node"], set()).add(family.replace("ip", "IP"))
    said = "no %s to the members on %s: %s or %s has no such link address"
    told = [said % (" and ".join(sorted(found)), other, node, other) for other, found in sorted(missing.items())]
    return {"members": members, "missing": told}


class FilterModule:
    def filters(self):
        return {"vm_remote": vm_remote}
