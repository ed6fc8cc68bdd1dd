"""uvicorn's HTTP, with bodies that are handed on as they were read."""

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BodyProtocol(HttpToolsProtocol):
    """uvicorn copies what it has read to the end of what the application did not take yet, and again when it takes it.
    Of a long body there is nearly always one part: it stays as it is."""

    def on_body(self, body: bytes) -> None:
        """httptools' callback, with a part of the body."""
        cycle = self.cycle
        if cycle.body or len(body) <= HIGH_WATER_LIMIT or cycle.response_complete or self.parser.should_upgrade():
            super().on_body(body)
            return
        cycle.body = body  # type: ignore[assignment]  # it is only added to, and read
        self.flow.pause_reading()
        cycle.message_event.set()
