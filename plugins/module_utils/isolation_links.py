# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's end of each member's link: a persistent tap, its addresses, its two host routes, its kernel settings; and
the host routes to members on other nodes.

There is no bridge: each link has two ends, the guest and the host, which routes. The host is 169.254.1.1 and fe80::1 at
all of them, so a guest's configuration is the same wherever it runs, and the tap takes no address of the platform's.

The routes to other nodes have a protocol number and a metric of their own: those of others are neither taken for ours
nor replaced. Several members may want the same one.
"""

from __future__ import annotations

import json
import os
import re

from ansible_collections.clachan.platform.plugins.module_utils.isolation import GATEWAY, GATEWAY6, TAP, IsolationError
from ansible_collections.clachan.platform.plugins.module_utils.isolation_table import call, program

SETTINGS = "/proc/sys/net"
HOST_ADDRESSES = {GATEWAY + "/32": ("scope", "link"), GATEWAY6 + "/64": ("scope", "link", "nodad")}
PROTOCOL = METRIC = "108"
KERNEL = "2"
"""The kernel's own routes; with -N numbers stand for the names that a machine gives to protocols."""
FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
# What a guest says never changes the host: no redirects, no routes or addresses announced, no answers for addresses
# that the host has elsewhere, no packets whose source is not behind this tap (the rules say that too).
TAP_SETTINGS = {
    "ipv4": {
        "accept_redirects": "0", "accept_source_route": "0", "arp_announce": "2", "arp_ignore": "1", "forwarding": "1",
        "proxy_arp": "0", "route_localnet": "0", "rp_filter": "1", "secure_redirects": "0", "send_redirects": "0",
    },
    "ipv6": {
        "accept_ra": "0", "accept_redirects": "0", "accept_source_route": "0", "addr_gen_mode": "1", "autoconf": "0",
        "dad_transmits": "0", "forwarding": "1", "proxy_ndp": "0",
    },
}  # fmt: skip


class Links:
    """Reads what is there, says what differs, and changes that. A step is (what it does, kind, arguments)."""

    def __init__(self):
        self.ip = program("ip", "iproute2")
        self._ways = {}

    def read(self):
        """The interface of each name, with its `routes`; those to other nodes are kept for `ways`."""
        found = {one["ifname"]: dict(one, routes=set()) for one in self._listed("-d", "address", "show")}
        self._ways = {}
        for family in ("-4", "-6"):
            for route in self._listed("-N", family, "route", "show", "table", "main"):
                if route.get("protocol") == PROTOCOL:
                    self._ways[route["dst"]] = route.get("gateway")
                elif route.get("dev") in found and route.get("protocol") != KERNEL:
                    found[route["dev"]]["routes"].add(route["dst"])
        return found

    def _listed(self, *words):
        # one that a failing kernel part leaves out (no IPv6) is printed as nothing at all
        listed = json.loads(call([self.ip, "-j", *words]) or "[]")
        return [one for one in listed if one]

    def forwarding(self):
        """Steps that make the host a router, keeping what it learned from routers itself."""
        steps = []
        for name in FORWARDING:
            if _setting(name) not in (None, "1"):
                steps += self._kept_advertisements() if name.startswith("ipv6") else []
                steps.append(_set(name, "1"))
        return steps

    def _kept_advertisements(self):
        """An interface that takes its routes from advertisements stops when the host forwards, unless it is told 2."""
        folder = os.path.join(SETTINGS, "ipv6", "conf")
        names = [name for name in sorted(os.listdir(folder)) if name not in ("all", "default", "lo")]
        return [_set("ipv6/conf/%s/accept_ra" % n, "2") for n in names if _setting("ipv6/conf/%s/accept_ra" % n) == "1"]

    def present(self, member, uid, found):
        """Steps that make the member's link as it shall be."""
        tap, steps = member["tap"], []
        check_kind(tap, found)
        if found and not _owned(found, member["user"], uid):
            steps.append(_ip("tap %s of another user" % tap, "link", "delete", "dev", tap))
            found = None
        if not found:
            steps.append(_ip("tap %s" % tap, "tuntap", "add", "dev", tap, "mode", "tap", "user", str(uid)))
        steps += self._settings(member, found)
        steps += self._addresses(member, found)
        if not found or "UP" not in found["flags"]:
            steps.append(_ip("tap %s up" % tap, "link", "set", "dev", tap, "up"))
        return steps + self._routes(member, found if found and "UP" in found["flags"] else None)

    def _settings(self, member, found):
        steps = []
        for family, settings in TAP_SETTINGS.items():
            if family == "ipv4" or _setting("ipv6/conf/all/forwarding") is not None:
                for key, value in settings.items():
                    name = "%s/conf/%s/%s" % (family, member["tap"], key)
                    if not found or _setting(name) != value:
                        steps.append(_set(name, value))
        return steps

    def _addresses(self, member, found):
        tap = member["tap"]
        wanted = {one for one in HOST_ADDRESSES if member["ipv6"] or ":" not in one}
        present = {"%s/%d" % (one["local"], one["prefixlen"]) for one in (found or {}).get("addr_info", ())}
        steps = [_gone("address", one, tap) for one in sorted(present - wanted)]
        for one in sorted(wanted - present):
            steps.append(_ip("address %s of %s" % (one, tap), "address", "add", one, "dev", tap, *HOST_ADDRESSES[one]))
        return steps

    def _routes(self, member, found):
        tap = member["tap"]
        wanted = {one for one in (member["ipv4"], member["ipv6"]) if one}
        present = found["routes"] if found else set()
        steps = [_gone("route", one, tap) for one in sorted(present - wanted)]
        for one in sorted(wanted - present):
            steps.append(_ip("route %s of %s" % (one, tap), "route", "replace", one, "dev", tap))
        return steps

    def ways(self, members, newest=None):
        """Steps that make the routes to members on other nodes; and which of those nodes are not reached, with why.

        `newest`: the member that says it last, whose nodes are told; another may still have the former way of a node.
        """
        wanted, steps, refused = _wanted_ways(members, newest), [], {}
        told = {one["address"] for one in newest["remote"]} if newest else wanted.keys()
        unreached = set()
        for address, via in sorted(self._ways.items()):
            if address not in wanted:
                steps.append(_way_gone(address, via))
        for address, vias in sorted(wanted.items()):
            if self._ways.get(address) not in vias:
                via = min(vias)
                if via not in refused:
                    refused[via] = self._refusal(via)
                if refused[via]:
                    if address in told:
                        unreached.add("%s: %s" % (via, refused[via]))
                    if address in self._ways:
                        steps.append(_way_gone(address, self._ways[address]))
                else:
                    words = ("route", "replace", address, "via", via, "proto", PROTOCOL, "metric", METRIC)
                    steps.append(_ip("route %s via %s" % (address, via), *words))
        return steps, sorted(unreached)

    def _refusal(self, via):
        """Why no packet can be handed to that address; None when it is on a network of this machine."""
        try:
            way = self._listed("route", "get", via)[0]
        except IsolationError:
            return "no route"
        if way.get("type") == "local":
            return "is this machine"
        return "not on a network of this machine" if "gateway" in way or re.fullmatch(TAP, way["dev"]) else None

    def absent(self, tap, found):
        """Steps after which nothing of the link is there; its addresses and routes go with it."""
        check_kind(tap, found)
        return [_ip("tap %s delete" % tap, "link", "delete", "dev", tap)] if found else []

    def apply(self, steps):
        """Do the steps in order, with as few calls of `ip` as their kinds allow."""
        batch = []
        for kind, words in (step[1:] for step in steps):
            if kind == "ip":
                batch.append(words)
                continue
            self._batch(batch)
            batch = []
            with open(os.path.join(SETTINGS, words[0]), "w", encoding="ascii") as file:
                file.write(words[1])
        self._batch(batch)

    def _batch(self, batch):
        if batch:
            call([self.ip, "-batch", "-"], "".join(" ".join(words) + "\n" for words in batch))


def _ip(what, *words):
    return what, "ip", words


def _wanted_ways(members, newest):
    wanted = {}
    for member in members:
        for one in member["remote"]:
            wanted.setdefault(one["address"], set()).add(one["via"])
    wanted.update((one["address"], {one["via"]}) for one in (newest or {}).get("remote", ()))
    return wanted


def _way_gone(address, via):
    words = ("route", "delete", address, "proto", PROTOCOL, "metric", METRIC)
    return _ip("route %s via %s delete" % (address, via), *words)


def _gone(kind, value, tap):
    return _ip("%s %s of %s delete" % (kind, value, tap), kind, "delete", value, "dev", tap)


def _set(name, value):
    return "setting net.%s %s" % (name.replace("/", "."), value), "setting", (name, value)


def _setting(name):
    """A kernel setting; None where the kernel has none of that name."""
    try:
        with open(os.path.join(SETTINGS, name), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def check_kind(tap, found):
    """Raises IsolationError when an interface of that name is something else."""
    info = (found or {}).get("linkinfo", {})
    kind = info.get("info_data", {}).get("type") if info.get("info_kind") == "tun" else info.get("info_kind")
    if found and kind != "tap":
        raise IsolationError("interface %s: %s, expected a tap or none of that name" % (tap, kind or "no tap"))


def _owned(found, user, uid):
    data = found["linkinfo"]["info_data"]
    return data.get("persist") and not data.get("multi_queue") and str(data.get("user")) in (user, str(uid))


def is_open(tap):
    """Whether a process, which should be the machine's QEMU, has the tap open."""
    try:
        with open("/sys/class/net/%s/carrier" % tap, encoding="ascii") as file:
            return file.read(1) == "1"
    except OSError:
        return False


def taps(found):
    """The interfaces that are named as ours."""
    return sorted(name for name in found if re.fullmatch(TAP, name))
