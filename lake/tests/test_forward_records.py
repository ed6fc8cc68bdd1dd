"""What the forwarder ships that stands in no file: metrics and usage records, over a spool, each once."""

import gzip
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from clachan_lake.forward import config
from clachan_lake.forward.connection import Connection, UnreachableError, _seconds
from clachan_lake.forward.spool import Spool
from clachan_lake.forward.status import faults, summary
from clachan_lake.forward.usage import UsageReader

from .making import TOKEN, Server, wait_for
from .test_forward import Forwarder
from .test_forward_spool import METRICS, spool

__all__ = ["spool"]
Reader = Callable[..., UsageReader]
USAGE_TOKEN = "a-token-of-the-controller"


def record(number: int) -> dict[str, Any]:
    """A usage record in the API's form; `number` is its minute."""
    start = f"2026-11-26T{number // 60 % 24:02}:{number % 60:02}:00.000Z"
    return {
        "id": f"{number:064x}",
        "node": "here",
        "instance": "00000000-0000-4000-8000-000000000001",
        "path": "home.lake",
        "tenant": "home",
        "account": "home",
        "meter": "cpu_milliseconds",
        "window_start": start,
        "window_end": start,
        "quantity": number,
        "billable": True,
    }


class Controller(BaseHTTPRequestHandler):
    """Answers `GET /api/v1/usage` as the controller does: in order, in pages, from `since` on."""

    protocol_version = "HTTP/1.1"
    records: ClassVar[list[dict[str, Any]]] = []
    failing: ClassVar[list[int]] = []
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.asked.append(query.get("since", ""))
        if self.headers["Authorization"] != f"Bearer {USAGE_TOKEN}":
            return self._answer(401, {"error": {"message": "credentials: unknown"}})
        if self.failing:
            return self._answer(self.failing.pop(), {"error": {"message": "not now"}})
        found = sorted(self.records, key=lambda one: (str(one["window_start"]), str(one["id"])))
        found = [one for one in found if str(one["window_start"]) >= query.get("since", "")]
        first = int(query.get("cursor", 0))
        more = str(first + 100) if first + 100 < len(found) else None
        return self._answer(200, {"items": found[first : first + 100], "cursor": more})

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Busy(BaseHTTPRequestHandler):
    """A lake that answers as `answers` says, and then takes everything."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[tuple[int, str | None]]] = []
    taken: ClassVar[list[tuple[float, str, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, wait = self.answers.pop(0) if self.answers else (204, None)
        self.taken.append((time.monotonic(), self.path, dict(self.headers), body))
        self.send_response(status)
        if wait is not None:
            self.send_header("Retry-After", wait)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def serving(kind: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def controller() -> Iterator[str]:
    Controller.records, Controller.failing, Controller.asked = [], [], []
    yield from serving(Controller)


@pytest.fixture
def busy() -> Iterator[str]:
    Busy.answers, Busy.taken = [], []
    yield from serving(Busy)


# usage records


@pytest.fixture
def reader() -> Iterator[Callable[..., UsageReader]]:
    made: list[Connection] = []

    def make(url: str, spool: Spool, token: str = USAGE_TOKEN) -> UsageReader:
        made.append(Connection("controller", url, token, 5))
        return UsageReader(made[-1], spool)

    yield make
    for connection in made:
        connection.close()


def kept(spool: Spool) -> list[int]:
    """The quantities of all that wait; they are taken as shipped."""
    found: list[int] = []
    while chunk := spool.due("usage", 0):
        found += [json.loads(line)["quantity"] for line in chunk.data.splitlines()]
        spool.done(chunk)
    return found


def test_usage_records_are_kept_once_also_late_ones(controller: str, reader: Reader, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 1 << 20)
    Controller.records = [record(number) for number in range(250)]
    del Controller.records[30]
    ask = reader(controller, spool)
    ask.turn()
    assert Controller.asked == ["", "", ""]
    assert kept(spool) == [number for number in range(250) if number != 30]
    Controller.records += [record(30), record(230) | {"id": "late", "quantity": 9999}, record(251)]
    ask.turn()
    # an hour back: record 30 is older than that
    assert Controller.asked[-1] == "2026-11-26T03:09:00.000Z"
    assert kept(spool) == [9999, 251]
    spool.close()
    spool = Spool(tmp_path / "spool", 1 << 20)
    reader(controller, spool).turn()
    assert Controller.asked[-1] == "2026-11-19T04:11:00.000Z"
    assert kept(spool) == [30]
    spool.close()


def test_records_wait_at_the_controller_while_the_spool_is_full(controller: str, reader: Reader, spool: Spool) -> None:
    Controller.records = [record(number) for number in range(250)]
    ask = reader(controller, spool)
    ask.turn()
    assert len(Controller.asked) == 1
    found: list[int] = []
    for _ in range(4):
        found += kept(spool)
        ask.turn()
    assert found + kept(spool) == list(range(250))
    assert spool.filling().lost == 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"id": 5}, "expected an object with id and window_start"),
        ({"window_start": None}, "expected an object with id and window_start"),
    ],
)
def test_what_is_no_record_is_said(
    controller: str, reader: Reader, spool: Spool, broken: dict[str, Any], message: str
) -> None:
    Controller.records = [record(1) | broken]
    with pytest.raises(ValueError, match=message):
        reader(controller, spool).turn()
    with pytest.raises(UnreachableError, match="usage records: 401 credentials: unknown"):
        reader(controller, spool, "another-token").turn()
    Controller.failing = [503]
    with pytest.raises(UnreachableError, match="usage records: 503 not now"):
        reader(controller, spool).turn()
    assert spool.filling().lines == 0


# the forwarder


def test_the_configuration_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    given = {"url": "http://h:1", "token_file": "t", "state": "s", "status": "u"}
    for more, message in [
        ({}, "nothing to ship, expected directory, metrics_seconds or usage_url"),
        ({"usage_url": "http://h:1"}, "key usage_token_file: missing, expected one for http://h:1"),
        ({"usage_url": "ftp://h"}, r"key usage_url: ftp://h, expected http\(s\)://host:port without credentials"),
        ({"gzip": "yes"}, "key gzip: 'yes', expected true or false"),
    ]:
        path.write_text(json.dumps(given | more))
        with pytest.raises(ValueError, match=message):
            config.load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3.0), ("1.5", 1.5), ("-4", 0.0), ("nan", 0.0), ("99999", 300.0), ("soon", 0.0), (None, 0.0)],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, expected: float) -> None:
    assert _seconds(text) == expected
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 55 < _seconds(later) <= 60
    assert _seconds("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0


@pytest.fixture
def forwarder(tmp_path: Path) -> Iterator[Forwarder]:
    made = Forwarder(tmp_path, Server(tmp_path / "unused") if (tmp_path / "unused").mkdir() is None else None)  # type: ignore[arg-type]
    made.config |= {"node": "here", "records_flush_seconds": 0.1, "usage_seconds": 0.1}
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503, 507])
def test_it_waits_as_long_as_the_lake_says(forwarder: Forwarder, busy: str, status: int) -> None:
    Busy.answers = [(status, "2"), (status, None)]
    forwarder.config["url"] = busy
    forwarder.write("a", b"x" * 10)
    forwarder.start()
    wait_for(lambda: len(Busy.taken) == 3, "three attempts")
    times = [taken[0] for taken in Busy.taken]
    assert 2.0 <= times[1] - times[0] < 4
    assert times[2] - times[1] < 2.0
    assert len({taken[1] for taken in Busy.taken}) == 1, "the same chunk with the same id"


@pytest.mark.slow
def test_chunks_go_compressed_when_asked_to(forwarder: Forwarder, busy: str) -> None:
    forwarder.config |= {"url": busy, "gzip": True, "chunk_bytes": 100_000}
    forwarder.write("long", b"line\n" * 1000)
    forwarder.write("short", b"line\n")
    forwarder.start()
    wait_for(lambda: len(Busy.taken) == 2, "two chunks")
    (_, _, first, body), (_, _, second, plain) = Busy.taken
    assert (first["Content-Encoding"], gzip.decompress(body)) == ("gzip", b"line\n" * 1000)
    assert len(body) < 500
    assert ("Content-Encoding" in second, plain) == (False, b"line\n")


@pytest.mark.slow
def test_metrics_and_usage_arrive_in_the_lake(forwarder: Forwarder, server: Server, controller: str) -> None:
    Controller.records = [record(number) for number in range(5)]
    (forwarder.directory / "usage-token").write_text(USAGE_TOKEN)
    forwarder.config |= {
        "url": server.url,
        "metrics_seconds": 0.1,
        "usage_url": controller,
        "usage_token_file": str(forwarder.directory / "usage-token"),
    }
    del forwarder.config["directory"]
    forwarder.start()

    def lines(name: str) -> list[dict[str, Any]]:
        answer = server.get("/streams/data", name=name)
        return [json.loads(line) for line in answer.content.splitlines()] if answer.ok else []

    wait_for(lambda: len(lines("metrics/here")) >= 5 and len(lines("usage")) >= 5, "records")
    Controller.records += [record(5)]
    wait_for(lambda: len(lines("usage")) == 6, "another record")
    assert lines("usage") == Controller.records
    assert all(set(line) == METRICS for line in lines("metrics/here"))
    times = [line["time"] for line in lines("metrics/here")]
    assert times == sorted(set(times))
    assert server.stream("usage")["policy"] == "raw"
    wait_for(lambda: forwarder.status()["records"]["sent"] >= 11, "status")
    assert faults(forwarder.status_file, 5) == []
    assert summary(forwarder.status_file).startswith("files: none; lag 0.0 s; records: ")
    assert USAGE_TOKEN not in forwarder.log + forwarder.status_file.read_text()


@pytest.mark.slow
def test_without_the_lake_records_wait_and_are_lost_loudly(tmp_path: Path, own_server: Server) -> None:
    (tmp_path / "f").mkdir()
    own_server.start().stop()
    forwarder = Forwarder(tmp_path / "f", own_server, node="here", metrics_seconds=0.02, spool_mib=1)
    forwarder.config["records_flush_seconds"] = 0.1
    try:
        # as good as full: what is left is room for a few lines
        spool = Spool(forwarder.directory / "state.db.spool", 1 << 20)
        spool.add("metrics/here", b"%s\n" % (b"x" * ((1 << 20) - 2500)))
        spool.close()
        forwarder.start()
        wait_for(lambda: forwarder.status_file.exists() and forwarder.status()["records"].get("lost"), "loss")
        wait_for(lambda: len(faults(forwarder.status_file, 0.5)) >= 3, "faults")
        found = " ".join(faults(forwarder.status_file, 0.5))
        assert "records: wait for" in found
        assert "lost in all, the last 0 s ago: spool full" in found or "lost in all, the last 1 s ago" in found
        own_server.start()
        wait_for(lambda: own_server.get("/streams/data", name="metrics/here").content.count(b"\n") > 3, "records")
        lines = own_server.get("/streams/data", name="metrics/here").content.splitlines()
        assert lines[0] == b"x" * ((1 << 20) - 2500)
        assert set(json.loads(lines[1])) == METRICS
        wait_for(lambda: "records: wait" not in " ".join(faults(forwarder.status_file, 0.5)), "no lag")
        # the loss is said for an hour
        assert "lost in all" in " ".join(faults(forwarder.status_file, 60))
    finally:
        forwarder.stop()


@pytest.mark.slow
def test_killed_at_random_each_record_arrives_once(tmp_path: Path, own_server: Server, controller: str) -> None:
    """Forwarder and lake are killed in turn while records come."""
    own_server.start()
    (tmp_path / "f").mkdir()
    forwarder = Forwarder(tmp_path / "f", own_server, usage_url=controller, usage_seconds=0.05)
    (forwarder.directory / "usage-token").write_text(USAGE_TOKEN)
    forwarder.config |= {"usage_token_file": str(forwarder.directory / "usage-token"), "records_flush_seconds": 0.05}
    chance = random.Random(7)
    try:
        forwarder.start()
        for turn in range(8):
            first = turn * 40
            fresh = [record(number) for number in range(first, first + 40)]
            for one in chance.sample(fresh, len(fresh)):
                Controller.records = [*Controller.records, one]
            time.sleep(chance.uniform(0, 0.6))
            killed = forwarder if turn % 2 else own_server
            killed.kill()
            killed.start()

        def numbers() -> list[int]:
            answer = own_server.get("/streams/data", name="usage")
            return [json.loads(line)["quantity"] for line in answer.content.splitlines()] if answer.ok else []

        wait_for(lambda: len(numbers()) >= 320, "all records")
        time.sleep(0.3)
        assert sorted(numbers()) == list(range(320))
    finally:
        forwarder.stop()


def test_the_token_stands_in_no_message() -> None:
    connection = Connection("lake", "http://127.0.0.1:1", TOKEN, 1)
    with pytest.raises(UnreachableError) as caught:
        connection.request("GET", "/")
    assert TOKEN not in str(caught.value)
