"""Receiving a body: small ones in memory, others straight to a file that is synced before it is committed."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from starlette.concurrency import run_in_threadpool

from clachan_lake.format import PIECE_BYTES
from clachan_lake.ingest.refusal import RefusedError
from clachan_lake.streams.chunk import Chunk, Digester

SILENT_SECONDS = 60.0


class Spool:
    """One body on its way. As a context manager it removes its file whatever happens."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._path = folder / uuid.uuid4().hex
        self._limit = limit
        self._digester = Digester()
        self._memory = bytearray()
        self._descriptor = -1

    async def receive(self, body: AsyncIterator[bytes]) -> Chunk:
        """Raises RefusedError (413 too long, 408 too slow), OSError when the disk is full; the framework's
        ClientDisconnect when it is cut."""
        while (data := await self._next(body)) is not None:
            self._digester.update(data)
            if self._digester.length > self._limit:
                raise too_large(self._digester.length, self._limit)
            self._write(data)
        if self._descriptor < 0:
            return self._chunk(bytes(self._memory))
        await run_in_threadpool(os.fsync, self._descriptor)
        return self._chunk(self._path)

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

    def _chunk(self, source: bytes | Path) -> Chunk:
        return Chunk(self._digester.length, self._digester.sha256, self._digester.checksums, source)

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
        hint="send it in chunks: several requests with the same reference",
    )
