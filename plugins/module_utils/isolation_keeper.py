# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a node's isolation as it was declared, whatever somebody does to it: the program of the unit clachan-isolation.

    python -m ansible_collections.clachan.platform.plugins.module_utils.isolation_keeper HOME

The kernel tells of every change of nftables and of every interface that goes. After each that may concern us, and now
and then without one, the machine is compared with the records and what differs is made again (`Node.restore`). Its own
changes are told, too: the comparison after them finds nothing, so it comes to rest. What the module isolation changes
is compared when that has let go of the lock, and is found as declared.

`kept` in its runtime directory is there from the first comparison to its end: promises look for it. What it cannot mend
ends it; systemd starts it again, so it is tried for ever, and meanwhile `kept` is not there.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys

from ansible_collections.clachan.platform.plugins.module_utils.isolation import IsolationError
from ansible_collections.clachan.platform.plugins.module_utils.isolation_node import Node
from ansible_collections.clachan.platform.plugins.module_utils.isolation_rules import NAME

LONGEST_PAUSE = 60
"""Seconds between comparisons: routes, addresses and kernel settings of links change without a sign that is heard."""
BUFFER = 4 * 1024 * 1024
"""Of the kernel's signs; when it overflows that is a sign, too."""
DATAGRAM = 256 * 1024
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
RTNLGRP_LINK, NFNLGRP_NFTABLES = 1, 7
RTM_DELLINK = 17
HEADER = struct.Struct("=IHHII")
"""Of a netlink message: length, type, flags, sequence, port."""


class Signs:
    """What the kernel tells, from the moment that this is made."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()
        for family, group, concerns in (
            (NETLINK_NETFILTER, NFNLGRP_NFTABLES, _names_our_table),
            (NETLINK_ROUTE, RTNLGRP_LINK, _takes_a_link),
        ):
            one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            one.bind((0, 0))
            one.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self._selector.register(one, selectors.EVENT_READ, concerns)

    def wait(self, seconds):
        """Until something that may concern us has happened, or for so long without a sign of anything."""
        while True:
            ready = self._selector.select(seconds)
            # all are read, so that what was told before the comparison asks for no second one
            concerned = [_concerned(key.fileobj, key.data) for key, _events in ready]
            if any(concerned) or not ready:
                return


def _concerned(one, concerns):
    """Read all that is there; whether any of it may concern us."""
    found = False
    while True:
        try:
            found = concerns(one.recv(DATAGRAM)) or found
        except BlockingIOError:
            return found
        except OSError:  # the buffer was full: something was not told
            found = True


def _names_our_table(data):
    return NAME.encode() + b"\0" in data


def _takes_a_link(data):
    while len(data) >= HEADER.size:
        length, kind = HEADER.unpack_from(data)[:2]
        if kind == RTM_DELLINK:
            return True
        data = data[max(HEADER.size, (length + 3) & ~3) :]
    return False


def keep(home, runtime):
    """For ever; raises IsolationError for what it cannot mend."""
    signs = Signs()
    changes = Node(home).restore()
    _tell(changes)
    with open(os.path.join(runtime, "kept"), "w", encoding="ascii"):
        pass
    _notify("READY=1\nSTATUS=%s" % os.environ.get("CLACHAN_BUILD", ""))
    while True:
        signs.wait(LONGEST_PAUSE)
        _tell(Node(home).restore())


def _tell(changes):
    if changes:
        # a new tap has eighteen settings
        named = [one for one in changes if not one.startswith("setting ")] or changes
        sys.stdout.write("mended: %s\n" % ", ".join(named))
        sys.stdout.flush()


def _notify(text):
    """Tell systemd, when it waits for that."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)


def main():
    os.umask(0o022)
    try:
        keep(sys.argv[1], os.environ["RUNTIME_DIRECTORY"])
    except IsolationError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
