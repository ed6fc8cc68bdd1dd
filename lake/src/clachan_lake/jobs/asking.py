"""What a worker asks of the lake's service, over one connection. Small: an idle worker must be."""

import http.client
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlencode

from clachan_lake.forward.connection import Answer, Connection, UnreachableError, reason
from clachan_lake.settings import read_token

BLOCK = 1 << 20


class OverError(Exception):
    """The attempt is not this worker's any more."""


class Asking:
    """Raises UnreachableError when there is no answer or one that may be another later, OverError, PermissionError for
    a token that is refused, ValueError for a request that is."""

    def __init__(self, url: str, token_file: Path, ca_file: Path | None, timeout: float) -> None:
        self._url, self._token_file, self._ca_file, self._timeout = url, token_file, ca_file, timeout
        self._line = self._new_line()

    def take(self, worker: str, slot: str, wait: float) -> dict[str, Any] | None:
        """A job, or None when none came."""
        answer = self._post("/jobs/take", worker=worker, slot=slot, wait=wait)
        return cast("dict[str, Any]", json.loads(answer.body)) if answer.status == 200 else None

    def fetch_call(self, job: str, attempt: int, file: Path) -> None:
        with file.open("wb") as out:
            _checked(self._line.receive(_path("/jobs/call", id=job, attempt=attempt), out))

    def beat(self, job: str, attempt: int) -> bool:
        """Whether the job is to end."""
        return bool(json.loads(self._post("/jobs/beat", id=job, attempt=attempt).body)["cancel"])

    def log(self, job: str, attempt: int, position: int, text: bytes) -> None:
        self._post("/jobs/log", text, id=job, attempt=attempt, position=position)

    def finish(self, job: str, attempt: int, outcome: Mapping[str, Any], result: Path | None) -> None:
        """`outcome` has state, message, and the kind of the result."""
        said: dict[str, Any] = {key: one for key, one in outcome.items() if one is not None}
        with result.open("rb") if result else nullcontext(b"") as body:
            self._post("/jobs/finish", body, id=job, attempt=attempt, **said)

    def release(self, job: str, attempt: int) -> None:
        self._post("/jobs/release", id=job, attempt=attempt)

    def another(self) -> "Asking":
        """The same over a connection of its own, for another thread."""
        return Asking(self._url, self._token_file, self._ca_file, self._timeout)

    def close(self) -> None:
        self._line.close()

    def renew(self) -> None:
        """With the token that the file has now."""
        self._line.close()
        self._line = self._new_line()

    def _new_line(self) -> "Line":
        return Line("lake", self._url, read_token(self._token_file), self._timeout, self._ca_file)

    def _post(self, path: str, body: bytes | BinaryIO = b"", **parameters: Any) -> Answer:
        return _checked(self._line.request("POST", _path(path, **parameters), cast("bytes", body)))


class Line(Connection):
    """Bodies may be files; so may answers."""

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        if body is not None and not isinstance(body, bytes):
            # from its begin, as this may be a repeat; with its length, so that it is not sent in chunks
            size = body.seek(0, os.SEEK_END)
            body.seek(0)
            headers = {**headers, "Content-Length": str(size)}
        return super()._ask(method, path, body, headers)

    def receive(self, path: str, out: BinaryIO) -> Answer:
        """The body of a good answer goes into `out`. Raises UnreachableError."""
        self.close()
        connection = self._connect()
        try:
            connection.request("GET", self._base + path, headers=self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                return Answer(answer.status, answer.read(BLOCK))
            shutil.copyfileobj(answer, out, BLOCK)
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)
            return Answer(200, b"")
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{self._what} {self._host}:{self._port}: {error!r}, expected an answer") from error
        finally:
            self.close()


def _path(path: str, **parameters: Any) -> str:
    return f"{path}?{urlencode(parameters)}"


def _checked(answer: Answer) -> Answer:
    status = answer.status
    if 200 <= status < 300:
        return answer
    why = f"lake: {reason(answer, 200)}"
    if status in {404, 409}:
        raise OverError(why)
    if status in {401, 403}:
        raise PermissionError(f"{why}; expected a token with the scope work")
    if 400 <= status < 500 and status not in {408, 429}:
        raise ValueError(why)
    raise UnreachableError(why, answer.retry_after, status)
