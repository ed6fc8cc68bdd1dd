"""Modules against the real application: values, changed, differences, messages; in check mode, really, again."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import SOFTWARE, Platform
from .payloads import payloads

Module = Callable[..., dict[str, Any]]


def steps(module: Module, name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of: check mode, for real, for real again, check mode again; and asserts what changed."""
    results = [module(name, arguments, check) for check in (True, False, False, True)]
    assert [result.get("changed") for result in results] == [True, True, False, False], results
    return results


def test_request_in_twelve_steps(platform: Platform, run_module: Module) -> None:
    call = "/instances/home.twelve"
    first = platform.arguments(
        path="home.twelve", software=SOFTWARE, parameters={"hello_text": "a", "hello_password": "s3cret"}, wait=False
    )
    created = steps(run_module, "request", first)
    assert created[0]["diff"] == created[1]["diff"]
    assert created[1]["diff"]["before"] == {}
    assert created[1]["diff"]["after"]["parameters"] == {"hello_text": "a", "hello_password": "<secret>"}
    assert created[1]["instance"]["revision"] == 1
    assert "s3cret" not in json.dumps(created)

    changed = steps(run_module, "request", first | {"parameters": {"hello_text": "b"}, "title": "Twelve"})
    assert changed[1]["diff"]["before"]["parameters"]["hello_text"] == "a"
    assert changed[1]["diff"]["after"]["parameters"] == {"hello_text": "b"}
    assert changed[1]["diff"]["after"]["title"] == "Twelve"
    assert changed[1]["instance"]["revision"] == platform.live.ok("GET", call)["revision"] == 2

    gone = steps(run_module, "request", platform.arguments(path="home.twelve", state="absent", wait=False))
    assert gone[1]["diff"]["before"]["wanted"] == "started"
    assert gone[1]["diff"]["after"]["wanted"] == "absent"
    assert platform.live.ok("GET", call)["wanted"] == "absent"


def test_check_mode_declares_nothing(platform: Platform, run_module: Module) -> None:
    arguments = platform.arguments(path="home.never", software=SOFTWARE)
    assert run_module("request", arguments, check=True)["changed"] is True
    assert platform.live.call("GET", "/instances/home.never").status_code == 404


def test_only_a_title_is_a_change_without_a_revision(platform: Platform, run_module: Module) -> None:
    arguments = platform.arguments(path="home.titled", software=SOFTWARE, wait=False)
    run_module("request", arguments)
    done = steps(run_module, "request", arguments | {"title": "<b>New</b>"})
    assert [result["revision_made"] for result in done] == [False] * 4
    assert done[1]["instance"]["revision"] == 1


def test_request_of_another_digest_and_state(platform: Platform, run_module: Module) -> None:
    old = sorted(one["digest"] for one in platform.live.ok("GET", "/software")["items"])[0]
    stopped = {"software": SOFTWARE, "state": "stopped", "placement": {"node": "here"}, "wait": False}
    arguments = platform.arguments(path="home.digest", digest=old, **stopped)
    made = run_module("request", arguments)["instance"]
    assert (made["digest"], made["wanted"]) == (old, "stopped")
    kept = platform.arguments(path="home.digest", **stopped)
    assert run_module("request", kept)["changed"] is False


def test_request_waits_for_the_node_and_returns_what_is_published(platform: Platform, run_module: Module) -> None:
    arguments = platform.arguments(path="home.waited", software=SOFTWARE, wait_timeout=30)
    run_module("request", arguments | {"wait": False})
    node = Acting(platform, "home.waited", published={"url": "http://x", "password": "p4ss"})
    with node:
        done = run_module("request", arguments)
    assert done["changed"] is False
    assert done["published"] == {"url": "http://x", "password": "<secret>"}
    assert done["instance"]["observed"]["state"] == "started"
    revealed = run_module("request", arguments | {"reveal": True})
    assert revealed["published"] == {"url": "http://x", "password": "p4ss"}
    events = platform.live.ok("GET", "/events?kind=secret_revealed")["items"]
    assert "home.waited" in json.dumps(events)


class Acting:
    """A thread that, as the node, says after a moment that an instance has come to its wanted state."""

    def __init__(self, platform: Platform, path: str, **more: Any) -> None:
        self._platform, self._path, self._more = platform, path, more
        self._thread = threading.Thread(target=self._act)
        self.problem: BaseException | None = None

    def _act(self) -> None:
        try:
            time.sleep(0.5)
            self._platform.node.started(self._path, **self._more)
        except BaseException as problem:  # shown by the test, which waits in vain
            self.problem = problem

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        if self.problem is not None:
            raise self.problem


def test_request_waits_until_it_is_gone(platform: Platform, run_module: Module) -> None:
    run_module("request", platform.arguments(path="home.going", software=SOFTWARE, wait=False))
    arguments = platform.arguments(path="home.going", state="absent", wait_timeout=30)
    platform.live.ok("DELETE", "/instances/home.going")
    with Acting(platform, "home.going"):
        done = run_module("request", arguments)
    assert (done["changed"], done["instance"]) == (False, {})
    assert run_module("request", arguments)["changed"] is False


def test_request_that_takes_too_long_says_how_it_stands(platform: Platform, run_module: Module) -> None:
    arguments = platform.arguments(path="home.late", software=SOFTWARE, placement={"node": "nowhere"}, wait_timeout=1)
    done = run_module("request", arguments)
    assert done["msg"].startswith("instance home.late: waiting (")
    assert done["msg"].endswith(" after 1 s, expected started")
    assert done["instance"]["observed"]["state"] == "waiting"


def test_payloads_come_back_byte_for_byte(platform: Platform, run_module: Module, tmp_path: Path) -> None:
    texts = payloads(tmp_path / "canary")
    for name, text in texts.items():
        # a secret that reads <secret> is refused: it would be taken for one that was not changed
        secret = text if name != "lookalike" else "another"
        parameters = {"hello_text": text, "hello_any": {text: [text, {"x": text}]}, "hello_password": secret}
        arguments = platform.arguments(path=f"home.p_{name}", software=SOFTWARE, parameters=parameters, wait=False)
        done = run_module("request", arguments | {"title": text})
        assert not done.get("failed"), done
        assert done["instance"]["parameters"] == parameters | {"hello_password": "<secret>"}
        assert done["instance"]["title"] == text
        assert run_module("request", arguments | {"title": text})["changed"] is False
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"parameters": {"hello_txt": "x"}}, "hello_txt"),
        ({"parameters": {"ansible_host": "x"}}, "ansible_host"),
        ({"parameters": {"hello_count": "12"}}, "hello_count"),
        ({"software": "acme.web.nothing"}, "acme.web.nothing"),
        ({"path": "home"}, "home"),
        ({"path": "Home.x"}, "Home.x"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(
    platform: Platform, run_module: Module, more: dict[str, Any], message: str
) -> None:
    arguments = platform.arguments(path="home.wrong", software=SOFTWARE, wait=False) | more
    for check in (True, False):
        done = run_module("request", arguments, check)
        assert done["failed"] is True
        assert message in done["msg"]
        assert "expected" in done["msg"]
        assert done["code"] in {"invalid", "not_found"}


def test_request_needs_a_software_unless_absent(platform: Platform, run_module: Module) -> None:
    done = run_module("request", platform.arguments(path="home.x"))
    assert done["msg"] == "state is started but all of the following are missing: software"


def test_supply_in_its_steps(platform: Platform, run_module: Module) -> None:
    node = platform.live.join("shelf", slots=1)
    arguments = platform.arguments(node="shelf", software=SOFTWARE, wait=False)
    newest = platform.live.ok("GET", f"/software/{SOFTWARE}")["digest"]
    old = next(one["digest"] for one in platform.live.ok("GET", "/software")["items"] if one["digest"] != newest)
    created = steps(run_module, "supply", arguments)
    assert created[0]["diff"] == created[1]["diff"] == {"before": {}, "after": {"digest": newest, "state": "present"}}
    assert created[1]["supply"]["observed"] == "waiting"

    changed = steps(run_module, "supply", arguments | {"digest": old})
    assert changed[1]["diff"] == {
        "before": {"digest": newest, "state": "present"},
        "after": {"digest": old, "state": "present"},
    }
    assert run_module("supply", arguments)["changed"] is False

    gone = steps(run_module, "supply", arguments | {"state": "absent"})
    assert gone[1]["diff"]["after"] == {"digest": old, "state": "absent"}
    node.accepted({"kind": "supply", "supply": gone[1]["supply"]["id"], "digest": old, "state": "absent"})
    assert run_module("supply", arguments | {"state": "absent", "wait": True})["changed"] is False


def test_supply_waits_for_the_node(platform: Platform, run_module: Module) -> None:
    node = platform.live.join("bench", slots=1)
    arguments = platform.arguments(node="bench", software=SOFTWARE)
    late = run_module("supply", arguments | {"wait_timeout": 1})
    assert late["msg"] == f"supply of {SOFTWARE} on bench: waiting after 1 s, expected present"
    node.accepted(
        {"kind": "supply", "supply": late["supply"]["id"], "digest": late["supply"]["digest"], "state": "present"}
    )
    assert run_module("supply", arguments)["supply"]["observed"] == "present"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"node": "nowhere"}, "node nowhere: unknown, expected one that joined"),
        ({"software": "acme.web.nothing"}, "software acme.web.nothing: unknown, expected a registered one"),
        ({"digest": "0" * 64}, f"software {SOFTWARE}: digest {'0' * 64}, expected a registered one"),
    ],
)
def test_what_is_wrong_with_a_supply_is_named(
    platform: Platform, run_module: Module, more: dict[str, Any], message: str
) -> None:
    arguments = platform.arguments(node="here", software=SOFTWARE, wait=False) | more
    assert run_module("supply", arguments)["msg"] == message
    assert run_module("supply", arguments, check=True)["failed"] is True


def test_absent_supply_of_nothing_changes_nothing(platform: Platform, run_module: Module) -> None:
    arguments = platform.arguments(node="here", software="acme.web.nothing", state="absent")
    for check in (True, False):
        assert run_module("supply", arguments, check) == {
            "changed": False,
            "diff": {"before": {}, "after": {}},
            "invocation": {},
            "supply": {},
        }


def test_join_token_until_the_node_has_joined(platform: Platform, run_module: Module) -> None:
    arguments = platform.arguments(node="cellar")
    checked = run_module("join_token", arguments, check=True)
    assert (checked["changed"], checked["joined"], "token" in checked) == (True, False, False)
    made = run_module("join_token", arguments)
    assert made["changed"] is True
    assert len(made["token"].partition(".")[0]) == 32
    assert made["diff"] == {"before": {}, "after": {"join_token": "cellar"}}
    here = run_module("join_token", platform.arguments(node="here"))
    assert (here["changed"], here["joined"], "token" in here) == (False, True, False)
    assert here["diff"] == {"before": {}, "after": {}}


def test_join_token_into_a_file(platform: Platform, run_module: Module, tmp_path: Path) -> None:
    file = tmp_path / "attic.token"
    file.write_text("old")
    file.chmod(0o644)
    more = {"labels": {"site": "home"}, "links": ["192.0.2.7"]}
    arguments = platform.arguments(node="attic", dest=str(file), seconds=60, **more)
    assert run_module("join_token", arguments, check=True)["changed"] is True
    assert file.read_text() == "old"
    made = run_module("join_token", arguments)
    assert "token" not in made
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().rstrip("\n").count(".") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["attic.token"]
    nowhere = run_module("join_token", arguments | {"dest": str(tmp_path / "no" / "where")})
    assert nowhere["msg"] == f"dest {tmp_path}/no/where: not written, No such file or directory"


def test_join_token_says_what_is_wrong(platform: Platform, run_module: Module) -> None:
    done = run_module("join_token", platform.arguments(node="attic", seconds=1))
    assert done["failed"] is True
    assert done["field"] == "seconds"
    done = run_module("join_token", platform.arguments(node="attic", links=["127.0.0.1"]))
    assert (done["failed"], done["field"]) == (True, "links")


def test_infos(platform: Platform, run_module: Module) -> None:
    run_module("request", platform.arguments(path="home.seen", software=SOFTWARE, wait=False))
    for check in (True, False):
        one = run_module("request_info", platform.arguments(path="home.seen"), check)
        assert [found["path"] for found in one["instances"]] == ["home.seen"]
        assert one["changed"] is False
    assert run_module("request_info", platform.arguments(path="home.unseen"))["instances"] == []
    of_software = run_module("request_info", platform.arguments(tenant="home", software=SOFTWARE))["instances"]
    assert "home.seen" in [found["path"] for found in of_software]
    assert run_module("request_info", platform.arguments(state="failing"))["instances"] == []
    assert run_module("node_info", platform.arguments(name="here"))["nodes"][0]["state"] == "active"
    assert run_module("node_info", platform.arguments(name="nowhere"))["nodes"] == []
    assert "here" in [node["name"] for node in run_module("node_info", platform.arguments())["nodes"]]


def test_usage_facts(platform: Platform, run_module: Module) -> None:
    made = run_module("request", platform.arguments(path="home.used", software=SOFTWARE, wait=False))["instance"]
    for hour in (1, 2):
        platform.node.accepted(
            {
                "kind": "usage",
                "instance": made["id"],
                "meter": "cpu_ms",
                "window_start": f"2020-01-01T0{hour}:00:00Z",
                "window_end": f"2020-01-01T0{hour + 1}:00:00Z",
                "epoch": "e",
                "quantity": 10 * hour,
            }
        )
    facts = run_module("usage_facts", platform.arguments(path="home.used"))["ansible_facts"]["clachan_usage"]
    assert facts["totals"] == {"home.used": {"cpu_ms": 30}}
    assert [record["quantity"] for record in facts["records"]] == [10, 20]
    late = run_module("usage_facts", platform.arguments(path="home.used", since="2020-01-01T02:00:00Z"), check=True)
    assert late["ansible_facts"]["clachan_usage"]["totals"] == {"home.used": {"cpu_ms": 20}}
    none = run_module("usage_facts", platform.arguments(tenant="home", meter="none"))
    assert none["ansible_facts"] == {"clachan_usage": {"records": [], "totals": {}}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "https://127.0.0.1:1", "token": "not-a-token"}, "controller https://127.0.0.1:1: no answer ("),
        (
            {"url": "https://127.0.0.1:1"},
            "token for https://127.0.0.1:1: none, expected the option token or CLACHAN_TOKEN",
        ),
        ({"url": "ftp://x", "token": "not-a-token"}, "controller's url: 'ftp://x', expected https://HOST:PORT"),
        (
            {"home": "/nowhere"},
            "controller: not known, expected the option url, CLACHAN_URL or the file /nowhere/credentials.json",
        ),
    ],
)
def test_how_the_controller_is_not_reached(run_module: Module, arguments: dict[str, Any], message: str) -> None:
    for name in ("node_info", "request_info", "usage_facts"):
        assert run_module(name, arguments)["msg"].startswith(message)


def test_who_the_controller_refuses(platform: Platform, run_module: Module, tmp_path: Path) -> None:
    known = {"url": platform.live.url, "ca": platform.live.ca_file}
    done = run_module("node_info", known | {"token": "not-a-token"})
    assert (done["status"], done["code"]) == (401, "unauthenticated")
    other = tmp_path / "other.pem"
    other.write_text(Path("/etc/ssl/certs/ca-certificates.crt").read_text())
    done = run_module("node_info", known | {"token": "not-a-token", "ca": str(other)})
    assert "its certificate was refused (" in done["msg"]
    done = run_module("node_info", known | {"token": "not-a-token", "ca": str(tmp_path / "none")})
    assert done["msg"] == f"CA file {tmp_path}/none: not found, expected the controller's CA"


def test_the_stored_token_is_not_sent_elsewhere(platform: Platform, run_module: Module) -> None:
    done = run_module("node_info", platform.arguments(url="https://127.0.0.1:1"))
    assert done["msg"].startswith("token for https://127.0.0.1:1: none")
