# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve an image store to other nodes, read only: `serve.py SETTINGS.json`.

    GET /images/SHA256         the manifest
    GET /images/SHA256/disk    the disk, also `Range: bytes=N-`
    GET /healthz               to anyone

Who asks has the token. The bytes need no more protection than that: whoever gets them checks their sha256.
"""

from __future__ import annotations

import hmac
import http.server
import json
import re
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any

PATH = re.compile(r"/images/([0-9a-f]{64})(/disk)?\Z")
RANGE = re.compile(r"bytes=(\d{1,18})-\Z", re.ASCII)
SILENCE_SECONDS = 60
AT_ONCE = 32


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "clachan-image-store"
    sys_version = ""
    timeout = SILENCE_SECONDS
    server: Server

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").encode(errors="replace")
        match = PATH.match(self.path)
        if self.path == "/healthz":
            self.answer(200, b"ok\n")
        elif not hmac.compare_digest(given, b"Bearer " + self.server.token):
            self.answer(401)
        elif match is None:
            self.answer(404)
        else:
            self.serve(self.server.store / match[1], disk=bool(match[2]))

    def serve(self, image: Path, *, disk: bool) -> None:
        try:
            manifest = (image / "manifest.json").read_bytes()
        except FileNotFoundError:
            return self.answer(404)
        if disk:
            return self.send_disk(image / f"disk.{json.loads(manifest)['disk_format']}")
        return self.answer(200, manifest)

    def send_disk(self, path: Path) -> None:
        size = path.stat().st_size
        asked = RANGE.match(self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        if begin >= size:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{path.parent.name}"'}
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
        with path.open("rb") as file:
            self.head(206 if asked else 200, size - begin, headers)
            self.connection.sendfile(file, begin)
        return None

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.head(status, len(body), headers or {})
        self.wfile.write(body)

    def head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, form: str, *values: Any) -> None:
        # what was asked for may hold anything
        sys.stderr.write(f"{self.client_address[0]} {form % values!a}\n")


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], store: Path, token: bytes) -> None:
        self.store, self.token = store, token
        self.free = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """More than AT_ONCE wait in the kernel's queue."""
        self.free.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, _request: Any, client_address: Any) -> None:
        sys.stderr.write(f"{client_address[0]} {sys.exc_info()[1]!a}\n")


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    token = Path(settings["token_file"]).read_bytes().strip()
    with Server((settings["host"], settings["port"]), Path(settings["store"]), token) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
