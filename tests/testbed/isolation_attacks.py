"""What a guest may send to be taken for somebody else, or for a router: raw frames, and what must come of them.

The attacker is `z1`, with a policy that is open as far as a tenant can open it; its fellow is `z2`, its victims are
`a1` and `a2` of another tenant, the node and the world. Each attack carries a token, which nobody may ever see, and
which the node may not answer; afterwards the node knows the same neighbours and routes as before.
"""

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from testbed import frames
from testbed.host import until
from testbed.isolation_lab import Network, inside, token
from testbed.isolation_matrix import GATEWAY, NODE, PORT, PUBLIC, member

ATTACKER, FELLOW, VICTIM, OTHER = "z1", "z2", "a1", "a2"
ETH_P_ALL = 3


@dataclass
class Attack:
    """One frame, or several; `held` is whether nothing came of it."""

    name: str
    family: str
    frames: Callable[[bytes, str], list[bytes]]
    """Made of the token and of the node's hardware address at the attacker's tap."""
    held: bool = False
    found: str = ""

    def __str__(self) -> str:
        return f"{ATTACKER} attacks: {self.name:<52} {self.family:<5} {'stopped' if self.held else self.found}"


def _udp(name: str, family: int, source: str, mac: str, target: str, **more: int) -> Attack:
    def made(mark: bytes, node: str) -> list[bytes]:
        vlan = more.get("vlan")
        kind, packet = frames.ip(source, target, 17, frames.udp(more.get("by", 1234), more.get("to", PORT), mark))
        return [frames.ethernet(node, mac, kind, packet, vlan)]

    return Attack(name, f"IPv{family}", made)


def _arp(name: str, operation: int, mac: str, address: str, target: str) -> Attack:
    def made(mark: bytes, node: str) -> list[bytes]:
        claim = frames.arp(operation, mac, address, frames.NOBODY, target)
        return [frames.ethernet(goal, mac, 0x0806, claim) for goal in (frames.BROADCAST, node)]

    return Attack(name, "ARP", made)


def _icmp6(name: str, source: str, target: str, message: bytes, mac: str | None = None, hops: int = 255) -> Attack:
    def made(mark: bytes, node: str) -> list[bytes]:
        kind, packet = frames.ip(source, target, 58, message + mark, hops)
        goals = (node, frames.ALL_NODES[0])
        return [frames.ethernet(goal, mac or member(ATTACKER)["mac"], kind, packet) for goal in goals]

    return Attack(name, "IPv6", made)


def attacks() -> list[Attack]:
    return [*_forged_sources(), *_neighbours(), *_offers()]


def _forged_sources() -> list[Attack]:
    me, fellow, victim, other = (member(name) for name in (ATTACKER, FELLOW, VICTIM, OTHER))
    found = []
    for family in (4, 6):
        key = f"ipv{family}"
        mine, own = me[key], me["mac"]
        found += [
            _udp("victim's address, to its fellow", family, victim[key], own, other[key]),
            _udp("victim's address and MAC, to its fellow", family, victim[key], victim["mac"], other[key]),
            _udp("victim's address, to the own fellow", family, victim[key], own, fellow[key]),
            _udp("fellow's address, to the own fellow", family, fellow[key], own, fellow[key]),
            _udp("another MAC, to the own fellow", family, mine, victim["mac"], fellow[key]),
            _udp("an unknown MAC, to the own fellow", family, mine, "52:54:00:ff:ff:ff", fellow[key]),
            _udp("an unknown address, to the own fellow", family, PUBLIC[family], own, fellow[key]),
            _udp("the node's address, to a victim", family, NODE[family], own, victim[key]),
            _udp("the gateway's address, to a victim", family, GATEWAY[family], own, victim[key]),
            _udp("victim's address, to the node", family, victim[key], own, NODE[family], to=123),
            _udp("victim's address, to a public one", family, victim[key], own, PUBLIC[family], to=53),
            _udp("victim's address in VLAN 0, to its fellow", family, victim[key], own, other[key], vlan=0),
            _udp("own address in VLAN 7, to a victim", family, mine, own, victim[key], vlan=7),
        ]
    found.append(_udp("link-local of the victim, to the node", 6, "fe80::5054:ff:fe00:1", me["mac"], NODE[6], to=123))
    found.append(_udp("nobody's address, to the node", 6, "::", me["mac"], NODE[6], to=123))
    found.append(_udp("nobody's address, to the node", 4, "0.0.0.0", me["mac"], NODE[4], to=123))
    found.append(_udp("loopback's address, to the node", 4, "127.0.0.1", me["mac"], NODE[4], to=123))
    found.append(_udp("own address, to the node's loopback", 4, me["ipv4"], me["mac"], "127.0.0.1", to=53))
    return found


def _neighbours() -> list[Attack]:
    me, victim = member(ATTACKER), member(VICTIM)
    mine = "fe80::5054:ff:fe00:4"
    as_victim, at_node = victim["ipv6"], NODE[6]

    def claim(kind: int, address: str) -> bytes:
        return frames.neighbour(kind, address, me["mac"])

    return [
        _arp("claims the victim's address (reply)", 2, me["mac"], victim["ipv4"], GATEWAY[4]),
        _arp("claims the victim's address (announcement)", 1, me["mac"], victim["ipv4"], victim["ipv4"]),
        _arp("claims the gateway's address", 2, me["mac"], GATEWAY[4], GATEWAY[4]),
        _arp("claims the node's address", 2, me["mac"], NODE[4], NODE[4]),
        _arp("asks as the victim", 1, me["mac"], victim["ipv4"], GATEWAY[4]),
        _arp("asks with another MAC", 1, victim["mac"], me["ipv4"], GATEWAY[4]),
        _arp("asks for an address of the node beyond the link", 1, me["mac"], me["ipv4"], NODE[4]),
        _arp("asks for the victim's address", 1, me["mac"], me["ipv4"], victim["ipv4"]),
        _icmp6("advertises the victim's address", mine, "fe80::1", claim(136, as_victim)),
        _icmp6("advertises it, as the victim", as_victim, "fe80::1", claim(136, as_victim)),
        _icmp6("advertises the gateway's address", mine, "ff02::1", claim(136, "fe80::1")),
        _icmp6("advertises it, as the gateway", "fe80::1", "ff02::1", claim(136, "fe80::1")),
        _icmp6("solicits as the victim", as_victim, "fe80::1", claim(135, "fe80::1")),
        _icmp6("solicits from far away", mine, "fe80::1", claim(135, "fe80::1"), hops=64),
        _icmp6("solicits with another MAC", mine, "fe80::1", claim(135, "fe80::1"), victim["mac"]),
        _icmp6("solicits an address of the node beyond the link", mine, at_node, claim(135, at_node)),
    ]


def _offers() -> list[Attack]:
    me, fellow, victim = member(ATTACKER), member(FELLOW), member(VICTIM)
    mine = "fe80::5054:ff:fe00:4"
    error = frames.ip(victim["ipv4"], me["ipv4"], 17, frames.udp(1, 2, b""))[1]
    redirect = frames.icmp(5, 1, socket.inet_aton(me["ipv4"]) + error)

    def redirected(mark: bytes, node: str) -> list[bytes]:
        kind, packet = frames.ip(me["ipv4"], NODE[4], 1, redirect + mark)
        return [frames.ethernet(node, me["mac"], kind, packet)]

    return [
        _udp("DHCP server's offer to the own fellow", 4, me["ipv4"], me["mac"], fellow["ipv4"], by=67, to=68),
        _udp("DHCP server's offer to all", 4, me["ipv4"], me["mac"], "255.255.255.255", by=67, to=68),
        _udp("DHCP server's offer to a victim", 4, me["ipv4"], me["mac"], victim["ipv4"], by=67, to=68),
        _udp("DHCP server's offer to the own fellow", 6, me["ipv6"], me["mac"], fellow["ipv6"], by=547, to=546),
        _icmp6("router advertisement to all", mine, "ff02::1", frames.router("fd99::/64")),
        _icmp6("router advertisement to the own fellow", me["ipv6"], fellow["ipv6"], frames.router("fd99::/64")),
        _icmp6("router advertisement as the gateway", "fe80::1", "ff02::1", frames.router("fd99::/64")),
        _icmp6("redirect", mine, "fe80::1", bytes([137, 0]) + bytes(38)),
        _icmp6("ping to all on the link", mine, "ff02::1", bytes([128, 0, 0, 0, 0, 1, 0, 1])),
        _icmp6("ping to the node as the victim", victim["ipv6"], NODE[6], bytes([128, 0, 0, 0, 0, 1, 0, 1])),
        Attack("redirect", "IPv4", redirected),
    ]


def attack_all(network: Network, tried: list[Attack]) -> list[Attack]:
    """Sends everything; what did not hold."""
    guest = network.guests[ATTACKER]
    node = json.loads(network.ip(network.node, f"-j link show dev {guest.tap}"))[0]["address"]
    before = _knowledge(network)
    with inside(guest.namespace):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        wire.bind(("eth0", ETH_P_ALL))
    with wire:
        wire.setblocking(False)
        for attack in tried:
            _attack(network, wire, attack, node)
            after = _knowledge(network)
            if after != before:
                attack.held, attack.found = False, f"the node learned: {sorted(after ^ before)}"
            before = after
    return [attack for attack in tried if not attack.held]


def _attack(network: Network, wire: socket.socket, attack: Attack, node: str) -> None:
    mark = token()
    while _received(wire):
        pass
    sent = attack.frames(mark, node)
    for frame in sent:
        wire.send(frame)
    until(lambda: bool(network.seen.of(mark)), 0.15)
    answers = [frame for frame in iter(lambda: _received(wire), b"") if frame not in sent and _is_answer(frame, mark)]
    places = network.seen.of(mark)
    attack.held = not places and not answers
    attack.found = f"ARRIVED at {', '.join(places)}" if places else f"ANSWERED {answers[0].hex()}" if answers else ""


def _received(wire: socket.socket) -> bytes:
    with suppress(BlockingIOError):
        return wire.recv(4096)
    return b""


def _is_answer(frame: bytes, mark: bytes) -> bool:
    """The node's ARP replies and neighbour advertisements, and whatever has the token."""
    kind = frame[12:14]
    if kind == b"\x08\x06":
        return frame[20:22] == b"\0\2"
    return mark in frame or (kind == b"\x86\xdd" and frame[20] == 58 and frame[54] == frames.ADVERTISE)


def _knowledge(network: Network) -> set[str]:
    """The node's neighbours at the attacker's tap but for the attacker itself, its addresses and its routes."""
    me = member(ATTACKER)
    neighbours = json.loads(network.ip(network.node, f"-j neigh show dev {me['tap']}"))
    own = {me["ipv4"], me["ipv6"], "fe80::5054:ff:fe00:4"}
    found = {f"neighbour {one['dst']}" for one in neighbours if one["dst"] not in own}
    listed = network.ip(network.node, "-o address show") + network.ip(network.node, "route show table all")
    listed += network.ip(network.node, "-6 route show table all")
    return found | {line.split("valid_lft")[0].split(" expires")[0].strip() for line in listed.splitlines()}
