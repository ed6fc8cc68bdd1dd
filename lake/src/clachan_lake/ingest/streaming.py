"""Answers that come block by block, the next block read by a thread while the one before is sent."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping

import anyio
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

Part = bytes | memoryview


class Streamed(StreamingResponse):
    """`close` is called once, also when the client goes away, and never while a part is being read."""

    def __init__(
        self, parts: Iterator[Part], close: Callable[[], None], status: int, headers: Mapping[str, str]
    ) -> None:
        self._parts = parts
        self._ahead = _ahead(parts)
        self._close = close
        super().__init__(self._ahead, status, headers, media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._ahead.aclose()
            if isinstance(self._parts, Generator):
                # it may be at a view of what the session has mapped
                self._parts.close()
            self._close()


async def _ahead(parts: Iterator[Part]) -> AsyncGenerator[Part, None]:
    following = _read(parts)
    try:
        while (part := await _of(following)) is not None:
            following = _read(parts)
            yield part
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([following])
        following.exception()  # of a part that nobody waits for any more


async def _of(reading: "asyncio.Task[Part | None]") -> Part | None:
    # to wait for a task itself would cancel it with the request, and its thread would go on without it
    await asyncio.wait([reading])
    return reading.result()


def _read(parts: Iterator[Part]) -> "asyncio.Task[Part | None]":
    return asyncio.ensure_future(run_in_threadpool(next, parts, None))
