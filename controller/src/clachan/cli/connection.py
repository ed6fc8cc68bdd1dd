"""The controller that a verb speaks to, and the names that completion offers from it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clachan.client import Client

COMPLETION_SECONDS = 2.0
COMPLETIONS = 200


@contextmanager
def connect() -> "Iterator[Client]":
    """A client for the controller of the credentials."""
    from clachan.client import Client

    with Client.from_credentials() as client:
        yield client


def _complete(incomplete: str, names: "Callable[[Client], Iterable[str]]") -> list[str]:
    """Names that begin with what was typed; none when the controller cannot be asked, as errors would not be read."""
    from itertools import islice

    from clachan.client import Client, ClientError
    from clachan.client.home import load_credentials

    try:
        known = load_credentials()
        with Client(known.url, token=known.token, ca_file=known.ca_file, answer_seconds=COMPLETION_SECONDS) as client:
            found = dict.fromkeys(name for name in names(client) if name.startswith(incomplete))
            return list(islice(found, COMPLETIONS))
    except (ClientError, OSError):
        return []


def complete_instance(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda client: (each.path for each in client.instances()))


def complete_image(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda client: (each.name for each in client.images()))


def complete_node(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda client: (each.name for each in client.nodes()))


def complete_software(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda client: (each.software for each in client.software()))


def complete_tenant(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda client: (each.name for each in client.tenants()))
