"""The requests that the forwarder makes of the lake, over one kept connection."""

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from clachan_lake.forward.config import Config

ANSWER_BYTES = 1 << 20


class UnreachableError(ConnectionError):
    """The lake does not answer, or cannot take anything now; try again later."""


class RefusedError(ValueError):
    """The lake refuses this chunk."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Known:
    """What the lake has of a stream: bytes and the sha256 of as many as were asked for."""

    size: int
    sha256: str


class Sender:
    def __init__(self, config: Config, token: str) -> None:
        parts = urlsplit(config.url)
        self._host = parts.hostname or ""
        self._port = parts.port
        self._base = parts.path.rstrip("/")
        self._policy = quote(config.policy, safe="")
        self._timeout = config.timeout_seconds
        self._context = (
            ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file else None)
            if parts.scheme == "https"
            else None
        )
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
        self._connection: http.client.HTTPConnection | None = None

    def send(self, tag: str, data: bytes, chunk_id: str, offset: int, final: bool) -> None:
        """Returns when the lake has it. Raises RefusedError, UnreachableError."""
        query = {"reference": tag, "chunk_id": chunk_id, "offset": offset, "final": int(final)}
        status, body = self._request("POST", f"/ingest/{self._policy}?{urlencode(query)}", data)
        if status == 204:
            return
        if status in {400, 409, 413}:
            raise RefusedError(status, _message(status, body))
        raise UnreachableError(_message(status, body))

    def known(self, tag: str, size: int) -> Known | None:
        """The stream's size, and the digest of its first `size` bytes, or of all if it has fewer; None without one."""
        status, body = self._request("GET", f"/streams/meta?{urlencode({'name': tag})}", None)
        if status == 404:
            return None
        total = int(_json(status, body)["size"])
        query = urlencode({"name": tag, "size": min(size, total)})
        return Known(total, str(_json(*self._request("GET", f"/streams/sha256?{query}", None))["sha256"]))

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        try:
            connection = self._connect()
            connection.request(method, self._base + path, body, self._headers)
            answer = connection.getresponse()
            data = answer.read(ANSWER_BYTES)
            if answer.will_close or not answer.isclosed():
                self.close()
            return answer.status, data
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise UnreachableError(f"lake {self._host}:{self._port}: {error!r}, expected an answer") from error

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._context:
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout, context=self._context
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return self._connection


def _json(status: int, body: bytes) -> dict[str, Any]:
    if status != 200:
        raise UnreachableError(_message(status, body))
    document: dict[str, Any] = json.loads(body)
    return document


def _message(status: int, body: bytes) -> str:
    try:
        return f"{status} {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}, expected 204"
