"""The document of a token, whose key is its public id. Of the token itself only the SHA-256 is kept.

sha256                hex, of the token's text
scopes                what it may do (`scopes`)
expires               milliseconds since 1970 in UTC, or null
revoked               when it was revoked, or null
note                  text for people
same_content_seconds  a chunk without an id whose bytes this token has sent to the same stream so short a time ago
                      is a repeat; 0: never. For one sender whose events carry their times, and who repeats what
                      had no answer
"""

import hashlib
import re
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from clachan_lake import settings
from clachan_lake.access.scopes import check_scope
from clachan_lake.documents import Documented
from clachan_lake.interface import Tokens
from clachan_lake.names import fits

SECRET_BYTES = 32
ID_BYTES = 9
SCOPES = 100
NOTE_BYTES = 1024
WINDOW_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Token:
    sha256: str
    scopes: tuple[str, ...]
    expires: int | None = None
    revoked: int | None = None
    note: str = ""
    same_content_seconds: float = 0

    def valid(self, now: int) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)


@dataclass(frozen=True)
class Order:
    """What who asks for a token says of it; `seconds` is its life, null for ever."""

    scopes: tuple[str, ...]
    seconds: int | None = None
    note: str = ""
    same_content_seconds: float = 0


def read(key: str, document: Any) -> Token:
    """Raises ValueError that names token and key."""
    return settings.read(document, Token, _READERS, f"token {key!r:.80}")


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


class LocalTokens(Documented, Tokens):
    """Tokens of a local lake: id -> document, without what could be used as a token."""

    kind = "tokens"

    def __getitem__(self, key: str) -> dict[str, Any]:
        return {name: value for name, value in super().__getitem__(key).items() if name != "sha256"}

    def create(self, /, **order: Any) -> tuple[str, str]:
        asked = settings.read(order, Order, _READERS, "token")
        secret, key = secrets.token_urlsafe(SECRET_BYTES), secrets.token_hex(ID_BYTES)
        made = Token(
            sha256=digest(secret).hex(),
            scopes=asked.scopes,
            expires=None if asked.seconds is None else _now() + 1000 * asked.seconds,
            note=asked.note,
            same_content_seconds=asked.same_content_seconds,
        )
        self._documents.put(key, {**asdict(made), "scopes": list(made.scopes)})
        return key, secret

    def revoke(self, key: str) -> None:
        document = self._documents[key]
        if document["revoked"] is None:
            self._documents.put(key, {**document, "revoked": _now()})

    def old(self, before: int) -> list[str]:
        """Those that were revoked or have expired before a time (milliseconds since 1970, UTC)."""
        return [
            key for key, token in self.items() if min(token["revoked"] or before, token["expires"] or before) < before
        ]

    def purge(self, before: int) -> None:
        """Delete the old ones. Belongs to a transaction."""
        for key in self.old(before):
            self._documents.delete(key)


def _now() -> int:
    return time.time_ns() // 10**6


def _scopes(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= SCOPES:
        raise ValueError(f"{value!r:.80}, expected a list of 1-{SCOPES} scopes")
    return tuple(check_scope(scope) for scope in value)


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("expected the SHA-256 of a token, 64 hex digits")
    return value


def _note(value: Any) -> str:
    if not fits(value, NOTE_BYTES):
        raise ValueError(f"{value!r:.80}, expected at most {NOTE_BYTES} bytes of text")
    return str(value)


def _window(value: Any) -> float:
    if type(value) not in {int, float} or not 0 <= value <= WINDOW_SECONDS:
        raise ValueError(f"{value!r:.80}, expected 0-{WINDOW_SECONDS} seconds")
    return float(value)


_READERS: dict[str, settings.Reader] = {
    "scopes": _scopes,
    "sha256": _sha256,
    "note": _note,
    "same_content_seconds": _window,
    "seconds": settings.positive,
    "expires": settings.positive,
    "revoked": settings.positive,
}
