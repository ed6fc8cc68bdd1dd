"""Behind `clachan instance connect` and `host-key`: what SSH starts to reach a VM, and anyone to reach a port.

SSH starts three of them for each connection, so `quickly` understands their usual forms without Typer, and nothing
here needs the SDK's other parts: they start in a quarter of the time.
"""

import os
import re
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from clachan.cli.errors import DONE, FAILED, INTERRUPTED, CommandError, explain, leave, say

if TYPE_CHECKING:
    from clachan.client.streams import Streams

PATH = r"[a-z][a-z0-9_]{0,30}(\.[a-z][a-z0-9_]{0,30}){1,7}"
HOST_KEY = r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]{20,}={0,2})(?: [^\r\n]*)?"


def quickly(arguments: list[str]) -> None:
    """Run the command line and end the process, when it is one of those that SSH is given; else do nothing."""
    match arguments:
        case ["instance", "connect", path] if re.fullmatch(PATH, path):
            _end(path)
        case ["instance", "connect", path, "--port", port] if re.fullmatch(PATH, path):
            if re.fullmatch("[1-9][0-9]{0,4}", port) and int(port) <= 65535:
                _end(path, int(port))
        case ["instance", "host-key", path] if re.fullmatch(PATH, path):
            _end(path, key=True)


def _end(path: str, port: int | None = None, *, key: bool = False) -> NoReturn:
    status = DONE
    try:
        if key:
            print(known_host(path, instance(path)))
        else:
            status = carry(path, port)
    except KeyboardInterrupt:
        say("interrupted")
        status = INTERRUPTED
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        status = explained
    leave(status)


def carry(path: str, port: int | str | None) -> int:
    """Standard input to the port and what comes back to standard output, until that ends; gives the exit status."""
    from clachan.client.streams import BLOCK

    stream = _streams().open(path, port)
    threading.Thread(target=stream.bring, args=(0, lambda: os.read(0, BLOCK)), daemon=True).start()
    try:
        for data in stream.take():
            write(data)
    except BrokenPipeError:  # who read has enough
        return FAILED
    return DONE


def write(data: bytes) -> None:
    """To standard output; raises BrokenPipeError when nobody reads it any more."""
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]


def converse(path: str) -> int:
    """The console of a VM at this terminal, if there is one; gives the exit status."""
    if not os.isatty(0):
        return carry(path, "console")
    from clachan.cli import console

    try:
        console.converse(_streams().open(path, "console"), path, write)
    except BrokenPipeError:
        return FAILED
    return DONE


def listen(path: str, port: int | str | None, address: str, *, others: bool) -> NoReturn:
    """Streams to the port for whoever connects to an address of this machine, until interrupted."""
    from clachan.cli import listening
    from clachan.client.streams import named

    where = listening.address(address, others=others)
    instance(path)  # who may not connect learns it now
    name = path if port is None else f"{named(port)} of {path}"
    listening.serve(where, name, lambda: _streams().open(path, port))


def instance(path: str) -> Any:
    """The instance as the API shows it."""
    return _streams().document(f"/instances/{path}")


def known_host(path: str, shown: Any) -> str:
    """The host key that the instance publishes, as a line of known_hosts."""
    found = re.fullmatch(HOST_KEY, str(shown["published"].get("host_key")))
    if found is None:
        raise CommandError(f"host key of {path}: none is published, expected a VM whose node made one")
    return f"{path} {found[1]} {found[2]}"


def _streams() -> "Streams":
    from clachan.client.home import load_credentials
    from clachan.client.streams import Streams

    known = load_credentials()
    return Streams(known.url, token=known.token, ca_file=known.ca_file)
