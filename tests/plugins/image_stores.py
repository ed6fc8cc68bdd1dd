"""Image stores for tests: real disks, the store's own server, and servers that cut, lie, are slow or busy."""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZE = 12 << 20
TOKEN = "token-of-the-store"
MIB = 1 << 20


def util(name: str) -> Any:
    return importlib.import_module(f"ansible_collections.clachan.platform.plugins.module_utils.{name}")


def load_server() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_store_serve", ROOT / "roles/image_store/files/serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serve = load_server()


def make_disk(path: Path, *options: str, size: int = SIZE) -> Path:
    """A qcow2 with `size` bytes that do not repeat."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "64M"], check=True)
    noise = path.with_name("noise")
    noise.write_bytes(os.urandom(size))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s {noise} 0 {size}", path], check=True)
    noise.unlink()
    return path


def manifest_of(disk: Path, **more: Any) -> dict[str, Any]:
    content = disk.read_bytes()
    facts = {"name": "debian", "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    about = {"format": 1, "virtual_size": 64 << 20, "disk_format": "qcow2", "recipe_digest": None, "recipe": None}
    return facts | about | {"packages": {}, "builder": "import", "created": "2026-01-31T12:00:00Z"} | more


def put(store: Path, disk: Path, **more: Any) -> str:
    """Lay an image into a store as it is, also one that no store would take."""
    manifest = manifest_of(disk, **more)
    folder = store / manifest["sha256"]
    folder.mkdir(parents=True)
    shutil.copyfile(disk, folder / f"disk.{manifest['disk_format']}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(manifest["sha256"])


class Honest(serve.Handler):
    """The store's own server, which counts the bytes of disks that it sends."""

    sent: list[int]

    def send_disk(self, path: Path) -> None:
        self.server.asked.append(self.headers.get("Range"))
        super().send_disk(path)

    def head(self, status: int, length: int, headers: dict[str, str]) -> None:
        super().head(status, length, headers)
        if "Content-Type" in headers:
            self.deliver(length)

    def deliver(self, length: int) -> None:
        self.server.sent += length


class Cutting(Honest):
    """Sends a piece of the disk and cuts the connection."""

    piece = 5 * MIB

    def deliver(self, length: int) -> None:
        pass

    def send_disk(self, path: Path) -> None:
        self.connection = Short(self.connection, self.piece, self.server)
        super().send_disk(path)


class Short:
    """A connection that carries so many bytes of a file and then breaks."""

    def __init__(self, connection: Any, piece: int, server: Any) -> None:
        self._connection, self._piece, self._server = connection, piece, server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendfile(self, file: Any, offset: int) -> None:
        self._server.sent += self._connection.sendfile(file, offset, self._piece)
        raise ConnectionAbortedError("cut")


class Slow(Cutting):
    """Sends a piece and then nothing for long."""

    def send_disk(self, path: Path) -> None:
        with contextlib.suppress(ConnectionAbortedError):
            super().send_disk(path)
        self.server.held.wait(30)


class Lying(Honest):
    """One byte of what it sends is another."""

    def send_disk(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        self.server.sent += len(content)
        self.answer(200, bytes(content))


class Careless(Honest):
    """Knows no ranges."""

    def send_disk(self, path: Path) -> None:
        del self.headers["Range"]
        super().send_disk(path)


class Busy(Honest):
    """Fails twice, then serves."""

    def send_disk(self, path: Path) -> None:
        self.server.failures += 1
        if self.server.failures <= 2:
            return self.answer(503)
        return super().send_disk(path)


class Nothing(Honest):
    """Knows no image."""

    def serve(self, image: Path, *, disk: bool) -> None:
        self.answer(404)


@contextlib.contextmanager
def serving_store(store: Path) -> Iterator[Callable[..., Any]]:
    """Gives what begins to serve the store: a server with `url`, `sent` bytes and `asked` ranges."""
    with contextlib.ExitStack() as stack:

        def begin(kind: type[Any] = Honest) -> Any:
            server = serve.Server(("127.0.0.1", 0), store, TOKEN.encode())
            server.RequestHandlerClass = kind
            server.sent, server.asked, server.failures, server.held = 0, [], 0, threading.Event()
            server.url = f"http://127.0.0.1:{server.server_address[1]}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            stack.callback(end, server, thread)
            return server

        yield begin


def end(server: Any, thread: threading.Thread) -> None:
    server.held.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Any]:
    """Begins servers of the store `far`."""
    with serving_store(tmp_path / "far") as begin:
        yield begin


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "disk")
