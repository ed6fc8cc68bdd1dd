# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of isolation, as nft text: the same ones whoever is on the node; only the elements of the sets differ.

Rules are for interfaces `cv*` alone; all else passes, to whatever other tables say. They drop early (before the filters
of firewalld, libvirt and iptables, which may drop more: an accept here is not one there). A tap without a member has no
element in any set, so nothing passes it: taps are closed from their first moment.

Not a table `bridge` or `netdev`, as there is no bridge, and a netdev chain names devices that must exist before it and
goes with them; ARP, which `inet` does not see, has a table of the family `arp`.
"""

from __future__ import annotations

import hashlib

NAME = "clachan"
FAMILIES = ("inet", "arp")
SETS = {
    "source4": ("inet", ("ifname", "ether_addr", "ipv4_addr")),
    "source6": ("inet", ("ifname", "ether_addr", "ipv6_addr")),
    "peers": ("inet", ("ifname", "ifname")),
    "remote4": ("inet", ("ifname", "ipv4_addr")),
    "remote6": ("inet", ("ifname", "ipv6_addr")),
    "ways4": ("inet", ("ifname", "ipv4_addr", "ipv4_addr")),
    "ways6": ("inet", ("ifname", "ipv6_addr", "ipv6_addr")),
    "relay": ("inet", ("ifname", "inet_service")),
    "internet": ("inet", ("ifname",)),
    "networks4": ("inet", ("ifname", "ipv4_addr")),
    "networks6": ("inet", ("ifname", "ipv6_addr")),
    "protocols4": ("inet", ("ifname", "ipv4_addr", "inet_proto")),
    "protocols6": ("inet", ("ifname", "ipv6_addr", "inet_proto")),
    "ports4": ("inet", ("ifname", "ipv4_addr", "inet_proto", "inet_service")),
    "ports6": ("inet", ("ifname", "ipv6_addr", "inet_proto", "inet_service")),
    "never4": ("inet", ("ipv4_addr",)),
    "never6": ("inet", ("ipv6_addr",)),
    "special4": ("inet", ("ipv4_addr",)),
    "special6": ("inet", ("ipv6_addr",)),
    "sender": ("arp", ("ifname", "ether_addr", "ipv4_addr")),
}
INTERVALS = {name for name in SETS if name.startswith(("networks", "protocols", "ports", "never", "special"))}
COUNTED = ("flows", "calls", "visits")
"""Sets that the rules fill themselves, by tap: tracked flows, the rate of relay connections, their number."""

_REFUSE = "counter drop"
_ERRORS = "meta l4proto { 1, 58 } ct state related accept"
_NEIGHBOURS = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept"


def _destinations(tap, address, port, allow):
    """What a policy allows: of packets that leave by `daddr` and `dport`, of answers by `saddr` and `sport`."""
    rules = ["ip %s @never4 %s" % (address, _REFUSE), "ip6 %s @never6 %s" % (address, _REFUSE)]
    for version, protocol in ((4, "ip"), (6, "ip6")):
        key = "%s . %s %s" % (tap, protocol, address)
        rules.append("%s @networks%d %s" % (key, version, allow))
        rules.append("%s . meta l4proto @protocols%d %s" % (key, version, allow))
        rules.append("%s . meta l4proto . th %s @ports%d %s" % (key, port, version, allow))
        rules.append("%s @internet %s %s != @special%d %s" % (tap, protocol, address, version, allow))
    return [*rules, _REFUSE]


CHAINS = {
    # A guest is who its tap is: before connection tracking, so that a forged packet leaves no trace. It offers no
    # addresses or routes to others, and asks as nobody only whether an address is free.
    ("inet", "source"): (
        "type filter hook prerouting priority -310",
        [
            'iifname != "cv*" accept',
            "udp sport 67 udp dport 68 " + _REFUSE,
            "udp sport 547 udp dport 546 " + _REFUSE,
            "icmpv6 type { nd-router-advert, nd-redirect } " + _REFUSE,
            "ip6 saddr :: meta l4proto != 58 " + _REFUSE,
            "ip6 saddr :: icmpv6 type != nd-neighbor-solicit " + _REFUSE,
            "iifname . ether saddr . ip saddr @source4 accept",
            "iifname . ether saddr . ip6 saddr @source6 accept",
            _REFUSE,
        ],
    ),
    ("inet", "forward"): (
        "type filter hook forward priority -10",
        [
            'iifname "cv*" oifname "cv*" goto between',
            'iifname "cv*" goto leaving',
            'oifname "cv*" goto arriving',
        ],
    ),
    # From tap to tap by membership alone, never by a tracked connection: that may be older than a member.
    ("inet", "between"): ("", ["iifname . oifname @peers goto allowed", _REFUSE]),
    # To another node's member only by that node: were its route gone, the default one would carry it to anybody.
    ("inet", "leaving"): (
        "",
        [
            "iifname . ip daddr . rt ip nexthop @ways4 goto allowed",
            "iifname . ip6 daddr . rt ip6 nexthop @ways6 goto allowed",
            *_destinations("iifname", "daddr", "dport", "goto allowed"),
        ],
    ),
    # From another node's member only where its route leads out. Answers pass as long as the policy still allows to ask.
    ("inet", "arriving"): (
        "",
        [
            "oifname . ip saddr @remote4 fib saddr . iif oif exists accept",
            "oifname . ip6 saddr @remote6 fib saddr . iif oif exists accept",
            _ERRORS,
            "ct state established ct direction reply goto answers",
            _REFUSE,
        ],
    ),
    ("inet", "answers"): ("", _destinations("oifname", "saddr", "sport", "accept")),
    # All guests of a node share one table of connections; one guest must not fill it.
    ("inet", "allowed"): ("", ["ct state new add @flows { iifname ct count over 16384 } " + _REFUSE, "accept"]),
    ("inet", "input"): (
        "type filter hook input priority -10",
        [
            'iifname != "cv*" accept',
            _NEIGHBOURS,
            _ERRORS,
            "ct state established ct direction reply accept",
            "ip daddr 169.254.1.1 iifname . tcp dport @relay goto relaying",
            _REFUSE,
        ],
    ),
    ("inet", "relaying"): (
        "",
        [
            "ct state established accept",
            "tcp flags & (fin | syn | rst | ack) != syn " + _REFUSE,
            "update @calls { iifname limit rate over 100/second burst 200 packets } " + _REFUSE,
            "add @visits { iifname ct count over 512 } " + _REFUSE,
            "accept",
        ],
    ),
    # The host itself may connect to its guests (promises, the operator's way in); other users' slots may not.
    ("inet", "output"): (
        "type filter hook output priority -10",
        [
            'oifname != "cv*" accept',
            "ct state established,related accept",
            _NEIGHBOURS,
            "meta skuid 0 accept",
            _REFUSE,
        ],
    ),
    # Private addresses mean nothing outside; members of a cluster know each other by them. What is rewritten to what
    # it is no other table rewrites.
    ("inet", "disguise"): (
        "type nat hook postrouting priority 95",
        [
            'iifname "cv*" oifname "cv*" accept',
            "iifname . ip daddr @remote4 snat ip to ip saddr",
            "iifname . ip6 daddr @remote6 snat ip6 to ip6 saddr",
            'iifname "cv*" masquerade',
        ],
    ),
    ("arp", "input"): (
        "type filter hook input priority 0",
        ['iifname != "cv*" accept', "iifname . arp saddr ether . arp saddr ip @sender accept", _REFUSE],
    ),
}


def home_chain(home):
    """The chain without rules that says whose table it is: a machine has one, so one home with virtual machines."""
    return "home_" + hashlib.sha256(home.encode()).hexdigest()[:12]


def tables(home):
    """Sets without elements, and chains with their rules."""
    return "".join(_table(family, home, CHAINS) for family in FAMILIES)


def _table(family, home, filled):
    lines = ["table %s %s {" % (family, NAME)]
    for name, (where, fields) in SETS.items():
        if where == family:
            interval = " flags interval;" if name in INTERVALS else ""
            lines.append("  set %s { type %s;%s }" % (name, " . ".join(fields), interval))
    if family == "inet":
        lines += ["  set %s { type ifname; size 65535; flags dynamic; }" % name for name in COUNTED]
        lines.append("  chain %s { }" % home_chain(home))
    # a chain stands before those that jump to it only if all are declared first
    for (where, chain), content in CHAINS.items():
        if where == family:
            hook = content[0] and content[0] + "; policy accept;"
            lines.append("  chain %s { %s }" % (chain, hook))
    for (where, chain), content in filled.items():
        if where == family:
            lines += ["  chain %s {" % chain, *("    " + rule for rule in content[1]), "  }"]
    return "\n".join([*lines, "}", ""])


def digest(home):
    return _digest(tables(home))


def shape(home):
    """The digest of chains and sets without their rules."""
    return _digest("".join(_table(family, home, {}) for family in FAMILIES))


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def whole(home, wanted):
    """Everything anew in one transaction, whatever is there now."""
    return removal() + tables(home) + change({}, wanted)


def removal():
    """Remove our tables; a table that is not there is made first, as nft cannot delete it otherwise."""
    return "".join("table %s %s { }\ndelete table %s %s\n" % (family, NAME, family, NAME) for family in FAMILIES)


def again(home):
    """The rules anew, the sets as they are."""
    flushed = ["flush chain %s %s %s" % (family, NAME, chain) for family, chain in CHAINS]
    return "\n".join(flushed) + "\n" + tables(home)


def change(present, wanted):
    """Elements to take out and to put in, set by set; empty when nothing differs."""
    lines = []
    for name in SETS:
        for verb, found in (
            ("delete", present.get(name, set()) - wanted[name]),
            ("add", wanted[name] - present.get(name, set())),
        ):
            if found:
                family, fields = SETS[name]
                listed = ", ".join(sorted(_element(fields, one) for one in found))
                lines.append("%s element %s %s %s { %s }\n" % (verb, family, NAME, name, listed))
    return "".join(lines)


def _element(fields, values):
    return " . ".join('"%s"' % value if fields[i] == "ifname" else value for i, value in enumerate(values))
