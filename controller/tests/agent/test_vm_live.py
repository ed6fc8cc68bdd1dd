"""A VM's life but for the hypervisor: a real controller, the host's real agent as root with a role that gets the token,
and a second real agent, in a home of its own, as the one inside the VM."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import live
import pytest

from .conftest import Artifact, Node, unix_users, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="this machine cannot: makes a unix user, needs root"),
]
MACHINE, HELLO = "acme.things.machine", "acme.things.hello"
SECONDS = 60


class Machine:
    """A node's home, its supervisord and its agent as a process."""

    def __init__(self, node: Node) -> None:
        self.node, self.log = node, node.home / "agent.log"
        config = json.loads(node.layout.config.read_text())
        del config["controller_url"], config["node_name"]
        node.layout.config.write_text(json.dumps(config))
        node.layout.identity.unlink()
        node.start_supervisord()
        self._agent: subprocess.Popen[bytes] | None = None

    def start(self, url: str, name: str, token: str) -> None:
        self.node.layout.invitation.write_text(json.dumps({"url": url, "node": name, "token": token}))
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "clachan.agent", "run", "--home", str(self.node.home)]
            self._agent = subprocess.Popen(command, stdout=log, stderr=log)

    def end(self) -> None:
        if self._agent:
            self._agent.send_signal(signal.SIGTERM)
            self._agent.wait(30)
            self._agent = None

    def close(self) -> None:
        self.end()
        self.node.close()


@pytest.fixture
def user() -> Iterator[str]:
    with unix_users(f"clv{os.getpid()}", 1) as (name,):
        yield name


@pytest.fixture
def machines(folder: Path, platform: Path, things: Artifact, user: str) -> Iterator[list[Machine]]:
    """The host in root mode, the VM in the mode of one user (who is root here)."""
    made: list[Machine] = []
    myself = pwd.getpwuid(os.geteuid()).pw_name
    for users in ([user], [myself], [myself]):
        home = Path(tempfile.mkdtemp(prefix="v", dir=folder))
        home.chmod(0o755)
        made.append(Machine(Node(home, platform, things, users, slots=1)))
    yield made
    for machine in made:
        machine.close()
        shutil.rmtree(machine.node.home, ignore_errors=True)


def test_a_vm_is_ordered_joins_runs_is_rebuilt_and_goes(tmp_path: Path, machines: list[Machine]) -> None:
    host, inside, rebuilt = machines
    with live.running_controller(tmp_path / "controller") as controller:
        controller.register(host.node.things.path)
        host.start(controller.url, "here", controller.join_token("here"))
        until(lambda: controller.call("GET", "/nodes/here").json().get("state") == "active", host)
        controller.supply("here", MACHINE)
        controller.request("home.vm", MACHINE)
        controller.request("home.app", HELLO, placement={"inside": "home.vm"})
        token = _token(controller, host)
        until(lambda: observed(controller, "home.vm")["message"] == "waiting for the VM's agent to report", host)

        inside.start(controller.url, token["node"], token["token"])
        until(lambda: observed(controller, "home.vm")["state"] == "started", inside)
        until(lambda: observed(controller, "home.app")["state"] == "started", inside)
        (supply,) = [one for one in controller.ok("GET", "/supplies")["items"] if one["node"] == token["node"]]
        assert (supply["software"], supply["observed"]) == (HELLO, "present")
        runs = [one["data"] for one in controller.ok("GET", "/events?limit=500&kind=run")["items"]]
        assert [one["purpose"] for one in runs if one["software"] == HELLO] == ["supply", "converge"]

        controller.request("home.vm", MACHINE, parameters={"machine_build": "two"})
        again = _token(controller, host, former=token["token"])
        until(lambda: observed(controller, "home.app")["state"] == "allocated", host)
        inside.end()
        rebuilt.start(controller.url, again["node"], again["token"])
        until(lambda: observed(controller, "home.vm")["state"] == "started", rebuilt)
        until(lambda: observed(controller, "home.app")["state"] == "started", rebuilt)
        until(lambda: observed(controller, "home.vm")["revision"] == 2, host)

        _both_doctors_name_what_is_wrong(controller, host)
        controller.ok("DELETE", "/instances/home.vm")
        until(lambda: controller.call("GET", "/instances/home.vm").status_code == 404, host)
        assert controller.call("GET", f"/nodes/{token['node']}").status_code == 404
        assert observed(controller, "home.app")["state"] == "waiting"
        _no_token_is_left(tmp_path, machines, [token["token"], again["token"]])


def until(condition: Any, machine: Machine) -> None:
    try:
        wait_for(condition, SECONDS)
    except AssertionError:
        raise AssertionError(machine.log.read_text()[-4000:]) from None


def observed(controller: live.Live, path: str) -> dict[str, Any]:
    found: dict[str, Any] = controller.ok("GET", f"/instances/{path}")["observed"]
    return found


def _both_doctors_name_what_is_wrong(controller: live.Live, host: Machine) -> None:
    """A data volume makes it a node that has had machines; then its agent runs the module that looks at them."""
    folder = host.node.home / "volumes/home.gone"
    folder.mkdir(parents=True)
    (folder / "data.raw").touch()
    (folder / ".more.raw.new").touch()
    command = [sys.executable, "-m", "clachan.agent", "doctor", "--json", "--home", str(host.node.home)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    asked = controller.ok("GET", "/nodes/here/doctor")["findings"]
    for findings in (json.loads(said.stdout)["findings"], asked):
        volumes = [(one["name"], one["ok"], one["found"]) for one in findings if one["kind"] == "volume"]
        assert volumes == [
            (str(folder / ".more.raw.new"), False, "a file half made"),
            (str(folder / "data.raw"), True, "data kept: instance home.gone is no more"),
        ], findings
        assert {"agent", "domain", "image", "tap", "rule", "user"} <= {one["kind"] for one in findings}
    assert (said.returncode, said.stderr) == (1, "")
    assert not list(host.node.layout.runs.glob("ask-*"))


def _token(controller: live.Live, host: Machine, former: str = "") -> dict[str, Any]:
    """What the role left for the seed."""
    slot = Path(controller.ok("GET", "/instances/home.vm")["slot"]["directory"])
    kept = slot / "etc/join.json"
    until(lambda: kept.exists() and json.loads(kept.read_text())["token"] != former, host)
    assert kept.stat().st_mode & 0o777 == 0o600
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def _no_token_is_left(folder: Path, machines: list[Machine], tokens: list[str]) -> None:
    """Logs, runs' output, databases, slices."""
    homes = [folder, *(machine.node.home for machine in machines)]
    everything = [path for home in homes for path in home.rglob("*") if path.is_file()]
    secrets = [token.partition(".")[2].encode() for token in tokens]
    assert not [path for path in everything if any(secret in path.read_bytes() for secret in secrets)]
