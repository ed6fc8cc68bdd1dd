"""Joining by node/join.json: a real controller, and the agent as a process of its own or only this part of it."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import live
import pytest
from clachan.agent import invitation
from clachan.agent.layout import Layout
from clachan.server.services import joining

from .conftest import BIN, ROOT, Node, wait_for

sys.path.insert(0, str(ROOT / "tests"))
from testbed import soak

pytestmark = pytest.mark.slow

NAME = "vm_0123456789ab"
AGENT = [sys.executable, "-m", "clachan.agent", "run", "--home"]


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[live.Live]:
    with live.running_controller(tmp_path / "controller") as running:
        yield running


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A home as an image has it: settings that know no controller."""
    found = Layout(tmp_path / "home")
    found.node.mkdir(parents=True)
    found.config.write_text(json.dumps({"mode": "root"}))
    return found


def invite(layout: Layout, url: str, token: str, node: str = NAME) -> None:
    layout.invitation.write_text(json.dumps({"url": url, "node": node, "token": token}))


@contextmanager
def accepting(layout: Layout) -> Iterator[list[bool]]:
    """`accept` in a thread; what it gave is in the list."""
    stop, given = threading.Event(), list[bool]()
    thread = threading.Thread(target=lambda: given.append(invitation.accept(layout, stop)))
    thread.start()
    try:
        yield given
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def joins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the nodes that ask to join, as they come; the controller answers as ever."""
    asked, answer = list[str](), joining.join

    def join(controller: Any, request: Any) -> Any:
        asked.append(request.node)
        return answer(controller, request)

    monkeypatch.setattr(joining, "join", join)
    return asked


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name == "clachan.agent.invitation"]
    return [record.getMessage() for record in ours if record.levelno == logging.ERROR]


def test_it_joins_completes_the_settings_and_removes_the_file(controller: live.Live, layout: Layout) -> None:
    invite(layout, controller.url, controller.join_token(NAME))
    assert invitation.accept(layout, threading.Event())
    assert not layout.invitation.exists()
    assert layout.load_identity().name == NAME
    config = json.loads(layout.config.read_text())
    assert config == {"mode": "root", "controller_url": controller.url, "node_name": NAME}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (layout.config, layout.key, layout.certificate))
    assert controller.ok("GET", f"/nodes/{NAME}")["state"] == "joining"
    assert invitation.accept(layout, threading.Event()), "without an invitation there is nothing to do"


def test_a_kill_at_any_point_of_joining_is_made_good(controller: live.Live, layout: Layout) -> None:
    token = controller.join_token(NAME)
    invite(layout, controller.url, token)
    assert invitation.accept(layout, threading.Event())
    before = layout.certificate.read_text()
    for lost in (["certificate"], ["certificate", "identity"], ["certificate", "identity", "ca"], []):
        for name in lost:
            getattr(layout, name).unlink()
        invite(layout, controller.url, token)
        assert invitation.accept(layout, threading.Event())
        assert layout.certificate.read_text() == before
        assert not layout.invitation.exists()


def test_a_used_token_is_tried_once_and_another_one_helps(
    controller: live.Live, layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = controller.join_token(NAME)
    body = {"token": token, "node": NAME, "csr": live.key_and_csr(NAME)[1]}
    live.Caller(controller.url, controller.ca_file).ok("POST", "/join", body)
    monkeypatch.setattr(invitation, "LOOK_SECONDS", 0.05)
    asked = joins(monkeypatch)
    invite(layout, controller.url, token)
    with accepting(layout) as given:
        wait_for(lambda: errors(caplog))
        time.sleep(1)
        said = "join token: used with another key, expected a new token; waiting for another one"
        assert errors(caplog) == [f"{layout.invitation}: {said}"]
        assert (asked, given) == ([NAME], [])
        invite(layout, controller.url, controller.join_token(NAME))
        wait_for(lambda: given)
    assert given == [True]
    assert token.partition(".")[2] not in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"token": "TOKENx"}', "join token: unknown, expected one that is valid"),
        ('{"node": "vm_other"}', "join token: not for node vm_other, expected the name that it was made for"),
        ('{"token": "short"}', "join token: not of the form, expected 32 hex digits, a dot and a secret"),
        ('{"url": "http://x"}', "controller url: 'http://x', expected https://HOST[:PORT]"),
        ('{"more": 1}', "has more, node, token, url, expected url, node and token, each a text"),
        ('{"token": 1}', "has node, token, url, expected url, node and token, each a text"),
        ("[", "Expecting value: line 1 column 2 (char 1), expected url, node and token, each a text"),
    ],
)
def test_what_cannot_be_is_said_once(
    controller: live.Live, layout: Layout, caplog: pytest.LogCaptureFixture, content: str, message: str
) -> None:
    token = controller.join_token(NAME)
    good = {"url": controller.url, "node": NAME, "token": token}
    text = content.replace("TOKEN", token)
    layout.invitation.write_text(text if text == "[" else json.dumps(good | json.loads(text)))
    with accepting(layout) as given:
        wait_for(lambda: errors(caplog))
    assert given == [False]
    assert len(errors(caplog)) == 1
    assert message in errors(caplog)[0]
    assert layout.invitation.exists()


def test_an_image_without_settings_says_so(
    controller: live.Live, layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    layout.config.unlink()
    invite(layout, controller.url, controller.join_token(NAME))
    with accepting(layout):
        wait_for(lambda: errors(caplog))
    assert "node/config.json: " in errors(caplog)[0]
    assert "expected the settings of the image; waiting for another one" in errors(caplog)[0]


def test_it_waits_for_a_controller_that_is_not_there(
    tmp_path: Path, layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    with live.running_controller(tmp_path / "controller") as running:
        invite(layout, running.url, running.join_token(NAME))
    with accepting(layout) as given:
        wait_for(lambda: "trying again" in caplog.text)
        time.sleep(1)
        assert given == []
        with live.running_controller(tmp_path / "controller"):
            wait_for(lambda: given, 30)
    assert given == [True]
    assert caplog.text.count("trying again") == 1
    assert errors(caplog) == []


@pytest.fixture
def machine(bare: Node) -> Node:
    """A node's home that has not joined and knows no controller."""
    config = json.loads(bare.layout.config.read_text())
    del config["controller_url"], config["node_name"]
    bare.layout.config.write_text(json.dumps(config))
    bare.layout.identity.unlink()
    return bare


def test_it_says_what_it_is_before_the_rest_of_the_agent_is_there(controller: live.Live, machine: Node) -> None:
    invite(machine.layout, controller.url, controller.join_token(NAME))
    assert invitation.accept(machine.layout, threading.Event())
    shown = controller.ok("GET", f"/nodes/{NAME}")
    assert (shown["state"], shown["slots"], shown["mode"]) == ("active", machine.config.slots, machine.mode)
    heavy = ["pydantic", "requests", "typer", "cryptography.x509"]
    look = f"import clachan.agent.start, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", "each of them costs an emulated processor a second"


@pytest.mark.parametrize("command", [[sys.executable, "-m", "clachan.agent"], [str(BIN / "clachan"), "agent"]])
def test_a_service_manager_is_told_why_it_does_not_run(tmp_path: Path, command: list[str]) -> None:
    done = subprocess.run(
        [*command, "run", "--home", tmp_path], capture_output=True, text=True, check=False, timeout=30
    )
    lock = tmp_path / "node/agent.lock"
    expected = f"clachan agent: file {lock}: No such file or directory, expected a node's home\n"
    assert (done.returncode, done.stderr) == (1, expected)


def start(machine: Node) -> subprocess.Popen[bytes]:
    with (machine.home / "agent.log").open("ab") as output:
        return subprocess.Popen([*AGENT, str(machine.home)], stdout=output, stderr=output)


def said(machine: Node) -> str:
    return (machine.home / "agent.log").read_text()


@pytest.mark.slow
def test_the_agent_joins_by_itself_and_reports(controller: live.Live, machine: Node) -> None:
    machine.start_supervisord()
    assert start(machine).wait(20) == 1
    assert "controller_url Field required, expected the role clachan.platform.node" in said(machine)
    invite(machine.layout, controller.url, controller.join_token(NAME))
    began = time.monotonic()
    agent = start(machine)
    wait_for(lambda: not machine.layout.invitation.exists(), 20)
    joined = time.monotonic() - began
    wait_for(lambda: controller.ok("GET", f"/nodes/{NAME}")["state"] == "active", 20)
    print(f"joined after {joined:.2f} s, reported after {time.monotonic() - began:.2f} s")
    end(agent)
    # a later start needs no invitation
    controller.controller.sightings._seen.clear()
    agent = start(machine)
    wait_for(lambda: controller.controller.sightings._seen, 20)
    end(agent)
    assert "Traceback" not in said(machine)


def end(agent: subprocess.Popen[bytes]) -> None:
    agent.send_signal(signal.SIGTERM)
    # what is waited for may be of one that was killed: then this one has hardly begun
    assert agent.wait(30) in {0, -signal.SIGTERM}


@pytest.mark.slow
def test_an_agent_that_waits_ends_when_it_is_told(machine: Node) -> None:
    invite(machine.layout, f"https://127.0.0.1:{live.free_port()}", f"{'0' * 32}.x")
    agent = start(machine)
    wait_for(lambda: "trying again" in said(machine), 20)
    second = subprocess.run([*AGENT, str(machine.home)], capture_output=True, text=True, check=False, timeout=30)
    assert (second.returncode, "another one runs, expected none" in second.stderr) == (1, True)
    end(agent)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(soak.seconds(300))
def test_an_agent_that_is_killed_while_it_joins(controller: live.Live, machine: Node) -> None:
    """Twice, at any moment until it usually has joined; systemd starts the next."""
    machine.start_supervisord()
    usual = 0.0
    for number, chance in enumerate(chain([None], soak.rounds("join"))):
        name = f"vm_{number:012x}"
        _forget(machine)
        invite(machine.layout, controller.url, token := controller.join_token(name), name)
        for _ in range(2 if chance else 0):
            agent = start(machine)
            time.sleep(chance.uniform(0.2, usual))
            agent.kill()
            agent.wait()
        began, agent = time.monotonic(), start(machine)
        wait_for(lambda: not machine.layout.invitation.exists(), 30)
        usual = usual or time.monotonic() - began
        controller.controller.sightings._seen.clear()
        wait_for(lambda: controller.controller.sightings._seen, 30)
        wait_for(lambda name=name: controller.ok("GET", f"/nodes/{name}")["state"] == "active", 30)
        end(agent)
        layout = machine.layout
        assert layout.load_identity().name == layout.load_config().node_name == name
        assert [one["used"] for one in controller.ok("GET", "/join-tokens?limit=500")["items"]] == [True] * (number + 1)
        assert token.partition(".")[2] not in said(machine)
    assert "Traceback" not in said(machine)


def _forget(machine: Node) -> None:
    """As an image has it: the node never joined."""
    config = json.loads(machine.layout.config.read_text())
    shutil.rmtree(machine.layout.node)
    machine.layout.node.mkdir()
    known = {key: value for key, value in config.items() if key not in {"controller_url", "node_name"}}
    machine.layout.config.write_text(json.dumps(known))
