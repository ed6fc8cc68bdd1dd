"""Checks against real sockets, servers, commands and files."""

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clachan.agent import slots
from clachan.agent.promises import Place, check
from clachan.contract.facts import PromiseResult
from clachan.contract.slot import PROMISE

from .conftest import wait_for


@pytest.fixture
def place(tmp_path: Path) -> Place:
    import pwd

    slots.prepare(tmp_path / "s000", pwd.getpwuid(os.geteuid()).pw_name, root=False)
    return Place(tmp_path / "s000", None)


def result(place: Place, **promise: object) -> PromiseResult:
    return check(PROMISE.validate_python({"timeout_seconds": 0.5, **promise}), place)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(2)
        status = 302 if self.path == "/away" else 404 if self.path == "/gone" else 200
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        if self.path == "/trickle":
            for _ in range(20):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        elif self.path != "/slow":
            self.wfile.write(b"it works")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the checks hang up early
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_tcp(place: Place) -> None:
    port = free_port()
    closed = result(place, kind="tcp", address="127.0.0.1", port=port)
    assert (closed.ok, closed.message) == (False, "tcp: Connection refused")
    with socket.create_server(("127.0.0.1", port)):
        assert result(place, kind="tcp", address="127.0.0.1", port=port).ok


def test_http(place: Place, url: str) -> None:
    assert result(place, kind="http", url=url).ok
    assert result(place, kind="http", url=f"{url}/", contains="works").ok
    assert result(place, kind="http", url=f"{url}/gone", status=404).ok
    assert result(place, kind="http", url=f"{url}/away", status=302).ok, "redirects are not followed"
    gone = result(place, kind="http", url=f"{url}/gone")
    assert (gone.ok, gone.message) == (False, f"http {url}/gone: status 404, expected 200")
    other = result(place, kind="http", url=url, contains="else")
    assert (other.ok, other.message) == (False, f"http {url}: text not found in the answer, expected 'else'")
    closed = result(place, kind="http", url=f"http://127.0.0.1:{free_port()}/")
    assert (closed.ok, closed.message) == (False, "http: Connection refused")
    assert not result(place, kind="http", url="http://127.0.0.1:99999/").ok
    assert not result(place, kind="http", url="http://[::/").ok


@pytest.mark.parametrize("path", ["slow", "trickle"])
def test_http_in_time(place: Place, url: str, path: str) -> None:
    began = time.monotonic()
    late = result(place, kind="http", url=f"{url}/{path}", contains="never")
    assert (late.ok, late.message) == (False, "http: no answer in 0.5 s")
    assert time.monotonic() - began < 1.5


def test_command(place: Place) -> None:
    def command(*words: str) -> PromiseResult:
        return result(place, kind="command", command=list(words))

    good = command("/bin/sh", "-c", "echo first; echo last; echo")
    assert (good.ok, good.message) == (True, "last")
    bad = command("/bin/sh", "-c", "echo why >&2; exit 3")
    assert (bad.ok, bad.message) == (False, "command /bin/sh: exit status 3: why")
    missing = command("/no/such")
    assert (missing.ok, missing.message) == (False, "command: No such file or directory")
    assert command("pwd").message == str(place.directory / "var")
    assert "PYTEST" not in command("/bin/sh", "-c", "env | tr '\\n' ' '").message


def test_a_command_that_does_not_end_is_killed_with_its_children(place: Place) -> None:
    child = place.directory / "var/child"
    late = result(place, kind="command", command=["/bin/sh", "-c", "sleep 99 & echo $! > child; wait"])
    assert (late.ok, late.message) == (False, "command: no answer in 0.5 s")
    wait_for(lambda: not Path(f"/proc/{int(child.read_text())}/exe").exists())


def test_a_command_that_leaves_a_child_with_its_output(place: Place) -> None:
    began = time.monotonic()
    found = result(place, kind="command", command=["/bin/sh", "-c", "echo done; sleep 99 &"], timeout_seconds=5)
    assert (found.ok, found.message) == (True, "done")
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("seconds", [0.05, 0.12, 0.15, 0.18, 0.25])
def test_what_a_command_says_at_its_end_is_heard(place: Place, seconds: float) -> None:
    words = ["/bin/sh", "-c", f"sleep {seconds}; echo said; exit 1"]
    assert result(place, kind="command", command=words).message == "command /bin/sh: exit status 1: said"


def test_a_command_with_much_output(place: Place) -> None:
    found = result(place, kind="command", command=["/bin/sh", "-c", "yes | head -c 3000000; echo end"])
    assert (found.ok, found.message) == (True, "end")
    assert len(result(place, kind="command", command=["/bin/sh", "-c", "head -c 9999 /dev/zero"]).message) <= 500


def test_file_age(place: Place) -> None:
    path = place.directory / "var/stamp"
    assert result(place, kind="file_age", path="var/stamp", max_seconds=9).message == (
        "file_age: No such file or directory"
    )
    path.touch()
    assert result(place, kind="file_age", path="var/stamp", max_seconds=9).ok
    os.utime(path, (time.time() - 60, time.time() - 60))
    old = result(place, kind="file_age", path="var/stamp", max_seconds=9)
    assert (old.ok, old.message) == (False, "file var/stamp: 60 s old, expected at most 9 s")
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert result(place, kind="file_age", path="var/stamp", max_seconds=3600).message == (
        "file var/stamp: not a regular file, expected one"
    )


def test_disk_space(place: Place) -> None:
    assert result(place, kind="disk_space", min_free_mib=0).ok
    full = result(place, kind="disk_space", min_free_mib=1 << 40)
    assert not full.ok
    assert full.message.endswith(f"MiB free, expected at least {1 << 40}")
