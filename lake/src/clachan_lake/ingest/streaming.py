"""Answers that come block by block, the next block read by a thread while the one before is sent."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping

import anyio
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

Part = bytes | memoryview
KEPT = 4
AGAIN_SECONDS = 1.0


class Streamed(StreamingResponse):
    """`close` is called once, also when the client goes away, and never while a part is being read."""

    def __init__(
        self, parts: Iterator[Part], close: Callable[[], None], status: int, headers: Mapping[str, str]
    ) -> None:
        self._parts = parts
        self._last: deque[Part] = deque(maxlen=KEPT)
        self._is_sent = False
        self._ahead = _ahead(parts, self._last)
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
            if not self._is_sent:
                _forget(self._last)
            self._close()

    async def stream_response(self, send: Send) -> None:
        await super().stream_response(send)
        self._is_sent = True


def _forget(parts: Iterable[Part]) -> None:
    """When the client has gone away, what happened refers to the last parts until somebody collects garbage, and what
    they are views of would be kept so long."""
    kept = []
    for part in parts:
        try:
            if isinstance(part, memoryview):
                part.release()
        except BufferError:
            # the connection still has it
            kept.append(part)
    if kept:
        asyncio.get_running_loop().call_later(AGAIN_SECONDS, _forget, kept)


async def _ahead(parts: Iterator[Part], last: deque[Part]) -> AsyncGenerator[Part, None]:
    following = _read(parts)
    try:
        while (part := await _of(following)) is not None:
            last.append(part)
            following = _read(parts)
            yield part
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([following])
        # of a part that nobody waits for any more
        if following.exception() is None and (part := following.result()) is not None:
            last.append(part)


async def _of(reading: "asyncio.Task[Part | None]") -> Part | None:
    # to wait for a task itself would cancel it with the request, and its thread would go on without it
    await asyncio.wait([reading])
    return reading.result()


def _read(parts: Iterator[Part]) -> "asyncio.Task[Part | None]":
    return asyncio.ensure_future(run_in_threadpool(next, parts, None))
