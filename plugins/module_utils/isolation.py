# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Isolation of virtual machines on a node: who reaches whom, as sets of elements. Nothing here touches the machine.

A *member* is a virtual machine of a cluster, at its own tap `cv<slot>`. Members of one cluster reach each other; what
else one reaches is its *policy*: `internal` (nothing), `internet` (public addresses), or a list of destinations. Its
*remote* are members of its cluster on other nodes, each by its address and *via* an address of its node. *Reserved*
networks are never reached by a policy: the platform's own addresses and what the operator adds. The *relay* is the way
to the controller: one TCP port of 169.254.1.1, another one for each member.

isolation_rules.py has the rules that read the sets, isolation_table.py puts them into the kernel, isolation_links.py
makes the taps, isolation_node.py keeps the members' records and does it all in an order that never leaves a gap.
"""

from __future__ import annotations

import ipaddress
import re

from ansible_collections.clachan.platform.plugins.module_utils import names

GATEWAY = "169.254.1.1"
GATEWAY6 = "fe80::1"
RESERVED = ["10.0.0.0/8", "fd00::/8"]
"""Where platforms have their addresses; used until the node's role says which are this platform's."""
TAP = r"cv(0|[1-9][0-9]{0,3})"
FORMAT = 1
PROTOCOLS = {"tcp": ("6", "6"), "udp": ("17", "17"), "icmp": ("1", "58")}
"""A protocol's number in IPv4 and in IPv6."""

# Never a destination: what is no host of a network, tunnels that would hide an IPv4 address, and the addresses at
# which clouds answer questions about the machine that runs them, where they are not link-local.
NEVER = [
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "100.100.100.200/32", "168.63.129.16/32",
    "192.0.0.192/32", "::/16", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fd00:ec2::254/128",
    "fe80::/9", "ff00::/8",
]  # fmt: skip
# Never a way to another node: what is no host of a network.
NO_WAY = ["0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/8", "fe80::/10", "ff00::/8"]
# Not the internet: IANA's special-purpose registries; of IPv6 only 2000::/3 is public at all.
SPECIAL = [
    "10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "::/3", "2001:db8::/32", "3fff::/20", "4000::/2", "8000::/1",
]  # fmt: skip


class IsolationError(Exception):
    """What is wrong, as "<what> <which>: <value>, expected <what>"."""


def member(given):
    """A member as its record has it, from what the module was given; raises IsolationError."""
    cluster = given["cluster"]
    if not isinstance(cluster, str) or not re.fullmatch(r"%s\.%s" % (names.NAME, names.NAME), cluster):
        raise IsolationError("cluster: %s, expected <tenant>.<root instance>" % _shown(cluster))
    tap = check_tap(given["tap"])
    user = given["user"]
    if not isinstance(user, str) or not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise IsolationError("user of tap %s: %s, expected the name of a unix user" % (tap, _shown(user)))
    port = given["relay_port"]
    if not isinstance(port, int) or isinstance(port, bool) or not 1024 <= port <= 65535:
        raise IsolationError("relay_port of tap %s: %s, expected 1024 to 65535" % (tap, _shown(port)))
    return {
        "format": FORMAT,
        "tap": tap,
        "cluster": cluster,
        "user": user,
        "mac": _mac(tap, given["mac"]),
        "ipv4": _address(tap, "ipv4", given["ipv4"]),
        "ipv6": _address(tap, "ipv6", given["ipv6"]) if given.get("ipv6") else None,
        "relay_port": port,
        "policy": policy(tap, given["policy"]),
        "remote": _remote(tap, given.get("remote") or []),
    }


def check_tap(tap):
    if not isinstance(tap, str) or not re.fullmatch(TAP, tap):
        raise IsolationError("tap: %s, expected cv<index of the slot>" % _shown(tap))
    return tap


def _mac(tap, mac):
    mac = mac.lower() if isinstance(mac, str) else mac
    if not isinstance(mac, str) or not re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", mac):
        raise IsolationError("mac of tap %s: %s, expected one host's, as 52:54:00:12:34:56" % (tap, _shown(mac)))
    return mac


def _address(tap, what, text, never=tuple(NEVER)):
    versions = {"ipv4": (4,), "ipv6": (6,)}.get(what, (4, 6))
    try:
        address = ipaddress.ip_address(text if isinstance(text, str) and "%" not in text else "")
    except ValueError:
        address = None
    if address is None or address.version not in versions or _inside(address, never):
        raise IsolationError("%s of tap %s: %s, expected the address of a host" % (what, tap, _shown(text)))
    return str(address)


def _remote(tap, given):
    found = {}
    for one in given:
        if not isinstance(one, dict) or set(one) != {"address", "via"}:
            raise IsolationError("remote of tap %s: %s, expected address and via" % (tap, _shown(one)))
        address = _address(tap, "address of a remote", one["address"])
        via = _address(tap, "via of a remote", one["via"], NO_WAY)
        if address in found or (":" in address) != (":" in via):
            raise IsolationError(
                "remote of tap %s: %s via %s, expected each address once and both of one family" % (tap, address, via)
            )
        found[address] = via
    return [{"address": address, "via": found[address]} for address in sorted(found)]


def _inside(address, networks):
    found = (ipaddress.ip_network(one) for one in networks)
    return any(address in network for network in found if network.version == address.version)


def policy(tap, given):
    """`internal`, `internet`, or the list of destinations in one form and order; raises IsolationError."""
    if given in ("internal", "internet"):
        return given
    if not isinstance(given, list):
        raise IsolationError("policy of tap %s: %s, expected internal, internet or a list" % (tap, _shown(given)))
    found = {_destination(tap, one) for one in given}
    listed = sorted(found, key=lambda one: (one[0], one[1] or "", one[2] or 0))
    return [{"cidr": cidr, "protocol": protocol, "port": port} for cidr, protocol, port in listed]


def _destination(tap, given):
    if not isinstance(given, dict) or not set(given) <= {"cidr", "protocol", "port"}:
        raise IsolationError(
            "destination of tap %s: %s, expected cidr and, when limited, protocol and port" % (tap, _shown(given))
        )
    protocol, port = given.get("protocol"), given.get("port")
    if protocol is not None and (not isinstance(protocol, str) or protocol not in PROTOCOLS):
        raise IsolationError(
            "protocol of a destination of tap %s: %s, expected tcp, udp or icmp" % (tap, _shown(protocol))
        )
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535):
        raise IsolationError("port of a destination of tap %s: %s, expected 1 to 65535" % (tap, _shown(port)))
    if port is not None and protocol not in ("tcp", "udp"):
        raise IsolationError(
            "port of a destination of tap %s: %d with protocol %s, expected tcp or udp" % (tap, port, protocol)
        )
    return str(network(given.get("cidr"), "cidr of a destination of tap %s" % tap)), protocol, port


def network(text, what):
    try:
        return ipaddress.ip_network(text if isinstance(text, str) and "%" not in text else "")
    except ValueError:
        raise IsolationError("%s: %s, expected a network as 192.0.2.0/24" % (what, _shown(text))) from None


def _shown(value):
    """Anybody's text in an error: short and on one line."""
    return repr(value)[:80]


def check_apart(new, members):
    """Two members never have the same address, port or MAC; raises IsolationError."""
    for other in members:
        if other["tap"] == new["tap"]:
            continue
        for key in ("mac", "ipv4", "ipv6", "relay_port"):
            if new[key] is not None and new[key] == other[key]:
                raise IsolationError(
                    "%s of tap %s: %s, expected another than tap %s has" % (key, new["tap"], new[key], other["tap"])
                )


def link_local(mac):
    """The address that a guest's kernel makes of its MAC (RFC 4291, modified EUI-64)."""
    raw = bytes(int(part, 16) for part in mac.split(":"))
    tail = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + tail))


def elements(members, reserved):
    """Set's name -> its elements, each a tuple of fields in nft's own spelling."""
    members = list(members)
    sets = {
        "source4": set(), "source6": set(), "sender": set(), "peers": set(), "remote4": set(), "remote6": set(),
        "ways4": set(), "ways6": set(), "relay": set(), "internet": set(), "networks4": set(), "networks6": set(),
        "protocols4": set(), "protocols6": set(), "ports4": set(), "ports6": set(),
    }  # fmt: skip
    for one in members:
        _add_sources(sets, one)
        _add_policy(sets, one)
        sets["relay"].add((one["tap"], str(one["relay_port"])))
        for other in one["remote"]:
            version = ipaddress.ip_address(other["address"]).version
            sets["remote%d" % version].add((one["tap"], other["address"]))
            sets["ways%d" % version].add((one["tap"], other["address"], other["via"]))
    for taps in _clusters(members).values():
        sets["peers"].update((one, other) for one in taps for other in taps if one != other)
    sets["never4"], sets["never6"] = _families(NEVER + list(reserved))
    sets["special4"], sets["special6"] = _families(SPECIAL)
    return sets


def _clusters(members):
    taps = {}
    for one in members:
        taps.setdefault(one["cluster"], []).append(one["tap"])
    return taps


def _add_sources(sets, one):
    tap, mac = one["tap"], one["mac"]
    sets["source4"].add((tap, mac, one["ipv4"]))
    # a guest that looks whether its address is free asks as nobody
    sets["sender"].update({(tap, mac, one["ipv4"]), (tap, mac, "0.0.0.0")})  # noqa: S104
    if one["ipv6"]:
        sets["source6"].update((tap, mac, address) for address in (one["ipv6"], link_local(mac), "::"))


def _add_policy(sets, one):
    if one["policy"] == "internet":
        sets["internet"].add((one["tap"],))
    elif one["policy"] != "internal":
        groups = {}
        for destination in one["policy"]:
            groups.setdefault((destination["protocol"], destination["port"]), []).append(destination["cidr"])
        for (protocol, port), cidrs in groups.items():
            for version, networks in zip((4, 6), _families(cidrs)):  # noqa: B905 - Python 3.8
                name, rest = _place(version, protocol, port)
                sets[name].update((one["tap"], *where, *rest) for where in networks)


def _place(version, protocol, port):
    """In which set a destination belongs, and the fields after its network."""
    if protocol is None:
        return "networks%d" % version, ()
    number = PROTOCOLS[protocol][version == 6]
    if port is None:
        return "protocols%d" % version, (number,)
    return "ports%d" % version, (number, str(port))


def _families(cidrs):
    """IPv4's and IPv6's networks as elements, without overlaps: the kernel refuses those in one set."""
    found = [ipaddress.ip_network(cidr) for cidr in cidrs]
    versions = ([one for one in found if one.version == version] for version in (4, 6))
    return [{(_spelled(one),) for one in ipaddress.collapse_addresses(networks)} for networks in versions]


def _spelled(one):
    return str(one.network_address) if one.prefixlen == one.max_prefixlen else str(one)
