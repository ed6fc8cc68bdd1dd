"""A package index over the wheelhouse, inside a lab's network: the machines' pip has no other way out.

`index.py ADDRESS PORT FOLDER` serves PEP 503's simple index. Started with `nsenter --net`: seen in the lab only.
"""

import html
import re
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 3141


class Index(SimpleHTTPRequestHandler):
    """`/simple/<project>/` lists the project's wheels, `/<wheel>` is the file."""

    def do_GET(self) -> None:
        page = re.fullmatch(r"/simple/([\w.-]+)/?", self.path)
        if page is None:
            return super().do_GET()
        wanted = normal(page[1])
        names = [path.name for path in Path(self.directory).glob("*.whl") if normal(path.name.split("-")[0]) == wanted]
        links = "".join(f'<a href="/{html.escape(name)}">{html.escape(name)}</a><br>\n' for name in sorted(names))
        body = f"<!DOCTYPE html><html><body>\n{links}</body></html>\n".encode()
        self.send_response(200 if names else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def log_message(self, *_: object) -> None:
        """Say nothing: who fetched what is in the machines' own logs."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def serve(address: str, port: int, folder: str) -> None:
    def handler(*arguments: object, **named: object) -> Index:
        return Index(*arguments, **named, directory=folder)  # type: ignore[arg-type]

    ThreadingHTTPServer((address, port), handler).serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
