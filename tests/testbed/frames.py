"""Ethernet frames made by hand, as a guest with bad intentions makes them."""

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
NOBODY = "00:00:00:00:00:00"
ALL_NODES = ("33:33:00:00:00:01", "ff02::1")
SOLICIT, ADVERTISE, ROUTER, REDIRECT = 135, 136, 134, 137


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(target: str, source: str, kind: int, content: bytes, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    return _mac(target) + _mac(source) + tag + struct.pack("!H", kind) + content


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(source: str, target: str, protocol: int, content: bytes, hops: int = 64) -> tuple[int, bytes]:
    """The kind of frame, and the packet; checksums of ICMPv6 and UDP are filled in."""
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed
    content = _summed(ends, protocol, content)
    if len(ends) == 32:
        return 0x86DD, struct.pack("!IHBB", 6 << 28, len(content), protocol, hops) + ends + content
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 1, 0, hops, protocol, 0) + ends
    return 0x0800, head[:10] + struct.pack("!H", checksum(head)) + head[12:] + content


def _summed(ends: bytes, protocol: int, content: bytes) -> bytes:
    place = {58: 2, 17: 6}.get(protocol)
    if place is None:
        return content
    if len(ends) == 32:
        pseudo = ends + struct.pack("!IHBB", len(content), 0, 0, protocol)
    else:
        pseudo = ends + struct.pack("!BBH", 0, protocol, len(content))
    return content[:place] + struct.pack("!H", checksum(pseudo + content) or 0xFFFF) + content[place + 2 :]


def udp(source_port: int, port: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data


def icmp(kind: int, code: int, content: bytes) -> bytes:
    """ICMP for IPv4, with its checksum."""
    message = struct.pack("!BBH", kind, code, 0) + content
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def arp(operation: int, mac: str, address: str, target_mac: str, target: str) -> bytes:
    addresses = (ipaddress.ip_address(one).packed for one in (address, target))
    one, other = addresses
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + _mac(mac) + one + _mac(target_mac) + other


def neighbour(kind: int, address: str, mac: str) -> bytes:
    """A solicitation or an advertisement of the address, with a link-layer address."""
    flags = 0x60000000 if kind == ADVERTISE else 0
    option = 2 if kind == ADVERTISE else 1
    return (
        struct.pack("!BBHI", kind, 0, 0, flags) + ipaddress.ip_address(address).packed + bytes([option, 1]) + _mac(mac)
    )


def router(prefix: str) -> bytes:
    """A router advertisement: a default route, and a prefix to make addresses of."""
    network = ipaddress.IPv6Network(prefix)
    option = struct.pack("!BBBBIII", 3, 4, network.prefixlen, 0xC0, 3600, 3600, 0) + network.network_address.packed
    return struct.pack("!BBHBBHII", ROUTER, 0, 0, 64, 0, 1800, 0, 0) + option
