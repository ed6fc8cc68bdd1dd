"""Requests: idempotent, never two in one slot, never lost, every text as it was given."""

import contextlib
import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live import Caller, Live, Node, artifact, role, running_controller, wait_until_healthy

PAYLOADS = [
    "{{ lookup('pipe', 'touch /tmp/canary') }}",
    "{% for x in [1] %}{{ x }}{% endfor %}",
    "$HOME ${PATH} $(id) `id`",
    "first\nsecond\r\n\tthird\n",
    "; rm -rf / & echo 'x' \"y\" \\ | cat > /tmp/canary",
    "!unsafe 'x' : {a: [b]} # &anchor *alias\n---\n- x",
    "<script>alert(1)</script>&amp;<secret>",
    "'; DROP TABLE instance; --",
    "\u0001\u001b[31m\u202e\u2028 ünïcödé 🦊",
    "",
    "  leading and trailing  ",
]


def clone(live: Live) -> Caller:
    """The operator with a connection of its own."""
    return Caller(live.url, live.ca_file, live.token)


def test_200_requests_by_8_threads_get_200_slots(live: Live, hello: str) -> None:
    node = live.join("here", slots=200)
    live.supply("here", hello)
    local = threading.local()

    def request(number: int) -> dict[str, Any]:
        if not hasattr(local, "caller"):
            local.caller = clone(live)
        view: dict[str, Any] = local.caller.ok("PUT", f"/instances/home.i{number}", {"software": hello})
        return view

    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(request, range(200)))
    assert {view["slot"]["index"] for view in views} == set(range(200))
    late = live.request("home.late", hello)
    assert late["observed"]["state"] == "waiting"
    assert late["node"] is None
    records = node.slice()["records"]
    assert len({record["clachan_instance"]["slot"]["index"] for name, record in records.items() if "." in name}) == 200
    # a slot that is freed goes to who waits
    live.ok("DELETE", "/instances/home.i7")
    node.started("home.i7")
    assert live.ok("GET", "/instances/home.late")["slot"] == views[7]["slot"]


@pytest.mark.slow
@pytest.mark.filterwarnings(  # urllib3 leaves the socket of a handshake that the server's death cut short
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    home = tmp_path / "home"
    acknowledged: dict[str, str] = {}
    for attempt in range(10):
        with running_controller(home, process=True) as live:
            if attempt == 0:
                live.register(artifact(tmp_path, "acme.web", {"hello": role()}))
                live.join("here", slots=1000)
                live.supply("here", "acme.web.hello")
            acknowledged |= _requests_until_killed(live, attempt)
    with running_controller(home, process=True) as live:
        found: dict[str, str] = {}
        cursor = ""
        while True:
            page = live.ok("GET", f"/instances?limit=500{cursor}")
            for row in page["items"]:
                assert row["path"] not in found
                found[row["path"]] = row["id"]
                assert row["revision"] == 1
            if page["cursor"] is None:
                break
            cursor = f"&cursor={page['cursor']}"
        slots = [row["slot"]["index"] for row in live.ok("GET", "/instances?limit=500")["items"] if row["slot"]]
        assert len(slots) == len(set(slots))
        assert {path: found.get(path) for path in acknowledged} == acknowledged
        # the same again makes nothing new
        for path in sorted(acknowledged)[:50]:
            response = live.call("PUT", f"/instances/{path}", {"software": "acme.web.hello"})
            assert response.headers["clachan-revision-made"] == "false"
    gc.collect()


def _requests_until_killed(live: Live, attempt: int) -> dict[str, str]:
    """100 requests by 4 threads; the process is killed after about half of them."""
    import os
    import signal

    done: dict[str, str] = {}

    def request(number: int) -> None:
        path = f"home.r{attempt}_{number}"
        if number == 50 + attempt:
            os.kill(live.pid or 0, signal.SIGKILL)
        caller = clone(live)
        with caller.session, contextlib.suppress(OSError):
            response = caller.call("PUT", f"/instances/{path}", {"software": "acme.web.hello"}, timeout=10)
            if response.ok:
                done[path] = response.json()["id"]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(request, range(100)))
    assert 10 < len(done) < 100
    return done


@pytest.mark.parametrize("payload", PAYLOADS)
def test_free_text_comes_back_byte_for_byte(payload: str, everywhere: tuple[Live, Node]) -> None:
    live, node = everywhere
    path = f"home.p{PAYLOADS.index(payload)}"
    parameters = {
        "hello_text": payload,
        "hello_list": [payload, payload],
        "hello_any": {payload: payload, "deep": [{"x": payload}]},
        "hello_password": payload,
    }
    shown = parameters | {"hello_password": "<secret>"}
    view = live.request(path, "acme.web.hello", parameters=parameters, title=payload)
    assert (view["parameters"], view["title"]) == (shown, payload)
    read = live.ok("GET", f"/instances/{path}?reveal=true")
    assert read["parameters"] == read["parameters"] | parameters
    (revision,) = live.ok("GET", f"/instances/{path}/revisions")["items"]
    assert revision["parameters"] == shown
    host = node.slice()["records"][path]
    assert {name: host[name] for name in parameters} == parameters
    published = {"url": payload, "password": payload}
    node.started(path, message=payload, published=published)
    mine = {"kind": "promises", "instance": view["id"], "results": {"http": {"ok": False, "message": payload}}}
    node.accepted(mine)
    read = live.ok("GET", f"/instances/{path}?reveal=true")
    assert read["observed"]["message"] == payload
    assert read["observed"]["promises"]["http"]["message"] == payload
    assert read["published"] == published
    account = {"name": f"a{PAYLOADS.index(payload)}", "title": payload}
    assert live.ok("POST", "/accounts", account)["title"] == payload
    whole = live.ok("GET", "/inventory")["clachan_inventory"]["records"][path]
    assert {name: whole[name] for name in parameters} == shown


@pytest.fixture(scope="module")
def everywhere(shared: Live) -> tuple[Live, Node]:
    node = shared.join("here", slots=50)
    shared.supply("here", "acme.web.hello")
    return shared, node


@pytest.mark.parametrize(
    ("parameters", "field", "message"),
    [
        ({"ansible_host": "x"}, "parameters.ansible_host", "ansible_host"),
        ({"hello_unknown": 1}, "parameters.hello_unknown", "hello_unknown"),
        ({"clachan_instance": {}}, "parameters.clachan_instance", "clachan_instance"),
        ({"hello_port": "80"}, "parameters.hello_port", 'parameter hello_port: "80", expected integer'),
        ({"hello_port": True}, "parameters.hello_port", "parameter hello_port: true, expected integer"),
        ({"hello_text": 1}, "parameters.hello_text", "parameter hello_text: 1, expected string"),
        ({"hello_password": 5}, "parameters.hello_password", "hello_password"),
        ({"hello_url": {"from": "other.x", "key": "url"}}, "parameters.hello_url", "other.x"),
        ({"hello_password": "<secret>"}, "parameters.hello_password", "parameter hello_password: <secret> stands for"),
    ],
)
def test_wrong_parameters_are_refused_by_name(
    shared: Live, parameters: dict[str, Any], field: str, message: str
) -> None:
    response = shared.call("PUT", "/instances/home.wrong", {"software": "acme.web.hello", "parameters": parameters})
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["field"] == field
    assert message in error["message"]
    assert shared.call("GET", "/instances/home.wrong").status_code == 404


def test_an_identical_request_makes_no_revision(shared: Live) -> None:
    body = {"software": "acme.web.hello", "parameters": {"hello_port": 1, "hello_password": "geheim"}, "title": "a"}

    def put(**more: Any) -> tuple[int, str, int]:
        response = shared.call("PUT", "/instances/home.same", body | more)
        return response.status_code, response.headers["clachan-revision-made"], response.json()["revision"]

    assert put() == (201, "true", 1)
    assert put() == (200, "false", 1)
    assert put(title="b") == (200, "false", 1)
    assert shared.ok("GET", "/instances/home.same")["title"] == "b"
    shown = shared.ok("GET", "/instances/home.same")["parameters"]
    assert shown == {"hello_port": 1, "hello_password": "<secret>"}
    assert put(parameters=shown) == (200, "false", 1)
    assert put(parameters={"hello_port": 1, "hello_password": "other"}) == (200, "true", 2)
    assert put() == (200, "true", 3)
    assert put(state="stopped") == (200, "true", 4)
    revisions = shared.ok("GET", "/instances/home.same/revisions")["items"]
    assert [row["number"] for row in revisions] == [1, 2, 3, 4]
    assert revisions[0]["parameters"] == revisions[2]["parameters"]
    assert revisions[0]["author"] == "operator"


def test_a_dry_run_changes_nothing(shared: Live) -> None:
    before = shared.ok("GET", "/events?limit=500")["items"]
    response = shared.call("PUT", "/instances/home.dry?dry_run=true", {"software": "acme.web.hello"})
    assert (response.status_code, response.headers["clachan-revision-made"]) == (201, "true")
    assert shared.call("GET", "/instances/home.dry").status_code == 404
    assert shared.ok("GET", "/events?limit=500")["items"] == before
    bad = {"software": "acme.web.hello", "parameters": {"x": 1}}
    assert shared.call("PUT", "/instances/home.dry?dry_run=true", bad).status_code == 422


def test_absent_is_declared_too(shared: Live) -> None:
    body = {"software": "acme.web.hello", "placement": {"labels": {"nobody": "has"}}}
    shared.ok("PUT", "/instances/home.brief", body)
    dry = shared.call("PUT", "/instances/home.brief?dry_run=true", body | {"state": "absent"})
    assert (dry.json()["wanted"], dry.headers["clachan-revision-made"]) == ("absent", "true")
    view = shared.ok("PUT", "/instances/home.brief", body | {"state": "absent"})
    assert (view["wanted"], view["observed"]["state"]) == ("absent", "absent")
    assert shared.call("PUT", "/instances/home.brief", body | {"state": "absent"}).status_code == 404


def test_a_placed_instance_does_not_move(tmp_path: Path, live: Live, hello: str) -> None:
    for name in ("a", "b"):
        live.join(name)
        live.supply(name, hello)
    body = {"software": hello, "placement": {"node": "b"}}
    assert live.ok("PUT", "/instances/home.x", body)["node"] == "b"
    response = live.call("PUT", "/instances/home.x", body | {"placement": {"node": "a"}})
    assert response.status_code == 409
    assert response.json()["error"]["message"] == "placement of home.x: node a, expected b, where it is"
    waiting = live.ok("PUT", "/instances/home.y", body | {"placement": {"labels": {"disk": "ssd"}}})
    assert waiting["observed"]["state"] == "waiting"
    live.ok("PUT", "/nodes/a", {"labels": {"disk": "ssd"}})
    assert live.ok("GET", "/instances/home.y")["node"] == "a"


def test_secrets_stand_only_where_they_must(live: Live, node: Node, hello: str) -> None:
    canary = "canary-5c1f"
    live.request("home.s", hello, parameters={"hello_password": canary})
    live.request("home.s", hello, parameters={"hello_password": canary + "2"})
    node.started("home.s", published={"url": "x", "password": canary + "3"})
    live.call("PUT", "/instances/home.s", {"software": hello, "parameters": {"hello_password": [canary]}})
    for path in ["/events?limit=500", "/instances", "/instances/home.s", "/instances/home.s/revisions", "/inventory"]:
        assert canary not in live.call("GET", path).text, path
    assert canary in json.dumps(node.slice())
    live.ok("POST", "/inventory/reveal", {"hosts": ["home.s"]})
    kinds = [row["kind"] for row in live.ok("GET", "/events?limit=500")["items"]]
    assert kinds.count("secret_revealed") == 1
    wait_until_healthy(live)
