"""uvicorn with what a controller needs: for the application the peer's certificate and a way to cut a connection, and
an end that waits for nobody.

uvicorn does not hand the client's certificate over; `PeerCertificateProtocol` puts it into the scope in the form of
the ASGI TLS extension, so that it can go when uvicorn learns it.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TICKS_AN_HOUR = 36_000
FLUSH_SECONDS = 0.3
"""What a last answer gets to leave."""


class PeerCertificateProtocol(HttpToolsProtocol):
    """Adds `scope["extensions"]`: `["tls"]["client_cert_der"]`, DER bytes of the verified certificate or None, and
    `["clachan"]["abort"]`, which ends the connection at once: an answer that breaks off does not look complete."""

    _extensions: dict[str, Any]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self._extensions = {"clachan": {"abort": transport.abort}}
        if tls is not None:
            self._extensions["tls"] = {"client_cert_der": tls.getpeercert(binary_form=True)}

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions


class Server(uvicorn.Server):
    """Ends long polls and streams first (`end`), then as uvicorn does; calls `renew` once an hour, for its own
    certificate."""

    def __init__(self, config: uvicorn.Config, end: Callable[[], None], renew: Callable[[], None]) -> None:
        super().__init__(config)
        self.end, self.renew = end, renew

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_AN_HOUR == TICKS_AN_HOUR - 1:
            await asyncio.to_thread(self.renew)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.end()
        ending = asyncio.create_task(self._end_idle())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_idle(self) -> None:
        """A peer that keeps an idle connection need not agree to its end: TLS would wait 30 s for it."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            for connection in list(self.server_state.connections):
                assert isinstance(connection, PeerCertificateProtocol)
                if connection.cycle is None or connection.cycle.response_complete:
                    connection.transport.abort()
