"""Receiving a body: small ones in memory, others straight to a file.

What costs more than a moment (writing and digests of long ones, inflating) is done by a few threads while the next
bytes come in, so no sender holds up another. A file is being written to the disk from its first bytes on; it is synced
with the commit, or here when it is long.
"""

import asyncio
import os
import shutil
import uuid
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
from clachan_lake.storage.syncing import begin_writing
from clachan_lake.streams.chunk import Chunk, Digester

T = TypeVar("T")
SILENT_SECONDS = 60.0
SYNC_BYTES = 4 << 20
"""A longer file is synced before it waits for a commit, which it would hold up."""
ENCODINGS = {"identity": False, "gzip": True, "x-gzip": True}
GATHERED_BYTES = 192 << 10
"""So much at once goes to a thread, or all that there is."""
SHORT_BYTES = 1 << 20
Seen = Callable[[bytes | bytearray], None]
_pool = ThreadPoolExecutor(4, "spool")


class Spool:
    """One body on its way. As a context manager it removes its file whatever happens. `digest`: also by SHA-256."""

    def __init__(self, folder: Path, limit: int, *, gzip: bool = False, digest: bool = True) -> None:
        self._path = folder / uuid.uuid4().hex
        self._limit = limit
        self._length = 0
        self._memory = bytearray()
        self._descriptor = -1
        self._inflater = Inflater() if gzip else None
        self._digester = Digester(whole=digest)
        self._working: asyncio.Future[None] | None = None

    async def receive(self, body: AsyncIterator[bytes]) -> Chunk:
        """Raises RefusedError (413 too long, 408 too slow, 400 not gzip), OSError when the disk is full; the
        framework's ClientDisconnect when it is cut."""
        source = await self._take(body, self._digester.update)
        if self._length > SYNC_BYTES:
            await asyncio.get_running_loop().run_in_executor(_pool, os.fdatasync, self._descriptor)
        digester = self._digester
        return Chunk(digester.length, digester.sha256, digester.checksums, source)

    async def take(self, body: AsyncIterator[bytes]) -> bytes | Path:
        """The bytes, or the file that holds them, which is not synced; raises as `receive` does."""
        return await self._take(body, lambda _data: None)

    async def _take(self, body: AsyncIterator[bytes], seen: Seen) -> bytes | Path:
        gathered: bytes | bytearray = b""
        while (data := await unless_silent(anext(body, None))) is not None:
            gathered = bytearray(gathered) + data if gathered else data
            if len(gathered) >= GATHERED_BYTES:
                await self._begin(gathered, seen)
                gathered = b""
        if self._inflater or self._working or len(gathered) > PIECE_BYTES:
            await self._begin(gathered, seen)
        else:
            self._add(gathered, seen)
        await self._finish()
        if self._inflater:
            self._inflater.check_end()
        return bytes(self._memory) if self._descriptor < 0 else self._path

    async def _begin(self, data: bytes | bytearray, seen: Seen) -> None:
        """Let a thread do it when it has done what came before; what is done sooner than a thread is woken, at once."""
        if self._inflater is None and self._length + len(data) <= SHORT_BYTES and self._working is None:
            self._work(data, seen)
            return
        await self._finish()
        self._working = asyncio.get_running_loop().run_in_executor(_pool, self._work, data, seen)

    async def _finish(self) -> None:
        if self._working is not None:
            # a request that is cancelled does not cancel the thread
            await asyncio.wait([self._working])
            self._working.result()

    def _work(self, data: bytes | bytearray, seen: Seen) -> None:
        for part in self._inflater.inflate(data) if self._inflater else (data,):
            self._add(part, seen)

    def _add(self, data: bytes | bytearray, seen: Seen) -> None:
        self._length += len(data)
        if self._length > self._limit:
            raise too_large(self._length, self._limit)
        seen(data)
        self._write(data)

    def _write(self, data: bytes | bytearray) -> None:
        if self._descriptor < 0:
            self._memory += data
            if len(self._memory) <= PIECE_BYTES:
                return
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            data, self._memory = bytes(self._memory), bytearray()
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        begin_writing(self._descriptor, self._length - len(data), len(data))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._working is not None and not self._working.done():
            # a thread is still at it, as the request was cut or refused meanwhile
            self._working.add_done_callback(self._give_up)
        else:
            self._remove()

    def _give_up(self, done: "asyncio.Future[None]") -> None:
        done.exception()  # nobody asks for it
        self._remove()

    def _remove(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._path.unlink(missing_ok=True)


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
