"""Receiving a body: a small one in memory, others behind the end of an extent, or in a file.

What costs more than a moment (writing, digests, inflating) is done by a few threads while the next bytes come in, so
no sender holds up another. The disk begins with a body from its first bytes on; they are synced with the commit, or
here when it is long.
"""

import asyncio
import shutil
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from starlette.requests import ClientDisconnect, Request

from clachan_lake.errors import LakeError
from clachan_lake.format import PIECE_BYTES
from clachan_lake.ingest.config import Config
from clachan_lake.ingest.inflating import Inflater
from clachan_lake.refusal import RefusedError
from clachan_lake.streams.chunk import Chunk, Digester
from clachan_lake.streams.extents import Extents, Room

T = TypeVar("T")
SILENT_SECONDS = 60.0
SYNC_BYTES = 4 << 20
"""A longer body is synced before it waits for a commit, which it would hold up."""
ENCODINGS = {"identity": False, "gzip": True, "x-gzip": True}
GATHERED_BYTES = 192 << 10
"""A thread begins when so many wait for it."""
SHORT_BYTES = 64 << 10
"""The last ones are done at once, sooner than a thread is woken."""
WAITING_BYTES = 1 << 20
"""No more is read while so many wait."""
Take = Callable[[bytes], "asyncio.Future[None] | None"]
"""Of the next bytes of a body; what to wait for, if for something, before there are more. Raises RefusedError."""
Feed = Callable[[Take], Awaitable[None]]
"""Has all bytes taken as they come; raises what the taking raised, and ClientDisconnect."""
_pool = ThreadPoolExecutor(4, "spool")


class Spool:
    """One body on its way. As a context manager it lets go of its room whatever happens. `digest`: also by SHA-256."""

    def __init__(self, extents: Extents, limit: int, *, gzip: bool = False, digest: bool = True) -> None:
        self._extents = extents
        self._limit = limit
        self._room: Room | None = None
        self._memory = bytearray()
        self._inflater = Inflater() if gzip else None
        self._digester = Digester(whole=digest)
        self._parts: deque[bytes] = deque()
        self._taken = self._done = self._length = 0
        self._working: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    async def receive(self, feed: Feed) -> Chunk:
        """Raises RefusedError (413 too long, 408 too slow, 400 not gzip), OSError when the disk is full; the
        framework's ClientDisconnect when it is cut."""
        await self._all(feed)
        if self._length > SYNC_BYTES and self._room:
            await asyncio.get_running_loop().run_in_executor(_pool, self._room.sync)
        digester = self._digester
        source = self._room.source if self._room else bytes(self._memory)
        return Chunk(digester.length, digester.sha256, digester.checksums, source)

    async def take(self, feed: Feed) -> bytes | Path:
        """The bytes, or a file that has nothing else, and is not synced; raises as `receive` does."""
        await self._all(feed)
        return self._room.as_file() if self._room else bytes(self._memory)

    async def _all(self, feed: Feed) -> None:
        await feed(self._take)
        await self._finish()
        if self._inflater:
            self._inflater.check_end()

    def _take(self, data: bytes) -> "asyncio.Future[None] | None":
        if self._error is not None:
            raise self._error
        self._taken += len(data)
        if self._inflater is None and self._taken > self._limit:
            raise too_large(self._taken, self._limit)
        self._parts.append(data)
        waiting = self._taken - self._done
        if self._working is None and waiting >= GATHERED_BYTES:
            self._begin()
        return self._working if waiting >= WAITING_BYTES else None

    def _begin(self) -> "asyncio.Future[None]":
        """Let a thread do it, and what comes while it does."""
        self._working = asyncio.get_running_loop().run_in_executor(_pool, self._work)
        self._working.add_done_callback(self._ended)
        return self._working

    def _ended(self, done: "asyncio.Future[None]") -> None:
        self._working = None
        self._error = self._error or done.exception()
        if self._error is None and self._taken - self._done >= GATHERED_BYTES:
            self._begin()

    async def _finish(self) -> None:
        while self._error is None and (self._parts or self._working):
            if self._working is None and self._inflater is None and self._taken - self._done <= SHORT_BYTES:
                self._work()
            else:
                # a request that is cancelled does not cancel the thread
                await asyncio.wait([self._working or self._begin()])
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while self._parts:
            parts = [self._parts.popleft() for _ in range(len(self._parts))]
            if self._inflater is None:
                self._add(parts)
            else:
                for part in parts:
                    for inflated in self._inflater.inflate(part):
                        self._add([inflated])
            self._done += sum(map(len, parts))

    def _add(self, parts: list[bytes]) -> None:
        self._length += sum(map(len, parts))
        if self._length > self._limit:
            raise too_large(self._length, self._limit)
        for part in parts:
            self._digester.update(part)
        if self._room is None and self._length <= PIECE_BYTES:
            self._memory += b"".join(parts)
            return
        if self._room is None:
            self._room = self._extents.room()
            parts, self._memory = [bytes(self._memory), *parts], bytearray()
        self._room.write(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._parts.clear()
        if self._working is not None and not self._working.done():
            # a thread is still at it, as the request was cut or refused meanwhile
            self._working.add_done_callback(self._give_up)
        else:
            self._let_go()

    def _give_up(self, done: "asyncio.Future[None]") -> None:
        done.exception()  # nobody asks for it
        self._let_go()

    def _let_go(self) -> None:
        if self._room is not None:
            self._room.let_go()
            self._room = None


def each(body: AsyncIterator[bytes]) -> Feed:
    """Feeds from what comes in turn."""

    async def feed(take: Take) -> None:
        while (data := await unless_silent(anext(body, None))) is not None:
            if data and (wait := take(data)):
                await asyncio.wait([wait])

    return feed


async def unless_silent(coming: Awaitable[T]) -> T:
    """The next of a body; raises RefusedError (408)."""
    try:
        async with asyncio.timeout(SILENT_SECONDS):
            return await coming
    except TimeoutError:
        raise RefusedError(408, f"body: nothing came for {SILENT_SECONDS} s, expected all of it") from None


def too_large(length: int, limit: int) -> RefusedError:
    return RefusedError(
        413,
        f"body: {length} bytes or more, expected at most {limit}",
        hint="send it in parts: several requests with the same name",
    )


def check_body(config: Config, request: Request) -> int:
    """What can be refused before the body is read. Returns the length that it is said to have."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RefusedError(415, f"content-encoding: {encoding:.80}, expected identity")
    length = int(request.headers.get("content-length") or 0)
    check_room(config, length)
    return length


def check_room(config: Config, length: int) -> None:
    """Raises RefusedError (413, 507) for a body that is said to have so many bytes."""
    if length > config.maximum_body_mib << 20:
        raise too_large(length, config.maximum_body_mib << 20)
    free = shutil.disk_usage(config.folder).free
    if free - length < config.minimum_free_mib << 20:
        raise RefusedError(507, f"disk: {free >> 20} MiB free, expected {config.minimum_free_mib} MiB after the chunk")


@contextmanager
def receiving() -> Iterator[None]:
    """Around all that is done with a body: a cut one and a full disk are refusals."""
    try:
        yield
    except ClientDisconnect:
        raise RefusedError(400, "body: cut, expected all of it") from None
    except OSError as error:
        if isinstance(error, LakeError):
            raise
        raise RefusedError(507, f"disk: {error.strerror or error}, expected room for the chunk") from error
