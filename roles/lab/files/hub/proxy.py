# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one address of a hub: hands each connection to the hub or to the server of a user, by the beginning of its path.

It speaks the REST interface of JupyterHub's configurable-http-proxy, so the hub needs no code for it; that one is a
program of Node, and its Python counterpart has no TLS and holds whole answers in memory. Here a connection carries one
request: its head is read, the rest goes through in both directions as it comes, so uploads, downloads and WebSockets
are all the same, and cost no memory. Routes are kept in a file: they are there again when this process is started anew.

proxy.py    settings in etc/proxy.json, the hub's secret in etc/proxy-token, routes in var/routes.json of CLACHAN_SLOT
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SLOT = Path(os.environ["CLACHAN_SLOT"])
ROUTES = SLOT / "var" / "routes.json"
API = "/api/routes"
HEAD_BYTES, BODY_BYTES, BLOCK_BYTES = 64 << 10, 1 << 20, 64 << 10
HEAD_SECONDS, CONNECT_SECONDS = 60, 10
OWN = {"connection", "keep-alive", "proxy-connection", "forwarded", "x-real-ip", "x-scheme"}
"""Headers that only this process says, beside all that begin with x-forwarded-."""
REASONS = {400: "Bad Request", 403: "Forbidden", 404: "Not Found", 503: "Service Unavailable"}


class RefusedError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Head:
    """The first line and the headers of a request, as bytes that latin-1 shows."""

    def __init__(self, raw: bytes) -> None:
        lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        if any(sign in line for line in lines for sign in "\r\n\0"):
            raise RefusedError(400, "head: a sign that others may take for a line's end, expected CR LF")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[1].startswith("/") or not words[2].startswith("HTTP/1."):
            raise RefusedError(400, "request: not one of HTTP/1, expected a path of this server")
        self.method, self.target, self.version = words
        self.headers = [self._header(line) for line in lines[1:]]

    def _header(self, line: str) -> tuple[str, str]:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or not name:
            raise RefusedError(400, "header: not one of HTTP/1, expected NAME: VALUE")
        return name, value.strip()

    def get(self, wanted: str) -> str:
        return next((value for name, value in self.headers if name.lower() == wanted), "")

    def sent_on(self, client: str, scheme: str) -> bytes:
        """As the one request of its connection."""
        upgrade = self.get("upgrade").lower() == "websocket"
        kept = [
            (name, value)
            for name, value in self.headers
            if name.lower() not in OWN and not name.lower().startswith("x-forwarded-")
        ]
        said = [
            ("Connection", "Upgrade" if upgrade else "close"),
            ("X-Forwarded-For", client),
            ("X-Forwarded-Proto", scheme),
            ("X-Forwarded-Host", self.get("host")),
        ]
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in kept + said)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Routes:
    """Where each path leads: the longest beginning counts."""

    def __init__(self) -> None:
        self._all: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._all = json.loads(ROUTES.read_text())

    def find(self, target: str) -> dict[str, Any]:
        parts = [part for part in unquote(target.partition("?")[0]).split("/") if part]
        for length in range(len(parts), -1, -1):
            if found := self._all.get("/" + "/".join(parts[:length])):
                return found
        raise RefusedError(404, "page: leads nowhere, expected one of the hub")

    def all(self) -> dict[str, dict[str, Any]]:
        return self._all

    def add(self, path: str, route: dict[str, Any]) -> None:
        place = urlsplit(str(route.get("target")))
        if place.scheme != "http" or not place.hostname or not place.port:
            raise RefusedError(400, "target: expected http://ADDRESS:PORT")
        self._all[path] = {**route, "last_activity": now()}
        self._keep()

    def remove(self, path: str) -> bool:
        known = self._all.pop(path, None) is not None
        self._keep()
        return known

    def _keep(self) -> None:
        draft = ROUTES.with_name(".routes.json.new")
        draft.write_text(json.dumps(self._all))
        draft.replace(ROUTES)


def now() -> str:
    return datetime.now(UTC).isoformat()


class Proxy:
    def __init__(self, secret: str, scheme: str) -> None:
        self._secret, self._scheme, self._routes = secret, scheme, Routes()

    async def hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def work() -> None:
            head = Head(await read_head(reader))
            route = self._routes.find(head.target)
            inside, outside = await self._connect(route["target"])
            try:
                outside.write(head.sent_on(str(writer.get_extra_info("peername")[0]), self._scheme))
                await both_ways((reader, writer), (inside, outside), route)
            finally:
                await close(outside)

        await served(writer, work())

    async def _connect(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = urlsplit(target)
        try:
            return await asyncio.wait_for(asyncio.open_connection(place.hostname, place.port), CONNECT_SECONDS)
        except (TimeoutError, OSError):
            raise RefusedError(503, "server: does not answer, expected it to run: try again in a moment") from None

    async def answer_hub(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def work() -> None:
            head = Head(await read_head(reader))
            given = head.get("authorization").removeprefix("token ").strip()
            if not hmac.compare_digest(given.encode("latin-1"), self._secret.encode()):
                raise RefusedError(403, "credentials: none or wrong, expected the hub's token")
            size = int(head.get("content-length") or 0) if (head.get("content-length") or "0").isdigit() else -1
            if not 0 <= size <= BODY_BYTES:
                raise RefusedError(400, f"body: expected at most {BODY_BYTES} bytes")
            status, document = self._change(head, await reader.readexactly(size))
            writer.write(answer(status, json.dumps(document).encode(), "application/json"))

        await served(writer, work())

    def _change(self, head: Head, body: bytes) -> tuple[int, Any]:
        path = unquote(head.target.partition("?")[0])
        if path != API and not path.startswith(API + "/"):
            raise RefusedError(404, f"path: expected one below {API}")
        route = "/" + path.removeprefix(API).strip("/")
        if head.method == "GET":
            return 200, self._routes.all()
        if head.method == "POST":
            self._routes.add(route, json.loads(body))
            return 201, {}
        if head.method == "DELETE":
            return (204 if self._routes.remove(route) else 404), {}
        raise RefusedError(400, "method: expected GET, POST or DELETE")


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
    except asyncio.LimitOverrunError:
        raise RefusedError(400, f"head: longer than {HEAD_BYTES} bytes, expected less") from None


async def served(writer: asyncio.StreamWriter, work: Any) -> None:
    """Whatever goes wrong is this connection's matter only."""
    try:
        await work
        await writer.drain()
    except RefusedError as error:
        with contextlib.suppress(OSError):
            writer.write(answer(error.status, f"{error}\n".encode(), "text/plain; charset=utf-8"))
            await writer.drain()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError):
        pass  # gone, or nothing that can be answered
    finally:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), CONNECT_SECONDS)


def answer(status: int, body: bytes, kind: str) -> bytes:
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'OK')}\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    if status == 204:
        return f"{head}\r\n".encode()
    return f"{head}X-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def both_ways(client: Pair, server: Pair, route: dict[str, Any]) -> None:
    """Until the server has said all; who hears no more of the client goes on answering."""

    async def up() -> None:
        await through(client[0], server[1], route)
        with contextlib.suppress(OSError, RuntimeError):
            server[1].close()  # the client is gone, and so is the request

    sending = asyncio.create_task(up())
    try:
        await through(server[0], client[1], route)
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await sending


async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, route: dict[str, Any]) -> None:
    while block := await reader.read(BLOCK_BYTES):
        route["last_activity"] = now()
        writer.write(block)
        await writer.drain()


async def main() -> None:
    settings = json.loads((SLOT / "etc/proxy.json").read_text())
    context = None
    if settings["certificate"]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(settings["certificate"], settings["key"])
    proxy = Proxy((SLOT / "etc/proxy-token").read_text().strip(), "https" if context else "http")
    address = settings["address"]
    front = await asyncio.start_server(proxy.hand_on, address, settings["port"], ssl=context, limit=HEAD_BYTES)
    inner = await asyncio.start_server(proxy.answer_hub, address, settings["api_port"], limit=HEAD_BYTES)
    sys.stderr.write(f"proxy at {address}, port {settings['port']}\n")
    async with front, inner:
        await asyncio.gather(front.serve_forever(), inner.serve_forever())


if __name__ == "__main__":
    asyncio.run(main())
