"""A lab for several users: its address, and a token of the platform that logs its user in and soon ends."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clachan.cli.errors import CommandError

if TYPE_CHECKING:
    from clachan.client import Client

SECONDS = 600
PAGE = "/hub/"
"""What the published address of a hub ends with, and that of a lab of one user does not."""


@dataclass(frozen=True)
class Hub:
    path: str
    url: str
    user: str
    token: str = field(repr=False)


def find(path: str | None) -> Hub | None:
    """The hub of that path, or the only one, with a fresh token; None for a lab of one user, or not yet known."""
    from clachan.cli.connection import connect
    from clachan.cli.lab_server import only

    with connect() as client:
        wanted = path or only(client)
        url = client.instance(wanted).published.get("url")
        return _login(client, wanted, url) if isinstance(url, str) and url.endswith(PAGE) else None


def _login(client: "Client", path: str, url: str) -> Hub:
    from clachan.contract.api import TokenDeclaration

    who = client.principal()
    if who.kind != "user":
        raise CommandError(f"caller: {who.kind} {who.name}, expected a user, who alone can log in to {path}")
    made = client.create_token(TokenDeclaration(user=who.name, title=f"login to {path}", seconds=SECONDS))
    return Hub(path, url, who.name, str(made.token))
