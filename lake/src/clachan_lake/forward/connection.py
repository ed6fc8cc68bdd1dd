"""One kept connection to a server, over which requests follow each other."""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

ANSWER_BYTES = 16 << 20
LONGEST_WAIT = 300.0
"""Seconds: what a server asks for beyond it is not believed."""


class UnreachableError(ConnectionError):
    """The server does not answer, or cannot take anything now; try again, `retry_after` seconds later if it said so."""

    def __init__(self, message: str, retry_after: float = 0.0, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


@dataclass(frozen=True)
class Answer:
    """`retry_after` in seconds, 0 when nothing was said; `dead`: what was sent is a dead letter of the lake's now."""

    status: int
    body: bytes
    retry_after: float = 0.0
    dead: bool = False


class Connection:
    """To the server at `url`, with a bearer token; `ca_file`: the certificate of its authority, or its own. Requests
    must bear repetition. Raises OSError when that file is not one."""

    def __init__(self, what: str, url: str, token: str, timeout: float, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        self._what = what
        self._host = parts.hostname or ""
        self._port = parts.port
        self._base = parts.path.rstrip("/")
        self._timeout = timeout
        self._context = (
            ssl.create_default_context(cafile=str(ca_file) if ca_file else None) if parts.scheme == "https" else None
        )
        self._headers = {"Authorization": f"Bearer {token}"}
        self._open: http.client.HTTPConnection | None = None

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Raises UnreachableError."""
        kept = self._open is not None
        try:
            return self._ask(method, path, body, headers or {})
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept and isinstance(error, ConnectionError):  # the server had closed it meanwhile
                return self.request(method, path, body, headers)
            raise UnreachableError(f"{self._what} {self._host}:{self._port}: {error!r}, expected an answer") from error

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = self._connect()
        connection.request(method, self._base + path, body, {**self._headers, **headers})
        answer = connection.getresponse()
        wait, dead = _seconds(answer.headers.get("Retry-After")), "Clachan-Dead-Letter" in answer.headers
        found = Answer(answer.status, answer.read(ANSWER_BYTES), wait, dead)
        if answer.will_close or not answer.isclosed():
            self.close()
        return found

    def close(self) -> None:
        if self._open:
            self._open.close()
            self._open = None

    def _connect(self) -> http.client.HTTPConnection:
        if self._open is None:
            if self._context:
                self._open = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout, context=self._context
                )
            else:
                self._open = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return self._open


def _seconds(text: str | None) -> float:
    """Of the header Retry-After: a number of seconds or a date."""
    try:
        wait = float(text or 0)
    except ValueError:
        try:
            wait = (parsedate_to_datetime(text or "").astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return 0.0
    return min(LONGEST_WAIT, max(0.0, wait)) if wait == wait else 0.0  # noqa: PLR0124 - not a number


def reason(answer: Answer, expected: int) -> str:
    """What the server said of its refusal, in its error envelope or by its status."""
    try:
        return f"{answer.status} {json.loads(answer.body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status}, expected {expected}"
