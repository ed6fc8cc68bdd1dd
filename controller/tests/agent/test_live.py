"""A real controller and a real agent: what a user sees of an instance's life."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import live
import pytest

from .conftest import NODE, Node

pytestmark = pytest.mark.slow
AGENT = [sys.executable, "-m", "clachan.agent"]
SECRET = "canary-secret-2342"


class Lab:
    """One controller, one node; the agent is a process of its own."""

    def __init__(self, home: Path, node: Node) -> None:
        self._home = home
        self._controller = ExitStack()
        self.start_controller()
        self.node = node
        self._agent: subprocess.Popen[bytes] | None = None
        self.log = node.home / "agent.log"

    def start_controller(self) -> None:
        running = live.running_controller(self._home, process=True)
        self.controller: live.Live = self._controller.enter_context(running)

    def stop_controller(self) -> None:
        self._controller.close()

    def command(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [*AGENT, *words, "--home", str(self.node.home)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)

    def start_agent(self) -> None:
        with self.log.open("ab") as log:
            self._agent = subprocess.Popen([*AGENT, "run", "--home", str(self.node.home)], stdout=log, stderr=log)

    def end_agent(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._agent:
            self._agent.send_signal(how)
            self._agent.wait(30)
            self._agent = None

    def instance(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.controller.ok("GET", f"/instances/{path}")
        return found

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        items = self.controller.ok("GET", "/events?limit=500")["items"]
        return sorted((one for one in items if one["kind"] in kinds), key=lambda one: one["id"])

    def runs(self) -> list[list[str]]:
        return [one["data"]["hosts"] for one in self.events("run") if one["data"]["purpose"] == "converge"]

    def until(self, condition: Callable[[], object], seconds: float = 40) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def settled(self, path: str, state: str = "started", revision: int | None = None) -> bool:
        found = self.instance(path)
        fits = revision is None or found["observed"]["revision"] == revision
        return bool(found["observed"]["state"] == state and fits)


@pytest.fixture
def lab(bare: Node, tmp_path: Path) -> Iterator[Lab]:
    bare.start_supervisord()
    bare.layout.identity.unlink()
    found = Lab(tmp_path, bare)
    try:
        _join(found)
        yield found
    finally:
        found.end_agent()
        found.stop_controller()


def _join(lab: Lab) -> None:
    controller, node = lab.controller, lab.node
    config = json.loads(node.layout.config.read_text())
    config |= {"controller_url": controller.url, "usage_seconds": 2}
    node.layout.config.write_text(json.dumps(config))
    for _ in range(2):
        joined = lab.command("join", input=controller.join_token(NODE) + "\n")
        assert (joined.returncode, joined.stdout, joined.stderr) == (0, f"node here: joined {controller.url}\n", "")
    controller.register(node.things.path)
    lab.start_agent()
    lab.until(lambda: controller.ok("GET", f"/nodes/{NODE}")["state"] == "active")
    controller.supply(NODE, "acme.things.hello")


def test_the_life_of_an_instance(lab: Lab) -> None:
    controller = lab.controller
    controller.request("home.one", "acme.things.hello", parameters={"hello_message": "hi", "hello_secret": SECRET})
    controller.request("home.two", "acme.things.hello")
    lab.until(lambda: lab.settled("home.one") and lab.settled("home.two"))
    one = lab.instance("home.one")
    assert one["published"] == {"greeting": "hi"}
    assert {name: promise["ok"] for name, promise in one["observed"]["promises"].items()} == {"runs": True}
    conf = lab.node.home / "slots" / one["slot"]["name"] / "etc/hello.conf"
    assert conf.read_text().splitlines()[:2] == ["message = hi", f"secret = {SECRET}"]

    _one_change_is_one_run(lab)
    _logs_come_over_the_agents_own_connection(lab, one["slot"]["name"])
    _a_kill_is_one_outage_even_without_a_controller(lab)
    _a_renewed_certificate_is_taken_up(lab)
    _stop_and_remove(lab)
    lab.until(lambda: controller.ok("GET", "/usage?path=home.two")["items"])
    meters = {line["meter"] for line in controller.ok("GET", "/usage?path=home.two")["items"]}
    assert "instance_seconds" in meters
    assert lab.events("fact_conflict") == []
    lab.end_agent()
    everything = [path for path in lab.node.home.rglob("*") if path.is_file() and path.stat().st_size < 1 << 26]
    leaks = [path for path in everything if SECRET.encode() in path.read_bytes()]
    assert leaks == [], "the instance is gone, and with it its secret"
    assert "set aside" not in lab.log.read_text()


def _one_change_is_one_run(lab: Lab) -> None:
    before = len(lab.runs())
    parameters = {"hello_message": "changed", "hello_secret": SECRET}
    lab.controller.request("home.one", "acme.things.hello", parameters=parameters)
    lab.until(lambda: lab.settled("home.one", revision=2))
    lab.controller.request("home.one", "acme.things.hello", parameters=parameters)
    time.sleep(2)
    assert lab.runs()[before:] == [["home.one"]]
    assert lab.instance("home.one")["published"] == {"greeting": "changed"}


def _logs_come_over_the_agents_own_connection(lab: Lab, slot: str) -> None:
    (lab.node.home / "slots" / slot / "log/main.log").write_text("line one\nline two\n")
    assert lab.controller.ok("GET", "/instances/home.one/logs?lines=1") == {"logs": {"main": "line two"}}


def _a_kill_is_one_outage_even_without_a_controller(lab: Lab) -> None:
    slot = lab.instance("home.two")["slot"]["name"]
    lab.stop_controller()
    time.sleep(1.5)
    before = lab.node.supervisor.pids()[slot, "main"]
    os.kill(before, signal.SIGKILL)
    lab.until(lambda: lab.node.supervisor.pids().get((slot, "main"), before) != before, seconds=15)
    lab.until(lambda: "outage ended" in lab.log.read_text(), seconds=15)
    _grow_old(lab)
    lab.start_controller()
    lab.until(lambda: [one["path"] for one in lab.events("outage", "recovery")] == ["home.two"] * 2)
    lab.until(lambda: lab.settled("home.two"))
    assert [one["kind"] for one in lab.events("outage", "recovery")] == ["outage", "recovery"]


def _grow_old(lab: Lab) -> None:
    """For the controller, the node's certificate is half through its life."""
    with closing(sqlite3.connect(lab.controller.home / "controller/clachan.db")) as database:
        issued = (datetime.now(UTC) - timedelta(days=90)).isoformat(timespec="milliseconds")
        database.execute("UPDATE certificate SET issued = ?", (issued.replace("+00:00", "Z"),))
        database.commit()


def _a_renewed_certificate_is_taken_up(lab: Lab) -> None:
    before = lab.node.layout.certificate.read_text()
    renewed = lab.command("renew")
    end = datetime.now(UTC) + timedelta(days=90)
    assert (renewed.returncode, renewed.stdout) == (0, f"certificate of here: valid until {end:%Y-%m-%d}\n")
    after = lab.node.layout.certificate.read_text()
    assert after != before
    assert lab.command("renew").returncode == 0
    assert lab.node.layout.certificate.read_text() == after, "a young one is not made again"
    doctor = lab.command("doctor")
    assert (doctor.returncode, doctor.stdout.count("ok  ")) == (0, 9), doctor.stdout
    asked = lab.controller.ok("GET", f"/nodes/{NODE}/doctor")
    pieces = [one["name"] for one in asked["findings"]]
    assert pieces == [line.split(":")[0].removeprefix("ok").strip() for line in doctor.stdout.splitlines()]
    said = json.loads(lab.command("doctor", "--json").stdout)
    assert [one["name"] for one in said["findings"]] == pieces
    assert {one["ok"] for one in said["findings"] + asked["findings"]} == {True}


def _stop_and_remove(lab: Lab) -> None:
    controller = lab.controller
    slot = lab.instance("home.one")["slot"]["name"]
    parameters = {"hello_message": "changed", "hello_secret": SECRET}
    controller.request("home.one", "acme.things.hello", parameters=parameters, state="stopped")
    lab.until(lambda: lab.settled("home.one", "stopped"))
    assert (slot, "main") not in lab.node.supervisor.pids()
    controller.ok("DELETE", "/instances/home.one")
    lab.until(lambda: controller.call("GET", "/instances/home.one").status_code == 404)
    assert list((lab.node.home / "slots" / slot).iterdir()) == []
