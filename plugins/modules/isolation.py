#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: isolation
short_description: Give a virtual machine a network link that reaches its cluster and nothing else
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes the host's end of a virtual machine's link, a persistent tap that belongs to the unix user of its QEMU, with
    the host's addresses and the guest's two host routes; there is no bridge.
  - Writes the rules that say what passes it into nftables' tables C(inet clachan) and C(arp clachan), in one
    transaction. Tables of others, such as firewalld's, are never touched.
  - What was declared is kept in the home, and O(state=restored) makes all of it again, for instance after a boot.
  - Interfaces whose name begins with C(cv) are taken to be taps of virtual machines; what has no member is closed.
  - Makes the host a router (C(net.ipv4.ip_forward), C(net.ipv6.conf.all.forwarding)), after the rules are there.
requirements:
  - The programs C(nft) 1.0.6 and C(ip), Linux 5.15 or newer; root.
options:
  state:
    description:
      - With V(present) the virtual machine at O(tap) is a member, as declared.
      - With V(absent) nothing of it is left.
      - With V(restored) the machine is made to agree with everything that was declared.
    type: str
    choices: [present, absent, restored]
    default: present
  home:
    description:
      - The Clachan home.
      - By default E(CLACHAN_HOME), else C(/var/lib/clachan) for root and C(~/.local/share/clachan) for others.
    type: path
  tap:
    description: Name of the tap, C(cv) and the index of the slot.
    type: str
  cluster:
    description: The cluster that the virtual machine is a member of, as C(<tenant>.<root instance>).
    type: str
  user:
    description: The unix user that QEMU runs as.
    type: str
  mac:
    description: The guest's hardware address.
    type: str
  ipv4:
    description: The guest's address.
    type: str
  ipv6:
    description: The guest's address; without one it has no IPv6.
    type: str
  relay_port:
    description: The TCP port of 169.254.1.1 at which the guest reaches the controller.
    type: int
  policy:
    description:
      - What the guest reaches besides its cluster and the relay.
      - V(internal) is nothing, V(internet) is every public address.
      - Otherwise a list of destinations, each with C(cidr) and, when it is limited, C(protocol) (V(tcp), V(udp) or
        V(icmp)) and C(port).
      - Neither reaches O(reserved) networks, this machine, link-local and metadata addresses, or other guests.
    type: raw
    default: internal
  remote:
    description:
      - Members of the cluster on other nodes. Each is reached with its own address, by a host route of the protocol
        number 108, which goes with the last member of this machine that wants it.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: The member's address, IPv4 or IPv6.
        type: str
        required: true
      via:
        description: The address of its node, of the same family and on a network of this machine.
        type: str
        required: true
  reserved:
    description:
      - Networks that no policy reaches, that is the platform's own addresses and what the operator adds.
      - What was given is kept for all members of this machine; at first C(10.0.0.0/8) and C(fd00::/8).
    type: list
    elements: str
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Shows the member as declared before and after, and what changes on the machine.
    support: full
"""

EXAMPLES = r"""
- name: Link a virtual machine
  clachan.platform.isolation:
    tap: cv3
    cluster: acme.web
    user: clachan_003
    mac: "52:54:00:12:34:56"
    ipv4: 10.77.16.19
    ipv6: fd12:3456:789a:1::13
    relay_port: 20060
    policy:
      - cidr: 192.0.2.0/24
        protocol: tcp
        port: 443
    remote:
      - address: 10.77.32.16
        via: 198.51.100.7

- name: Remove it
  clachan.platform.isolation:
    tap: cv3
    state: absent

- name: Make all links again after a boot
  clachan.platform.isolation:
    state: restored
"""

RETURN = r"""
changes:
  description: What was changed, in order.
  returned: success
  type: list
  elements: str
  sample: [record cv3, table inet clachan, tap cv3]
open:
  description: Whether a machine has the link open.
  returned: O(state=present)
  type: bool
unreached:
  description: Addresses of other nodes by which no member can be reached, and why.
  returned: O(state=present) and O(state=restored)
  type: list
  elements: str
  sample: ["198.51.100.7: not on a network of this machine"]
strays:
  description: Taps without a member. Nothing passes them.
  returned: O(state=restored)
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import isolation, isolation_links
from ansible_collections.clachan.platform.plugins.module_utils.home import home
from ansible_collections.clachan.platform.plugins.module_utils.isolation_node import Node

MEMBER = ("tap", "cluster", "user", "mac", "ipv4", "ipv6", "relay_port", "policy", "remote")
OPTIONS = {
    "state": {"type": "str", "choices": ["present", "absent", "restored"], "default": "present"},
    "home": {"type": "path"},
    "tap": {"type": "str"},
    "cluster": {"type": "str"},
    "user": {"type": "str"},
    "mac": {"type": "str"},
    "ipv4": {"type": "str"},
    "ipv6": {"type": "str"},
    "relay_port": {"type": "int"},
    "policy": {"type": "raw", "default": "internal"},
    "remote": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"address": {"type": "str", "required": True}, "via": {"type": "str", "required": True}},
    },
    "reserved": {"type": "list", "elements": "str"},
}
RULES = {
    "required_if": [
        ("state", "present", ("tap", "cluster", "user", "mac", "ipv4", "relay_port")),
        ("state", "absent", ("tap",)),
    ]
}
ERRORS = (isolation.IsolationError,)


def work(params, check):
    """The module's result; raises IsolationError."""
    if os.geteuid() != 0:
        raise isolation.IsolationError("user: %d, expected root, who alone makes links" % os.geteuid())
    node = Node(os.path.abspath(home(params["home"])), check)
    member = isolation.member(params) if params["state"] == "present" else None
    tap = isolation.check_tap(params["tap"]) if params["state"] != "restored" else None
    before = node.record(tap) if tap else None
    if params["reserved"] is not None:
        node.reserve(params["reserved"])
    if params["state"] == "restored":
        return _result(node.restore(), {}, {}, unreached=node.unreached, strays=node.strays())
    if member:
        changes = node.present(member)
        return _result(changes, before or {}, member, unreached=node.unreached, open=isolation_links.is_open(tap))
    return _result(node.absent(tap), before or {}, {})


def _result(changes, before, after, **more):
    difference = {"before": {"member": before}, "after": {"member": after, "changes": changes}}
    return dict(more, changed=bool(changes), changes=changes, diff=difference)


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True, **RULES)
    os.umask(0o022)
    try:
        module.exit_json(**work(module.params, module.check_mode))
    except ERRORS as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
