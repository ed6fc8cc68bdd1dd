"""`clachan instance connect --listen`: an address of this machine; each connection to it becomes a stream."""

import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from typing import NoReturn

from clachan.cli.errors import WRONG_USE, CommandError, explain, say
from clachan.client.streams import Stream, carry

LOOPBACK = "127.0.0.1"
Address = tuple[str, int]


def address(text: str, *, others: bool) -> Address:
    """What [ADDRESS:]PORT means; without `others` only what this machine alone reaches."""
    where, _, port = text.rpartition(":")
    bracketed = where.startswith("[") and where.endswith("]")
    where = where[1:-1] if bracketed else where or LOOPBACK
    try:
        found = ipaddress.ip_address(LOOPBACK if where == "localhost" else where)
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535 or bracketed != (found.version == 6) or text.startswith(":"):
        expected = "[ADDRESS:]PORT like 5901, 127.0.0.1:5901 or [::1]:5901"
        raise CommandError(f"address {text!r}: expected {expected}", WRONG_USE)
    if not found.is_loopback and not others:
        expected = "a loopback address, or --open-to-others"
        raise CommandError(f"address {text}: others reach it, expected {expected}", WRONG_USE)
    return str(found), number


def serve(where: Address, name: str, open_: Callable[[], Stream]) -> NoReturn:
    """Listen until interrupted; the address goes to standard output as soon as it can be connected to."""
    try:
        family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        listener = socket.create_server(where, family=family)
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # its own text says again where
        raise CommandError(f"address {_shown(where)}: {reason}, expected one that is free here") from error
    with listener:
        say(f"{name} is at this address until you press Ctrl-C:")
        print(_shown(listener.getsockname()), flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_join, args=(connection, open_), daemon=True).start()


def _join(connection: socket.socket, open_: Callable[[], Stream]) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with open_() as stream:
                carry(stream, connection)
        except Exception as error:
            if explain(error) is None:
                raise


def _shown(where: tuple[str, int] | tuple[str, int, int, int]) -> str:
    return f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"
