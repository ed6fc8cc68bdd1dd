"""uvicorn's HTTP, with bodies that are handed on as they were read."""

import asyncio

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from clachan_lake.access.permissions import INGESTION
from clachan_lake.ingest.spool import WAITING_BYTES, Take, unless_silent
from clachan_lake.refusal import RefusedError

PREFIXES = tuple(path.partition("{")[0] for path in INGESTION)
"""Of the paths whose bodies are many and long."""
DIRECT = "clachan.direct"
"""Where an ASGI scope has the body's `feed`."""


class BodyProtocol(HttpToolsProtocol):
    """uvicorn copies what it has read to the end of what the application did not take yet, and again when it takes it.
    Of a long body there is nearly always one part: it stays as it is. Who asks for the body by `DIRECT` has each part
    when it is parsed, without a turn of the event loop for it."""

    _direct: "Direct | None" = None

    def on_headers_complete(self) -> None:
        """httptools' callback."""
        before = self.cycle
        super().on_headers_complete()
        self._direct = None
        if self.cycle is not before and self.scope["path"].startswith(PREFIXES):
            self._direct = Direct(self, self.cycle)
            self.scope[DIRECT] = self._direct.feed  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        """httptools' callback, with a part of the body."""
        cycle = self.cycle
        if self._direct is not None and self._direct.takes(body):
            return
        if cycle.body or len(body) <= HIGH_WATER_LIMIT or cycle.response_complete or self.parser.should_upgrade():
            super().on_body(body)
            return
        cycle.body = body  # type: ignore[assignment]  # it is only added to, and read
        self.flow.pause_reading()
        cycle.message_event.set()


class Direct:
    """The body of one request. What comes before it is asked for stays as it is: it takes less time to read on than to
    have the kernel told to wait."""

    def __init__(self, protocol: BodyProtocol, cycle: RequestResponseCycle) -> None:
        self._flow = protocol.flow
        self._cycle = cycle
        self._take: Take | None = None
        self._kept: list[bytes] = []
        self._parts = 0
        self._error: Exception | None = None

    def takes(self, body: bytes) -> bool:
        """Whether the next part is here, and no more uvicorn's."""
        if self._take is not None:
            self._give(body)
            return True
        if self._cycle.response_complete or not (self._kept or len(body) > HIGH_WATER_LIMIT):
            return False
        self._kept.append(body)
        if sum(map(len, self._kept)) >= WAITING_BYTES:
            self._flow.pause_reading()
        return True

    async def feed(self, take: Take) -> None:
        """Have all of the body taken; raises what that raised, ClientDisconnect for one that was cut, RefusedError
        (408)."""
        cycle = self._cycle
        if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        self._take = take
        try:
            self._flow.resume_reading()
            kept, cycle.body, self._kept = [bytes(cycle.body), *self._kept], bytearray(), []
            for body in kept:
                self._give(body)
            while cycle.more_body and self._error is None:
                if cycle.disconnected:
                    raise ClientDisconnect
                await self._news()
        finally:
            self._take = None
        if self._error is not None:
            raise self._error

    async def _news(self) -> None:
        """Until all is there, or something is wrong."""
        seen = self._parts
        try:
            await unless_silent(self._cycle.message_event.wait())
        except RefusedError:
            if self._parts == seen and not self._flow.read_paused:
                raise
        self._cycle.message_event.clear()

    def _give(self, body: bytes) -> None:
        """The next part. What the taking raises `feed` raises: here the parser would make another thing of it."""
        self._parts += 1
        try:
            wait = self._take(body) if self._take else None
        except Exception as error:
            self._error, self._take = error, None
            self._cycle.message_event.set()
            return
        if wait is not None:
            self._flow.pause_reading()
            wait.add_done_callback(self._go_on)

    def _go_on(self, _done: "asyncio.Future[None]") -> None:
        if self._take is not None:
            self._flow.resume_reading()
