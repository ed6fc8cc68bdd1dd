"""Long polls: they wait without work, wake for what concerns them, and end with the server."""

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clachan.server.hub import Hub
from live import Caller, Live, Node, running_controller, until

pytestmark = pytest.mark.slow

POOL = ThreadPoolExecutor(4)


def wait(caller: Caller, path: str, etag: str | None, seconds: int = 30) -> "Future[Any]":
    """The answer of a long poll on a connection of its own."""
    own = Caller(caller.url, caller.ca_file, caller.token, caller.cert)
    headers = {"prefer": f"wait={seconds}"} | ({"if-none-match": etag} if etag else {})

    def ask() -> Any:
        with own.session:
            return own.call("GET", path, headers=headers)

    return POOL.submit(ask)


def test_a_slice_wakes_for_its_own_changes_only(live: Live, node: Node, hello: str) -> None:
    other = live.join("other")
    etags = [each.call("GET", "/nodes/self/inventory").headers["etag"] for each in (node, other)]
    mine = wait(node, "/nodes/self/inventory", etags[0])
    others = wait(other, "/nodes/self/inventory", etags[1], 2)
    hub = live.controller.hub
    until(lambda: hub.waiters(f"node:{node.id}") and hub.waiters(f"node:{other.id}"))
    begin = time.monotonic()
    live.request("home.one", hello, placement={"node": "here"})
    answer = mine.result(10)
    assert (answer.status_code, time.monotonic() - begin < 5) == (200, True)
    assert "home.one" in answer.json()["clachan_inventory"]["records"]
    assert others.result(10).status_code == 304


def test_a_poll_without_patience_answers_at_once(live: Live, node: Node) -> None:
    etag = node.call("GET", "/nodes/self/inventory").headers["etag"]
    assert wait(node, "/nodes/self/inventory", etag, 0).result(5).status_code == 304
    headers = {"if-none-match": etag, "prefer": "wait=soon"}
    assert node.call("GET", "/nodes/self/inventory", headers=headers).status_code == 304


def test_a_watched_instance_wakes(live: Live, node: Node, hello: str) -> None:
    live.request("home.one", hello)
    etag = live.call("GET", "/instances/home.one").headers["etag"]
    watching = wait(live, "/instances/home.one", etag)
    until(lambda: live.controller.hub.waiters("instance:home.one"))
    node.started("home.one", message="up")
    answer = watching.result(10)
    assert answer.json()["observed"]["state"] == "started"
    watching = wait(live, "/instances/home.one", answer.headers["etag"])
    until(lambda: live.controller.hub.waiters("instance:home.one"))
    live.ok("DELETE", "/instances/home.one")
    answer = watching.result(10)
    assert answer.json()["wanted"] == "absent"
    watching = wait(live, "/instances/home.one", answer.headers["etag"])
    until(lambda: live.controller.hub.waiters("instance:home.one"))
    node.started("home.one")
    assert watching.result(10).status_code == 404


def test_logs_are_asked_of_the_node(live: Live, node: Node, hello: str) -> None:
    one = live.request("home.one", hello)["id"]
    questions = wait(node, "/nodes/self/questions", None)
    until(lambda: live.controller.hub.waiters(f"questions:{node.id}"))
    asking = POOL.submit(live.call, "GET", "/instances/home.one/logs?lines=5&service=web")
    (question,) = questions.result(10).json()["questions"]
    assert question == {"id": question["id"], "kind": "logs", "instance": one, "service": "web", "lines": 5}
    assert node.call("POST", "/nodes/self/answers/unknown", {"logs": {}}).status_code == 404
    stranger = live.join("stranger")
    assert stranger.call("POST", f"/nodes/self/answers/{question['id']}", {"logs": {}}).status_code == 404
    node.ok("POST", f"/nodes/self/answers/{question['id']}", {"logs": {"web": "line\n{{ x }}\n"}})
    assert asking.result(10).json() == {"logs": {"web": "line\n{{ x }}\n"}}
    assert node.call("POST", f"/nodes/self/answers/{question['id']}", {"logs": {}}).status_code == 404


def test_a_node_that_does_not_answer_is_a_timeout(tmp_path: Path) -> None:
    from live import artifact, role

    with running_controller(tmp_path / "home", answer_seconds=1) as live:
        live.register(artifact(tmp_path, "acme.web", {"hello": role()}))
        live.request("home.one", "acme.web.hello")
        response = live.call("GET", "/instances/home.one/logs")
        assert response.json()["error"]["message"] == "instance home.one: on no node yet, expected a placed one"
        live.join("here")
        live.supply("here", "acme.web.hello")
        response = live.call("GET", "/instances/home.one/logs")
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert response.json()["error"]["message"] == "node: no answer within 1 s, expected its agent to run"


FINDINGS = [
    {"kind": "agent", "name": "key", "ok": True, "found": "readable by its owner only", "expected": ""},
    {"kind": "tap", "name": "cv7", "ok": False, "found": "a tap", "expected": "none: no member is at it"},
]


def test_a_node_is_asked_how_it_is(live: Live, node: Node) -> None:
    asking = POOL.submit(live.call, "GET", f"/nodes/{node.name}/doctor")
    (question,) = wait(node, "/nodes/self/questions", None).result(10).json()["questions"]
    assert question == {"id": question["id"], "kind": "doctor"}
    node.ok("POST", f"/nodes/self/answers/{question['id']}", {"findings": FINDINGS})
    assert asking.result(10).json() == {"findings": FINDINGS}

    asking = POOL.submit(live.call, "GET", f"/nodes/{node.name}/doctor")
    (question,) = wait(node, "/nodes/self/questions", None).result(10).json()["questions"]
    node.ok("POST", f"/nodes/self/answers/{question['id']}", {})
    answer = asking.result(10)
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "node here: no findings, expected some")


def test_who_has_taken_up_the_question_has_more_time(tmp_path: Path) -> None:
    with running_controller(tmp_path / "home", answer_seconds=1) as live:
        node = live.join("here")
        response = live.call("GET", "/nodes/here/doctor")
        assert (response.status_code, response.json()["error"]["message"]) == (
            504,
            "node here: no answer within 1 s, expected its agent to run",
        )
        asking = POOL.submit(live.call, "GET", "/nodes/here/doctor")
        (question,) = wait(node, "/nodes/self/questions", None).result(10).json()["questions"]
        time.sleep(1.5)
        node.ok("POST", f"/nodes/self/answers/{question['id']}", {"findings": FINDINGS})
        assert asking.result(10).json() == {"findings": FINDINGS}


def test_a_question_does_not_go_with_a_lost_connection(live: Live, node: Node, hello: str) -> None:
    import contextlib

    live.request("home.one", hello)
    lost = Node(node.url, node.ca_file, cert=node.cert)
    with contextlib.suppress(OSError):
        lost.call("GET", "/nodes/self/questions", headers={"prefer": "wait=30"}, timeout=0.5)
    lost.session.close()
    asking = POOL.submit(live.call, "GET", "/instances/home.one/logs")
    until(lambda: live.controller.questions._open.get(node.id))
    (question,) = wait(node, "/nodes/self/questions", None).result(10).json()["questions"]
    node.ok("POST", f"/nodes/self/answers/{question['id']}", {"error": "no such service"})
    answer = asking.result(10)
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "logs of home.one: no such service")


def test_the_end_of_the_server_ends_the_polls_at_once(tmp_path: Path) -> None:
    with running_controller(tmp_path / "home") as live:
        nodes = [live.join(f"n{number}") for number in range(3)]
        etags = [each.call("GET", "/nodes/self/inventory").headers["etag"] for each in nodes]
        polls = [wait(each, "/nodes/self/inventory", etag, 50) for each, etag in zip(nodes, etags, strict=True)]
        until(lambda: all(live.controller.hub.waiters(f"node:{each.id}") for each in nodes))
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    assert [poll.result(1).status_code for poll in polls] == [304, 304, 304]


def test_the_hub_loses_no_change() -> None:
    async def waiting(hub: Hub) -> list[bool]:
        hub.bind(asyncio.get_running_loop())
        before = hub.version("a")
        threading.Thread(target=hub.announce, args=(["a", "b"],)).start()
        first = await hub.wait("a", before, 5)
        second = await hub.wait("a", before, 5)
        third = await hub.wait("a", hub.version("a"), 0.05)
        waiter = asyncio.create_task(hub.wait("a", hub.version("a"), 5))
        await asyncio.sleep(0.01)
        assert hub.waiters("a") == 1
        hub.close()
        return [first, second, third, await waiter, await hub.wait("a", hub.version("a"), 5)]

    assert asyncio.run(waiting(Hub())) == [True, True, False, False, False]


@pytest.mark.parametrize("kind", ["user", "node"])
def test_a_hundred_polls_hold_no_thread_and_no_session(live: Live, node: Node, hello: str, kind: str) -> None:
    import socket
    import ssl

    live.request("home.one", hello)
    path = "/api/v1/instances/home.one" if kind == "user" else "/api/v1/nodes/self/inventory"
    caller: Caller = live if kind == "user" else node
    etag = caller.call("GET", path.removeprefix("/api/v1")).headers["etag"]
    context = ssl.create_default_context(cafile=live.ca_file)
    if caller.cert:
        context.load_cert_chain(*caller.cert)
    token = f"authorization: Bearer {caller.token}\r\n" if caller.token else ""
    request = f"GET {path} HTTP/1.1\r\nhost: x\r\n{token}if-none-match: {etag}\r\nprefer: wait=30\r\n\r\n".encode()
    host, port = live.url.removeprefix("https://").split(":")
    topic = "instance:home.one" if kind == "user" else f"node:{node.id}"
    open_polls = []
    try:
        for _ in range(100):
            plain = socket.create_connection((host, int(port)))
            secured = context.wrap_socket(plain, server_hostname=host)
            secured.sendall(request)
            open_polls.append(secured)
        until(lambda: live.controller.hub.waiters(topic) == 100)
        assert live.controller.database.engine.pool.checkedout() == 0
        live.request("home.one", hello, parameters={"hello_port": 2})
        for secured in open_polls:
            secured.settimeout(20)
            assert secured.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for secured in open_polls:
            secured.close()
