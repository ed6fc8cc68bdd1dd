"""Servers that a real controller never is: what stands in its place when a proxy, a stranger or a liar answers."""

import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from clachan.server.ca import Authority


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """Close the connection instead of answering."""


@dataclass
class OddServer:
    """Answers each request with the next of `answers`, the last one for ever; remembers what was asked."""

    url: str
    ca_file: Path
    fingerprint: str
    answers: list[Answer] = field(default_factory=list)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def will_answer(self, *answers: tuple[int, bytes] | tuple[int, bytes, dict[str, str]] | None) -> None:
        """Status, body and headers of each; None: the connection is closed without an answer."""
        self.answers = [Answer(*given) if given else Answer(drop=True) for given in answers]

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def _handler(server: Callable[[], OddServer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server().asked.append((self.command, self.path, dict(self.headers), body))
            answer = server().next_answer()
            if answer.drop:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_PUT = do_POST = do_DELETE = _any  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that turns away is what some tests are about."""


@pytest.fixture
def odd_server(tmp_path: Path) -> Iterator[OddServer]:
    authority = Authority(tmp_path / "odd-ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.server_certificate(["127.0.0.1"], 1))
    odd: list[OddServer] = []
    with _QuietServer(("127.0.0.1", 0), _handler(lambda: odd[0])) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        odd.append(
            OddServer(
                f"https://127.0.0.1:{server.server_address[1]}", tmp_path / "odd-ca/ca.crt", authority.fingerprint
            )
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield odd[0]
        server.shutdown()
        thread.join()
