"""The proxy of a hub: what JupyterHub tells it, and what goes through it."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import requests

from .conftest import ROOT, wait_for

SECRET = "secret-of-the-hub"
MIB = 1 << 20


class Upstream(http.server.BaseHTTPRequestHandler):
    """Tells what it was asked, or as many bytes as the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.startswith("/many/"):
            self.send_header("Content-Length", str(64 * MIB))
            self.end_headers()
            for _ in range(64):
                self.wfile.write(bytes(MIB))
            return
        body = json.dumps({"path": self.path, "headers": [[key.lower(), value] for key, value in self.headers.items()]})
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        total = 0
        while total < left:
            total += len(self.rfile.read(min(MIB, left - total)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(str(total))))
        self.end_headers()
        self.wfile.write(str(total).encode())

    def log_message(self, *_: object) -> None:
        pass


class Proxy:
    def __init__(self, slot: Path) -> None:
        self.slot = slot
        with socket.socket() as one, socket.socket() as two:
            for each in (one, two):
                each.bind(("127.0.0.1", 0))
            self.port, self.api = one.getsockname()[1], two.getsockname()[1]
        for name in ("etc", "var"):
            (slot / name).mkdir()
        about = {"address": "127.0.0.1", "port": self.port, "api_port": self.api, "certificate": "", "key": ""}
        (slot / "etc/proxy.json").write_text(json.dumps(about))
        (slot / "etc/proxy-token").write_text(f"{SECRET}\n")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-I", str(ROOT / "roles/lab/files/hub/proxy.py")]
        variables = {"CLACHAN_SLOT": str(self.slot), "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL)
        wait_for(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", self.api)) == 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def ask(self, method: str, route: str, body: object = None, secret: str = SECRET) -> requests.Response:
        return requests.request(
            method,
            f"http://127.0.0.1:{self.api}/api/routes{route}",
            json=body,
            headers={"Authorization": f"token {secret}"},
            timeout=10,
            proxies={"http": ""},
        )

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=30, proxies={"http": ""}, **options)  # type: ignore[arg-type]

    def raw(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line:
            line.sendall(request)
            said = b""
            while block := line.recv(65536):
                said += block
            return said


@pytest.fixture
def upstream() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    made = Proxy(tmp_path)
    yield made
    made.end()


def test_the_longest_beginning_counts(proxy: Proxy, upstream: str) -> None:
    gone = "http://127.0.0.1:1"
    assert proxy.get("/user/alice/lab").status_code == 404
    assert proxy.ask("POST", "/", {"target": gone, "hub": True}).status_code == 201
    assert (
        proxy.ask("POST", "/user/alice", {"target": upstream, "jupyterhub": True, "user": "alice"}).status_code == 201
    )
    for path in ("/user/alice", "/user/alice/", "/user/alice/api?x=/user/bob"):
        assert proxy.get(path).json()["path"] == path
    for path in ("/user/alicexx/", "/user", "/hub/login"):
        assert proxy.get(path).status_code == HTTPStatus.SERVICE_UNAVAILABLE, path
    known = proxy.ask("GET", "").json()
    assert (known["/user/alice"]["user"], known["/"]["target"]) == ("alice", gone)
    assert known["/user/alice"]["last_activity"] > known["/"]["last_activity"]
    # after a kill the routes are there without the hub
    proxy.end()
    proxy.start()
    assert proxy.get("/user/alice/x").status_code == 200
    assert proxy.ask("DELETE", "/user/alice").status_code == 204
    assert proxy.ask("DELETE", "/user/alice").status_code == 404
    assert proxy.get("/user/alice/x").status_code == 503


def test_only_the_hub_says_where_paths_lead(proxy: Proxy, upstream: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert proxy.ask(method, "/x", {"target": upstream}, secret="wrong").status_code == 403
    for target in ("file:///etc/passwd", "https://x:1", "http://127.0.0.1", 5):
        assert proxy.ask("POST", "/x", {"target": target}).status_code == 400, target
    assert proxy.ask("GET", "").json() == {}


def test_who_asks_is_what_the_proxy_saw(proxy: Proxy, upstream: str) -> None:
    proxy.ask("POST", "/", {"target": upstream})
    given = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "Forwarded": "for=1.2.3.4", "X-Kept": "a"}
    found = dict(proxy.get("/x", headers=given).json()["headers"])
    assert (found["x-forwarded-for"], found["x-forwarded-proto"], found["x-kept"]) == ("127.0.0.1", "http", "a")
    assert "forwarded" not in found
    assert found["connection"] == "close"


def test_much_goes_through_and_is_not_kept(proxy: Proxy, upstream: str) -> None:
    proxy.ask("POST", "/", {"target": upstream})
    url = f"http://127.0.0.1:{proxy.port}/up"
    sent = requests.post(url, data=bytes(64 * MIB), timeout=30, proxies={"http": ""})
    assert sent.text == str(64 * MIB)
    with proxy.get("/many/", stream=True) as answer:
        assert sum(len(block) for block in answer.iter_content(MIB)) == 64 * MIB
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    assert peak < 60 * 1024, "KiB"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET http://evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n continued: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nName : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: 1\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: 1\rX-Forwarded-For: 10.0.0.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(proxy: Proxy, upstream: str, request_: bytes) -> None:
    proxy.ask("POST", "/", {"target": upstream})
    try:
        said = proxy.raw(request_)
    except ConnectionResetError:
        said = b"HTTP/1.1 400 "  # closed before all of it was sent
    assert said.startswith(b"HTTP/1.1 400 ")
    assert proxy.get("/x").status_code == 200
