"""Streams: four requests joined; who may, how they end, what they cost. The node's side is played with its certificate;
agent/test_streams.py has the real agent."""

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from clachan.client import ApiError, UnreachableError
from clachan.client.streams import Stream, Streams
from clachan.server.api import app
from clachan.server.services import streams as service
from live import Caller, Live, Node, artifact, role, running_controller, until

pytestmark = pytest.mark.slow

POOL = ThreadPoolExecutor(32)
MIB = 1 << 20


def as_client(caller: Caller) -> Streams:
    return Streams(caller.url, token=caller.token, ca_file=caller.ca_file, cert=caller.cert)


class Side:
    """One side of an open stream: bytes are brought with `say`, and what is taken comes with `hear`."""

    def __init__(self, stream: Stream, listens: bool = True) -> None:
        self.stream = stream
        self._said: queue.Queue[bytes] = queue.Queue()
        self._always, ready = os.pipe()
        os.close(ready)  # so it can be read at any time
        self.bringing = POOL.submit(stream.bring, self._always, self._said.get)
        self._takes = stream.take()
        self.heard: Future[bytes] | None = POOL.submit(lambda: b"".join(self._takes)) if listens else None
        SIDES.append(self)

    def say(self, data: bytes) -> None:
        self._said.put(data)

    def finish(self) -> None:
        self._said.put(b"")

    def hear(self, length: int) -> bytes:
        """The next bytes, of a side that does not listen by itself."""
        data = bytearray()
        while len(data) < length:
            data += next(self._takes)
        return bytes(data)

    def leave(self) -> None:
        self.finish()
        self.stream.close()
        self.bringing.exception(10)
        if self.heard is not None:
            self.heard.exception(10)
        self.stream.__exit__()
        os.close(self._always)

    def everything(self, seconds: float = 20) -> bytes:
        assert self.heard is not None
        return self.heard.result(seconds)


SIDES: list[Side] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while SIDES:
        SIDES.pop().leave()


def answer(node: Node, error: str | None = None) -> str:
    """The node's part: fetch the question; refuse it with `error`."""
    (question,) = node.ok("GET", "/nodes/self/questions", headers={"prefer": "wait=20"})["questions"]
    if error is not None:
        node.ok("POST", f"/nodes/self/answers/{question['id']}", {"error": error})
    identifier: str = question["id"]
    return identifier


def joined(user: Caller, node: Node, path: str, port: int | None = None, listens: bool = True) -> tuple[Side, Side]:
    """A stream with both of its sides: the user's, the node's."""
    opening = POOL.submit(as_client(user).open, path, port)
    there = as_client(node).take_up(answer(node))
    return Side(opening.result(20), listens), Side(there, listens)


@pytest.fixture
def one(live: Live, node: Node, hello: str) -> str:
    live.request("home.one", hello)
    return "home.one"


def test_bytes_go_both_ways_and_each_end_is_carried(live: Live, node: Node, one: str) -> None:
    here, there = joined(live, node, one)
    here.say(b"GET /\n")
    here.finish()
    assert there.everything() == b"GET /\n", "the user's end arrives while the other direction is open"
    blob = os.urandom(3 * MIB)
    there.say(blob[:MIB])
    there.say(blob[MIB:])
    there.finish()
    assert here.everything() == blob
    until(lambda: live.controller.streams.all() == [])


def test_the_instances_end_leaves_the_other_direction_open(live: Live, node: Node, one: str) -> None:
    here, there = joined(live, node, one)
    there.say(b"bye")
    there.finish()
    assert here.everything() == b"bye"
    here.say(b"late")
    here.finish()
    assert there.everything() == b"late"


def test_what_the_node_is_asked(live: Live, node: Node, one: str) -> None:
    ports = live.ok("GET", f"/instances/{one}")["slot"]["ports"]
    opening = POOL.submit(live.call, "POST", f"/instances/{one}/streams", {"port": None})
    (question,) = node.ok("GET", "/nodes/self/questions", headers={"prefer": "wait=20"})["questions"]
    identity = live.ok("GET", f"/instances/{one}")["id"]
    wanted = {"kind": "connect", "instance": identity, "port": ports["first"], "any_port": False}
    assert question == {"id": question["id"], **wanted}
    with as_client(node).take_up(question["id"]):
        assert opening.result(20).json() == {"id": question["id"], "port": ports["first"]}


def test_a_vm_has_its_ports_for_itself(tmp_path: Path, live: Live, node: Node) -> None:
    files = role({}, {"makes_node": True, "needs_root": True})
    live.register(artifact(tmp_path, "acme.machines", {"box": files}))
    live.supply("here", "acme.machines.box")
    live.request("home.box", "acme.machines.box")
    for asked, port in ((None, 22), (443, 443), ("console", "console"), ("vnc", "vnc")):
        opening = POOL.submit(live.call, "POST", "/instances/home.box/streams", {"port": asked})
        (question,) = node.ok("GET", "/nodes/self/questions", headers={"prefer": "wait=20"})["questions"]
        assert (question["port"], question["any_port"]) == (port, True)
        with as_client(node).take_up(question["id"]):
            assert opening.result(20).json()["port"] == port


def test_what_cannot_be_connected_to(live: Live, node: Node, hello: str, one: str) -> None:
    ports = live.ok("GET", f"/instances/{one}")["slot"]["ports"]
    first, last = ports["first"], ports["first"] + 19

    def said(path: str, port: int | str | None = None) -> tuple[int, str]:
        response = live.call("POST", f"/instances/{path}/streams", {"port": port})
        return response.status_code, response.json()["error"]["message"]

    for port in (22, first - 1, last + 1):
        assert said(one, port) == (422, f"port {port} of {one}: not of its slot, expected {first} to {last}")
    for outlet in ("console", "vnc"):
        assert said(one, outlet) == (422, f"{outlet} of {one}: its software makes no machine, expected a VM")
    for port in (0, 65536, "22", "log", True):
        assert said(one, port)[0] == 422
    assert said("home.gone") == (404, "instance home.gone: unknown, expected one that exists")
    live.request("home.far", hello, placement={"labels": {"zone": "mars"}})
    assert said("home.far") == (409, "instance home.far: on no node yet, expected a placed one")
    live.request(one, hello, state="stopped")
    assert said(one) == (409, f"instance {one}: wanted stopped, expected one that is wanted started")
    live.request(one, hello)
    refusing = POOL.submit(said, one)
    answer(node, f"instance {one}: port {first} refuses connections")
    assert refusing.result(20) == (503, f"instance {one}: port {first} refuses connections")
    assert live.controller.streams.all() == []
    assert live.ok("GET", "/events?kind=connected")["items"] == []


def test_a_node_that_does_not_answer(tmp_path: Path) -> None:
    with running_controller(tmp_path / "home", answer_seconds=1) as live:
        live.register(artifact(tmp_path, "acme.web", {"hello": role()}))
        node = live.join("here")
        live.supply("here", "acme.web.hello")
        live.request("home.one", "acme.web.hello")
        began = time.monotonic()
        with pytest.raises(ApiError) as caught:
            as_client(live).open("home.one")
        assert (caught.value.status, time.monotonic() - began < 5) == (504, True)
        assert str(caught.value) == (
            "instance home.one, on node here: node: no answer within 1 s, expected its agent to run"
        )
        late = answer(node) if node.ok("GET", "/nodes/self/questions")["questions"] else "late"
        with pytest.raises(ApiError, match="unknown, expected one that was opened"):
            as_client(node).take_up(late)
        assert live.controller.streams.all() == []


@pytest.fixture
def strangers(live: Live) -> dict[str, Caller]:
    live.tenant("foreign")
    return {
        "another user": live.as_user("mia", "member", ["home"]),
        "another tenant": live.as_user("max", "member", ["foreign"]),
        "another node": live.join("other"),
    }


def test_only_its_own_sides_take_a_stream_up_and_each_once(
    live: Live, node: Node, hello: str, one: str, strangers: dict[str, Caller]
) -> None:
    live.request("home.two", hello)
    opening = POOL.submit(live.ok, "POST", f"/instances/{one}/streams", {"port": None})
    identifier = answer(node)
    for method in ("GET", "POST"):
        response = strangers["another node"].call(method, f"/nodes/self/streams/{identifier}")
        assert response.status_code == 404
        assert node.call(method, f"/instances/{one}/streams/{identifier}").status_code == 403
    there = Side(as_client(node).take_up(identifier))
    assert opening.result(20)["id"] == identifier

    def tried(caller: Caller, path: str, name: str = identifier) -> list[tuple[int, str]]:
        answers = [caller.call(method, f"/instances/{path}/streams/{name}") for method in ("GET", "POST")]
        return [(response.status_code, response.json()["error"]["message"]) for response in answers]

    unknown = f"stream {identifier}: unknown, expected one that was opened and not yet taken up"
    assert tried(strangers["another user"], one) == [(404, unknown)] * 2
    assert tried(live, "home.two") == [(404, unknown)] * 2
    hidden = [(404, f"instance {one}: unknown, expected one that exists")] * 2
    assert tried(strangers["another tenant"], one) == hidden
    assert strangers["another tenant"].call("POST", f"/instances/{one}/streams", {}).status_code == 404
    assert live.call("GET", f"/nodes/self/streams/{identifier}").status_code == 403

    user = as_client(live)
    where = f"/api/v1/instances/{one}/streams/{identifier}"
    here = Side(user._carried(ExitStack(), where, "stream", user._connected()))
    here.say(b"hello")
    for method in ("GET", "POST"):
        assert live.call(method, f"/instances/{one}/streams/{identifier}").status_code == 404
        assert node.call(method, f"/nodes/self/streams/{identifier}").status_code == 404
    here.finish()
    assert there.everything() == b"hello", "a replay disturbs nothing"
    there.finish()
    here.everything()
    until(lambda: live.controller.streams.all() == [])
    assert tried(live, one) == [(404, unknown)] * 2


def test_who_connected_to_what_is_an_event(
    live: Live, node: Node, one: str, strangers: dict[str, Caller], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clachan")
    here, there = joined(strangers["another user"], node, one)
    here.say(b"canary-content")
    here.finish()
    there.finish()
    assert there.everything() == b"canary-content"
    here.everything()
    (event,) = strangers["another user"].ok("GET", "/events?kind=connected")["items"]
    port = live.ok("GET", f"/instances/{one}")["slot"]["ports"]["first"]
    assert event["message"] == f"mia connected to port {port} of {one}"
    assert (event["tenant"], event["node"], event["path"]) == ("home", "here", one)
    assert event["data"]["user"] == "mia"
    assert strangers["another tenant"].ok("GET", "/events?kind=connected")["items"] == []
    until(lambda: "stream over" in caplog.text)
    (over,) = [line for line in caplog.messages if line.startswith("stream over")]
    assert over.startswith(f"stream over user=mia path={one} port={port} ")
    assert over.endswith(" up=14 down=0 reason=closed")
    assert "canary" not in caplog.text + str(event)


def test_when_one_request_is_gone_all_are(live: Live, node: Node, one: str, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(4):
        here, there = joined(live, node, one, listens=False)
        here.say(b"x")
        there.say(b"y")
        assert (here.hear(1), there.hear(1)) == (b"y", b"x")
        (stream,) = live.controller.streams.all()
        gone, left = (here, there) if index < 2 else (there, here)
        began = time.monotonic()
        socket.socket.shutdown(gone.stream._sockets[index % 2], socket.SHUT_RDWR)
        with pytest.raises(UnreachableError, match="broke off, expected its end"):
            left.hear(1)
        assert time.monotonic() - began < 3
        for side in (here, there):
            side.finish()
        until(lambda: live.controller.streams.all() == [])
        assert stream._reason.endswith("side gone")
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


def test_what_was_brought_to_its_end_is_taken_though_its_bringer_is_gone(live: Live, node: Node, one: str) -> None:
    here, there = joined(live, node, one, listens=False)
    blob = os.urandom(2 * MIB)
    there.say(blob)
    there.finish()
    first = here.hear(1)
    (stream,) = live.controller.streams.all()
    rest = POOL.submit(here.hear, len(blob) - len(first))
    until(lambda: stream._down.ended)
    there.stream.close()
    assert first + rest.result(20) == blob
    here.finish()


@pytest.mark.slow
def test_a_slow_reader_does_not_grow_the_controller(tmp_path: Path) -> None:
    with running_controller(tmp_path / "home", process=True) as live:
        live.register(artifact(tmp_path, "acme.web", {"hello": role()}))
        node = live.join("here")
        live.supply("here", "acme.web.hello")
        live.request("home.one", "acme.web.hello")
        controller = psutil.Process(live.pid)
        here, there = joined(live, node, "home.one", listens=False)
        blob = os.urandom(8 * MIB)
        before = controller.memory_info().rss
        for side in (here, there):
            for _ in range(16):
                side.say(blob)
            side.finish()
        time.sleep(2)
        assert controller.memory_info().rss - before < 8 * MIB
        assert not here.bringing.done(), "who brings waits"
        taken = [POOL.submit(side.hear, 16 * len(blob)) for side in (here, there)]
        assert [found.result(60) == blob * 16 for found in taken] == [True, True]
        assert controller.memory_info().rss - before < 16 * MIB


def test_streams_hold_no_thread_and_no_session(live: Live, node: Node, one: str) -> None:
    joined(live, node, one)
    sides = []
    before = {thread.ident for thread in threading.enumerate() if thread.name.startswith("AnyIO")}
    for _ in range(5):
        sides.append(joined(live, node, one, listens=False))
    assert len(live.controller.streams.all()) == 6
    until(lambda: live.controller.database.engine.pool.checkedout() == 0)
    after = {thread.ident for thread in threading.enumerate() if thread.name.startswith("AnyIO")}
    assert after <= before | after
    assert len(after) <= len(before) + 2


@pytest.mark.parametrize(
    ("limit", "what"),
    [
        ("MOST_OF_INSTANCE", "instance home.one"),
        ("MOST_OF_NODE", "node here"),
        ("MOST_OF_USER", "operator"),
        ("MOST_TOTAL", "all users"),
    ],
)
def test_limits(live: Live, node: Node, one: str, monkeypatch: pytest.MonkeyPatch, limit: str, what: str) -> None:
    monkeypatch.setattr(service, limit, 1)
    here, there = joined(live, node, one)
    with pytest.raises(ApiError) as caught:
        as_client(live).open(one)
    assert (caught.value.status, str(caught.value)) == (503, f"streams of {what}: 1 are open, expected fewer than 1")
    here.finish()
    there.finish()
    here.everything()
    until(lambda: live.controller.streams.all() == [])
    again, _ = joined(live, node, one)
    again.finish()


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Live, Node]]:
    """A controller that looks often and has little patience, with a node and the instance home.one."""
    monkeypatch.setattr(app, "SIGHTINGS_SECONDS", 0.2)
    monkeypatch.setattr(app, "PRUNE_SECONDS", 3600.0)
    monkeypatch.setattr(service, "TAKE_UP_SECONDS", 0.0)
    with running_controller(tmp_path / "home", stream_idle_seconds=3, answer_seconds=2) as live:
        live.register(artifact(tmp_path, "acme.web", {"hello": role()}))
        node = live.join("here")
        live.supply("here", "acme.web.hello")
        live.request("home.one", "acme.web.hello")
        yield live, node


def test_what_is_not_taken_up_ends(hasty: tuple[Live, Node]) -> None:
    live, node = hasty
    opening = POOL.submit(live.ok, "POST", "/instances/home.one/streams", {})
    there = Side(as_client(node).take_up(answer(node)), listens=False)
    opening.result(10)
    with pytest.raises(UnreachableError):
        there.hear(1)
    there.finish()
    until(lambda: live.controller.streams.all() == [])


def test_an_idle_stream_ends_and_a_busy_one_stays(hasty: tuple[Live, Node]) -> None:
    live, node = hasty
    here, there = joined(live, node, "home.one", listens=False)
    for _ in range(5):
        time.sleep(1)
        here.say(b"x")
        assert there.hear(1) == b"x"
    began = time.monotonic()
    with pytest.raises(UnreachableError):
        here.hear(1)
    assert 2 < time.monotonic() - began < 8


def test_a_deleted_token_and_a_revoked_node_end_their_streams(hasty: tuple[Live, Node]) -> None:
    live, node = hasty
    mia = live.as_user("mia", "member", ["home"])
    mine, _ = joined(mia, node, "home.one", listens=False)
    here, there = joined(live, node, "home.one", listens=False)
    (token,) = mia.ok("GET", "/tokens")["items"]
    live.ok("DELETE", f"/tokens/{token['id']}")
    with pytest.raises(UnreachableError):
        mine.hear(1)
    here.say(b"still")
    assert there.hear(5) == b"still"
    live.ok("DELETE", "/nodes/here")
    with pytest.raises(UnreachableError):
        here.hear(1)


def test_the_end_of_the_controller_ends_them_at_once(tmp_path: Path) -> None:
    with running_controller(tmp_path / "home") as live:
        live.register(artifact(tmp_path, "acme.web", {"hello": role()}))
        node = live.join("here")
        live.supply("here", "acme.web.hello")
        live.request("home.one", "acme.web.hello")
        here, there = joined(live, node, "home.one", listens=False)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    for side in (here, there):
        with pytest.raises(UnreachableError):
            side.hear(1)
        side.finish()


def test_answers_are_not_kept_by_proxies(live: Live, node: Node, one: str) -> None:
    here, _ = joined(live, node, one)
    headers = here.stream._answer.headers
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
