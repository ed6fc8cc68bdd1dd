"""Streams: bytes between this process and a port of an instance, over the node's own connection to the controller.

    stream = Streams(url, token=token, ca_file=ca).open("lab.web", 20000)
    threading.Thread(target=stream.bring, args=(0, lambda: os.read(0, BLOCK)), daemon=True).start()
    for data in stream.take():
        os.write(1, data)

Two requests carry a stream, each on a connection of its own: the body of a POST brings bytes, the answer to a GET
takes them. It stands on `http.client` alone, without the rest of the SDK: SSH starts it for every connection, and
`requests` and `pydantic` would take three times as long to import as everything else.
"""

import http.client
import json
import os
import select
import socket
import ssl
import struct
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from clachan.client.address import controller_address, is_loopback
from clachan.client.errors import ApiError, BadAnswerError, UnreachableError, UntrustedError

API = "/api/v1"
BLOCK = 64 * 1024
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 40.0
ANSWER_BYTES = 4 * 1024 * 1024
LOOK_SECONDS = 1.0
"""How often it is seen whether who waits for a service that takes nothing is still there."""
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A NAT keeps the connection of a silent terminal, and a controller that lost its power is noticed."""

Connection = http.client.HTTPSConnection
_FAILURES = (OSError, http.client.HTTPException)


class Stream:
    """An open stream. `bring` and `take` run at the same time, in two threads; leave the context when both are done."""

    def __init__(self, name: str, up: Connection, down: Connection, answer: http.client.HTTPResponse) -> None:
        self._name, self._up, self._down, self._answer = name, up, down, answer
        self._sockets = (up.sock, down.sock)
        for each in self._sockets:
            each.settimeout(None)

    def bring(self, source: int, read: Callable[[], bytes]) -> bool:
        """Send what `read` gives of the descriptor, until it gives nothing; False when the stream breaks off."""
        up = self._sockets[0]
        watched = select.poll()
        watched.register(source, select.POLLIN)
        # the controller answers nothing before the end: what can be seen is that it cut the connection
        watched.register(up, getattr(select, "POLLRDHUP", 0))
        try:
            while up.fileno() not in dict(watched.poll()):
                if not (data := read()):
                    up.sendall(b"0\r\n\r\n")
                    self._up.getresponse().read(ANSWER_BYTES)
                    return True
                up.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        except _FAILURES:
            pass
        self.close()
        return False

    def take(self) -> Iterator[bytes]:
        """What comes, until its end; raises UnreachableError when the stream breaks off."""
        try:
            while data := self._answer.read1(BLOCK):
                yield data
        except _FAILURES as error:
            raise UnreachableError(f"{self._name}: broke off, expected its end") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._up, self._down):
            connection.close()

    def close(self) -> None:
        """Break off what has not ended; wakes the threads in `bring` and `take`."""
        for each in self._sockets:
            with suppress(OSError):
                # SSLSocket's own would let a thread that sends just then send plain text
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class Streams:
    """Of one controller, as a user (by token) or a node (by certificate)."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: Path | str | None = None,
        cert: tuple[Path | str, Path | str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`context`: instead of one that trusts the CA alone."""
        self._url, self._host, self._port = controller_address(url, ca_file)
        self._context = context or ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        if cert:
            self._context.load_cert_chain(str(cert[0]), str(cert[1]))
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def document(self, path: str, body: Any = None) -> Any:
        """The JSON document at a path below /api/v1, or the answer to one that is posted there."""
        method, text = ("GET", None) if body is None else ("POST", json.dumps(body))
        with self._as_client_errors(), closing(self._connected()) as connection:
            return self._json(connection, method, API + path, text)

    def text(self, path: str) -> str:
        """The text at a path below /api/v1."""
        with self._as_client_errors(), closing(self._connected()) as connection:
            return self._answer(connection, "GET", API + path).read(ANSWER_BYTES).decode("ascii", "replace")

    def open(self, path: str, port: int | str | None = None) -> Stream:
        """A stream to a port of an instance (None: the usual one), or `console` or `vnc` of a VM, when its node has
        connected to it."""
        where = f"{API}/instances/{quote(path, safe='')}/streams"
        with self._as_client_errors(), ExitStack() as undo:
            connection = undo.enter_context(closing(self._connected()))
            opened = self._json(connection, "POST", where, json.dumps({"port": port}))
            name = f"stream to {path} {named(opened['port'])}"
            return self._carried(undo, f"{where}/{opened['id']}", name, connection)

    def take_up(self, identifier: str) -> Stream:
        """As the node that was asked for the stream."""
        where = f"{API}/nodes/self/streams/{quote(identifier, safe='')}"
        with self._as_client_errors(), ExitStack() as undo:
            connection = undo.enter_context(closing(self._connected()))
            return self._carried(undo, where, f"stream {identifier}", connection)

    def _carried(self, undo: ExitStack, where: str, name: str, down: Connection) -> Stream:
        up = undo.enter_context(closing(self._connected()))
        up.putrequest("POST", where, skip_accept_encoding=True)
        headers = {"Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked"}
        for header, value in (self._headers | headers).items():
            up.putheader(header, value)
        up.endheaders()
        stream = Stream(name, up, down, self._answer(down, "GET", where))
        undo.pop_all()
        return stream

    def _json(self, connection: Connection, method: str, where: str, body: str | None = None) -> Any:
        answer = self._answer(connection, method, where, body)
        try:
            return json.loads(answer.read(ANSWER_BYTES))
        except ValueError as error:
            raise self._foreign(method, where, answer.status) from error

    def _answer(
        self, connection: Connection, method: str, where: str, body: str | None = None
    ) -> http.client.HTTPResponse:
        """The answer, its body not yet read; raises ApiError when the controller refused."""
        json_type = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, where, body, self._headers | json_type)
        answer = connection.getresponse()
        if answer.status < 300:
            return answer
        try:
            error = json.loads(answer.read(ANSWER_BYTES))["error"]
            refusal = ApiError(error["code"], error["message"], error["field"], error["hint"], answer.status)
        except (ValueError, KeyError, TypeError):
            raise self._foreign(method, where, answer.status) from None
        raise refusal

    def _foreign(self, method: str, where: str, status: int) -> BadAnswerError:
        return BadAnswerError(
            f"answer to {method} {where} of {self._url}: status {status}, expected a Clachan controller"
        )

    def _connected(self) -> Connection:
        proxy = self._proxy()
        place = (proxy.hostname or "", proxy.port or 3128) if proxy else (self._host, self._port)
        connection = http.client.HTTPSConnection(*place, timeout=CONNECT_SECONDS, context=self._context)
        if proxy:
            who = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}" if proxy.username else ""
            credentials = {"Proxy-Authorization": f"Basic {b64encode(who.encode()).decode()}"} if who else {}
            connection.set_tunnel(self._host, self._port, credentials)
        connection.connect()
        connection.sock.settimeout(ANSWER_SECONDS)
        keep_alive(connection.sock)
        return connection

    def _proxy(self) -> Any:
        """The environment's proxy for the controller, split; None without one."""
        if is_loopback(self._host) or not any(name.lower().endswith("_proxy") for name in os.environ):
            return None
        from urllib.request import getproxies, proxy_bypass

        found = getproxies()
        chosen = found.get("https") or found.get("all")
        return urlsplit(chosen) if chosen and not proxy_bypass(self._host) else None

    @contextmanager
    def _as_client_errors(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", None) or error.reason or "handshake failed"
            raise UntrustedError(f"controller {self._url}: {reason}, expected a certificate of its CA") from error
        except TimeoutError as error:
            raise UnreachableError(f"controller {self._url}: no answer in time") from error
        except _FAILURES as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UnreachableError(f"controller {self._url}: not reachable ({reason})") from error


def named(port: int | str) -> str:
    return f"port {port}" if isinstance(port, int) else port


def carry(stream: Stream, service: socket.socket) -> None:
    """Until both directions have ended, or one broke off: then both do, and the service sees a reset, not an end."""
    service.settimeout(LOOK_SECONDS)
    cut = threading.Event()

    def bring() -> None:
        if not stream.bring(service.fileno(), lambda: service.recv(BLOCK)):
            cut.set()

    bringing = threading.Thread(target=bring, name="stream", daemon=True)
    bringing.start()
    try:
        for data in stream.take():
            _deliver(service, data, cut)
        service.shutdown(socket.SHUT_WR)
    except UnreachableError:
        cut.set()
    except OSError:  # it takes no more: what it still says is brought to its end
        pass
    bringing.join()
    stream.close()
    if cut.is_set():
        service.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _deliver(service: socket.socket, data: bytes, cut: threading.Event) -> None:
    """While the service takes nothing, see whether anyone still waits for that."""
    left = memoryview(data)
    while left:
        try:
            left = left[service.send(left) :]
        except TimeoutError:
            if cut.is_set():
                raise


def keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
