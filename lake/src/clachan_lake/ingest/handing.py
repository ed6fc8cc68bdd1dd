"""Handing the files of arrays to readers on this machine: the route that says what is in them, and the socket.

`clachan_lake.near` says how it goes. What waits to be fetched is bounded: each set of files for `WAIT_SECONDS`, and so
many sets and files together that older ones are closed for those that come. Who does not get them reads over HTTP.
"""

import asyncio
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Response

from clachan_lake.arrays.array import LocalArray
from clachan_lake.arrays.layout import Layout
from clachan_lake.errors import CorruptError
from clachan_lake.ingest.reading import get, session_at
from clachan_lake.local import LocalLake
from clachan_lake.near import FILES, SECONDS, SECRET_BYTES, place
from clachan_lake.refusal import RefusedError

log = logging.getLogger(__name__)
WAIT_SECONDS = 5.0
SETS = 64
OPEN_FILES = 512
"""Of all sets; a process may often have 1,024."""
CONNECTIONS = 64
BACKLOG = 1024
PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class _Set:
    """Descriptors that wait to be fetched: the lease, then the layout's files."""

    proof: bytes
    files: list[int]
    until: float

    def close(self) -> None:
        while self.files:
            os.close(self.files.pop())


class Handing:
    """Sets of open files by their tickets, and the socket where they are fetched. `offer` and `take` are for any
    thread."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Of the socket, while it is there."""
        self._lock = threading.Lock()
        self._sets: dict[bytes, _Set] = {}

    def offer(self, files: list[int]) -> tuple[str, str]:
        """Take these descriptors over; their ticket and their proof."""
        ticket, proof = secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(SECRET_BYTES)
        with self._lock:
            self._sets[ticket] = _Set(proof, files, time.monotonic() + WAIT_SECONDS)
            self._drop()
        return ticket.hex(), proof.hex()

    def take(self, ticket: bytes) -> _Set | None:
        """The set of a ticket, which is of no use then; None when it is unknown, was used, or is too old."""
        with self._lock:
            self._drop()
            return self._sets.pop(ticket, None)

    def expire(self) -> None:
        """Close what waits too long."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        # the first is the oldest
        while self._sets and (self._is_full() or next(iter(self._sets.values())).until < time.monotonic()):
            self._sets.pop(next(iter(self._sets))).close()

    def _is_full(self) -> bool:
        return len(self._sets) > SETS or sum(len(one.files) for one in self._sets.values()) > OPEN_FILES

    def close(self) -> None:
        self.name = None
        with self._lock:
            for one in self._sets.values():
                one.close()
            self._sets.clear()

    async def run(self) -> None:
        """Serve the socket until it is cancelled."""
        try:
            with _listener() as listener:
                self.name = listener.getsockname()[1:].decode()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._expire())
                    await self._accept(listener, tasks)
        except OSError as error:
            log.warning("socket of arrays' files: %s, expected one; readers of this machine use HTTP", error)
        finally:
            self.close()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.expire()

    async def _accept(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop, room = asyncio.get_running_loop(), asyncio.Semaphore(CONNECTIONS)
        while True:
            await room.acquire()
            try:
                connection, _address = await loop.sock_accept(listener)
            except OSError as error:
                # no more files to be opened, for a while
                log.warning("socket of arrays' files: %s", error)
                room.release()
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            tasks.create_task(self._serve(connection)).add_done_callback(lambda _task: room.release())

    async def _serve(self, connection: socket.socket) -> None:
        """One connection: a ticket is received, its files are sent; anything else, or silence, ends it."""
        with connection:
            connection.setblocking(False)
            receiving = asyncio.get_running_loop().sock_recv(connection, 2 * SECRET_BYTES)
            with suppress(OSError, TimeoutError):
                found = self.take(await asyncio.wait_for(receiving, SECONDS))
                if found is not None:
                    try:
                        socket.send_fds(connection, [found.proof], found.files)
                    finally:
                        found.close()


@contextmanager
def _listener() -> Iterator[socket.socket]:
    """At a name that nobody can know before it is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0clachan-lake-{secrets.token_hex(SECRET_BYTES)}")
        listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener


def routes(lake: LocalLake, handing: Handing) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own."""
    router = APIRouter()

    @router.get("/arrays/files")
    def files(
        name: str,
        start: Annotated[int, Query(ge=0)],
        stop: Annotated[int, Query(ge=0)],
        *,
        here: str,
        at: str | None = None,
        known: str = "",
        most: Annotated[int, Query(ge=1, le=FILES)] = FILES,
    ) -> Response:
        """Where the bytes start <= position < stop are, in files that a ticket is for: those of the first chunks, with
        at most `most` files. `here` is the reader's `place`: elsewhere the answer's `socket` is null. `known` is the
        version that the reader has all of: then there are no runs and no ticket."""
        if here != place():
            return _answer(socket=None)
        if handing.name is None:
            raise RefusedError(503, "socket of arrays' files: none, expected it; read over HTTP")
        with session_at(lake, at) as session:
            array = get(session.arrays, name)
            if known == array.version:
                return _answer(socket=handing.name, version=known)
            found = _layout(array, start, stop, most)
            ticket, proof = _offer(handing, session, found)
            return _answer(
                socket=handing.name,
                ticket=ticket,
                proof=proof,
                snapshot=session.now(),
                version=array.version,
                row_bytes=array.row_bytes,
                length=array.nbytes,
                grid=array.chunk_bytes,
                start=found.start,
                stop=found.stop,
                files=len(found.files),
                runs=found.runs,
            )

    return router


def _layout(array: LocalArray, start: int, stop: int, most: int) -> Layout:
    try:
        return array.layout(start, min(stop, array.nbytes), most)
    except CorruptError:
        raise
    except OSError as error:
        # too many are open, for a while
        raise RefusedError(503, f"files of array {array.name}: {error}; read over HTTP") from None


def _offer(handing: Handing, session: LocalLake, found: Layout) -> tuple[str, str]:
    try:
        lease = session.lease()
    except OSError as error:
        found.close()
        raise RefusedError(503, f"lease: {error}, expected one; read over HTTP") from None
    return handing.offer([lease, *found.files])


def _answer(**told: object) -> Response:
    # it may be long: the framework's own way looks at each number
    return Response(json.dumps(told, separators=(",", ":")), media_type="application/json")
