# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks by TCP who answers: `probe.py FILE reached` fails when one does not, `probe.py FILE silent` when one does.

FILE: {"reached": [{"name", "address", "port"}], "silent": [...]}. A refusal is an answer: it shows that a packet went
there and one came back. All are asked at once; the last line that is printed says who is not as expected.
"""

from __future__ import annotations

import contextlib
import errno
import json
import selectors
import socket
import sys
import time
from pathlib import Path

PORT = 7
PATIENCE = {"reached": 8.0, "silent": 2.0}
"""Seconds; a packet that is lost is sent again after one and three."""
NAMED = 5
"""How many are named when many are not as expected."""
ANSWERS = (0, errno.ECONNREFUSED)


def judge(targets: list[dict], expected: str, answering: set[tuple]) -> list[str]:
    """Sentences about those that are not as expected."""
    if expected == "reached":
        missing = [one for one in targets if _place(one) not in answering]
        return [f"{one['name']} is not reached by {_family(one)}" for one in missing]
    open_ones = [one for one in targets if _place(one) in answering]
    return [f"{one['name']} is reached by {_family(one)}, expected silence" for one in open_ones]


def ask(places: set[tuple], seconds: float) -> set[tuple]:
    """Those of the places, (address, port), that accept or refuse a connection in time."""
    answering = set()
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as selector:
        for place in places:
            for one in _begun(*place):
                opened.enter_context(one)
                selector.register(one, selectors.EVENT_WRITE, place)
        end = time.monotonic() + seconds
        while selector.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ready in selector.select(left):
                selector.unregister(key.fileobj)
                if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in ANSWERS:
                    answering.add(key.data)
    return answering


def _begun(address: str, port: int) -> list[socket.socket]:
    """Sockets that connect there: of a link-local address one on every interface, none where there is no way at all."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    scopes = [index for index, name in socket.if_nameindex() if name != "lo"] if address.startswith("fe80:") else [0]
    begun = []
    for scope in scopes:
        one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        where = (address, port, 0, scope) if family == socket.AF_INET6 else (address, port)
        if one.connect_ex(where) in (*ANSWERS, errno.EINPROGRESS):
            begun.append(one)
        else:
            one.close()
    return begun


def _place(one: dict) -> tuple:
    return one["address"], one.get("port", PORT)


def _family(one: dict) -> str:
    return "IPv6" if ":" in one["address"] else "IPv4"


def main(path: str, expected: str) -> int:
    targets = json.loads(Path(path).read_bytes())[expected]
    wrong = judge(targets, expected, ask({_place(one) for one in targets}, PATIENCE[expected]))
    more = [f"and {len(wrong) - NAMED} more"] if len(wrong) > NAMED else []
    said = f"{len(targets)} of {len(targets)} {'answer' if expected == 'reached' else 'are silent'}"
    sys.stdout.write("; ".join([*wrong[:NAMED], *more]) + "\n" if wrong else said + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
