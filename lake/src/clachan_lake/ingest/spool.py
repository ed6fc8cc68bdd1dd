"""Receiving a body: small ones in memory, others straight to a file that is synced before it is committed."""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from clachan_lake.errors import LakeError
from clachan_lake.format import PIECE_BYTES
from clachan_lake.ingest.config import Config
from clachan_lake.ingest.refusal import RefusedError
from clachan_lake.streams.chunk import Chunk, Digester

SILENT_SECONDS = 60.0


class Spool:
    """One body on its way. As a context manager it removes its file whatever happens."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._path = folder / uuid.uuid4().hex
        self._limit = limit
        self._length = 0
        self._memory = bytearray()
        self._descriptor = -1

    async def receive(self, body: AsyncIterator[bytes]) -> Chunk:
        """Raises RefusedError (413 too long, 408 too slow), OSError when the disk is full; the framework's
        ClientDisconnect when it is cut."""
        digester = Digester()
        source = await self.take(body, digester.update)
        if isinstance(source, Path):
            await run_in_threadpool(os.fsync, self._descriptor)
        return Chunk(digester.length, digester.sha256, digester.checksums, source)

    async def take(
        self, body: AsyncIterator[bytes], seen: Callable[[bytes], None] = lambda _data: None
    ) -> bytes | Path:
        """The bytes, or the file that holds them, which is not synced; raises as `receive` does."""
        while (data := await self._next(body)) is not None:
            seen(data)
            self._length += len(data)
            if self._length > self._limit:
                raise too_large(self._length, self._limit)
            self._write(data)
        return bytes(self._memory) if self._descriptor < 0 else self._path

    async def _next(self, body: AsyncIterator[bytes]) -> bytes | None:
        try:
            return await asyncio.wait_for(anext(body, None), SILENT_SECONDS)
        except TimeoutError:
            raise RefusedError(408, f"body: nothing came for {SILENT_SECONDS} s, expected all of it") from None

    def _write(self, data: bytes) -> None:
        if self._descriptor < 0:
            self._memory += data
            if len(self._memory) <= PIECE_BYTES:
                return
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            data, self._memory = bytes(self._memory), bytearray()
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._path.unlink(missing_ok=True)


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
    if length > config.maximum_body_mib << 20:
        raise too_large(length, config.maximum_body_mib << 20)
    free = shutil.disk_usage(config.folder).free
    if free - length < config.minimum_free_mib << 20:
        raise RefusedError(507, f"disk: {free >> 20} MiB free, expected {config.minimum_free_mib} MiB after the chunk")
    return length


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
