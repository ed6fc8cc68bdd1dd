# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tracked connections of an address are forgotten with its member: the slot's next one has the same address.

Spoken directly in ctnetlink (linux/netfilter/nfnetlink_conntrack.h): a dump that the kernel filters by one address of a
connection, then one deletion for each connection found. So no program is needed that a node may not have, and the
table of connections, which all of the host shares, is never read as a whole.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

NETLINK_NETFILTER = 12
ACK, DUMP, REQUEST = 4, 0x300, 1
ERROR, DONE = 2, 3
GET, DELETE = 0x101, 0x102
NESTED = 0x8000
ORIGINAL, REPLY, ZONE, FILTER = 1, 2, 18, 25
TUPLE_ADDRESSES = 1
FIELDS = {4: {"source": 1, "target": 2}, 6: {"source": 3, "target": 4}}
FLAGS = {"source": 1, "target": 2}
# by whom it was begun, to whom, and who answers where the target was rewritten
ENDS = ((ORIGINAL, "source"), (ORIGINAL, "target"), (REPLY, "source"))


def forget(addresses):
    """Delete every tracked connection that has one of the addresses at an end."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.bind((0, 0))
        kernel.settimeout(10)
        for address in map(ipaddress.ip_address, addresses):
            for side, end in ENDS:
                for connection in list(_dump(kernel, address, side, end)):
                    _ask(kernel, DELETE, ACK, address, connection)


def _dump(kernel, address, side, end):
    field = _attribute(FIELDS[address.version][end], address.packed)
    by_address = _attribute(side | NESTED, _attribute(TUPLE_ADDRESSES | NESTED, field))
    wanted = _attribute(FILTER | NESTED, _attribute(side, struct.pack("=I", FLAGS[end])))
    for payload in _ask(kernel, GET, DUMP, address, by_address + wanted):
        found = dict(_attributes(payload[4:]))  # after the four bytes of nfgenmsg
        zone = _attribute(ZONE, found[ZONE]) if ZONE in found else b""
        yield _attribute(ORIGINAL | NESTED, found[ORIGINAL]) + zone


def _ask(kernel, kind, flags, address, content):
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BBH", family, 0, 0) + content
    kernel.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, 0, 0) + body)
    answers = []
    while True:
        data = kernel.recv(1 << 17)
        while len(data) >= 16:
            length, kind_of_answer = struct.unpack_from("=IH", data)
            if kind_of_answer in (ERROR, DONE):
                return answers  # an error is a connection that ended by itself, or no connection tracking at all
            answers.append(data[16:length])
            data = data[(length + 3) & ~3 :]


def _attribute(kind, content):
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def _attributes(data):
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
