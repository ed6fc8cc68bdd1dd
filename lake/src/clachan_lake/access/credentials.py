"""The token in a request: a bearer token, HTTP basic's password, a cookie for reading, or for a gadget its URL's."""

import base64
import binascii
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import parse_qs

COOKIE = "clachan_lake"
_SAFE = frozenset({"GET", "HEAD"})


class Credentials(NamedTuple):
    """`in_url`: whether the token stood in the URL, which only a gadget's may."""

    token: str
    in_url: bool = False


def find(method: str, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> Credentials | None:
    """Of an ASGI request; the first that is there counts, and a wrong one is not made up for by another."""
    cookie = b""
    for name, value in headers:
        if name == b"authorization":
            return Credentials(authorized(value))
        if name == b"cookie":
            cookie = value
    if method not in _SAFE:
        return None
    if b"token=" in query:
        given = parse_qs(query.decode("latin-1")).get("token", [])
        if given:
            return Credentials(given[0] if len(given) == 1 else "", in_url=True)
    return _from_cookie(cookie) if cookie else None


def authorized(header: bytes) -> str:
    """The token in the header `Authorization`; "" for none."""
    scheme, _, value = header.partition(b" ")
    given, kind = value.strip(), scheme.lower()
    if kind == b"basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return ""
    elif kind != b"bearer":
        return ""
    return given.decode("utf-8", "replace")


def _from_cookie(header: bytes) -> Credentials | None:
    for part in header.decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return Credentials(value.strip('"'))
    return None
