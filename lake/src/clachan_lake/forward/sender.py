"""The requests that the forwarder makes of the lake."""

import gzip
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from clachan_lake.forward.config import Config
from clachan_lake.forward.connection import Answer, Connection, UnreachableError, reason

GZIP_LEVEL = 1
GZIP_BYTES = 512
"""What is shorter is sent as it is."""
REFUSALS = frozenset({400, 409, 413, 415})


class RefusedError(ValueError):
    """The lake refuses this chunk."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HiddenError(PermissionError):
    """What the lake has cannot be seen: the token may only send, or the stream's beginning is not kept."""


@dataclass(frozen=True)
class Known:
    """What the lake has of a stream: bytes and the sha256 of as many as were asked for."""

    size: int
    sha256: str


class Sender:
    """Raises OSError when the CA's file cannot be read. `dead_letters` counts what no policy took."""

    def __init__(self, config: Config, token: str) -> None:
        self._policy = config.policy
        self._records_policy = config.records_policy
        self._gzip = config.gzip
        self.dead_letters = 0
        self._connection = Connection("lake", config.url, token, config.timeout_seconds, config.ca_file)

    def send(self, tag: str, data: bytes, chunk_id: str, offset: int, final: bool) -> None:
        """Returns when the lake has it. Raises RefusedError, UnreachableError."""
        query = {"reference": tag, "chunk_id": chunk_id, "offset": offset, "final": int(final)}
        self._ingest(self._policy, query, data)

    def send_records(self, tag: str, data: bytes, chunk_id: str) -> None:
        """As `send`, wherever the stream ends: others may write to it too."""
        self._ingest(self._records_policy, {"reference": tag, "chunk_id": chunk_id}, data)

    def known(self, tag: str, size: int) -> Known | None:
        """The size of the tag's stream, and the digest of its first `size` bytes, or of all if it has fewer; None
        without one. Raises HiddenError, UnreachableError."""
        place = self._look("policies/place", name=self._policy, reference=tag)
        if place is None or place["kind"] != "stream":
            return None
        stream = self._look("streams/meta", name=place["name"])
        if stream is None:
            return None
        total = int(stream["size"])
        digest = self._look("streams/sha256", name=place["name"], size=min(size, total))
        return Known(total, str(digest["sha256"])) if digest else None

    def _look(self, path: str, **query: Any) -> dict[str, Any] | None:
        answer = self._connection.request("GET", f"/{path}?{urlencode(query)}")
        if answer.status in {403, 416}:
            raise HiddenError(reason(answer, 200))
        return None if answer.status == 404 else _json(answer)

    def close(self) -> None:
        self._connection.close()

    def _ingest(self, policy: str, query: dict[str, Any], data: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        if self._gzip and len(data) >= GZIP_BYTES:
            # no time in it: the same bytes are sent again
            data, headers["Content-Encoding"] = gzip.compress(data, GZIP_LEVEL, mtime=0), "gzip"
        answer = self._connection.request("POST", f"/ingest/{quote(policy, safe='')}?{urlencode(query)}", data, headers)
        if answer.status == 204:
            self.dead_letters += answer.dead
            return
        if answer.status in REFUSALS:
            raise RefusedError(answer.status, reason(answer, 204))
        raise UnreachableError(reason(answer, 204), answer.retry_after, answer.status)


def _json(answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise UnreachableError(reason(answer, 200), answer.retry_after, answer.status)
    document: dict[str, Any] = json.loads(answer.body)
    return document
