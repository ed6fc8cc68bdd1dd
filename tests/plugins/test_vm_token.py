"""The module that gets a VM's token, as the node that hosts it, from the real controller."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .test_completeness import module

Module = Callable[..., dict[str, Any]]
META = {"needs_root": True, "makes_node": True, "capacity": {"memory_mib": 1, "cpu_milli": 1, "tasks": 8}}


@dataclass
class Host:
    """A node `here` with the vm instance `home.vm`, its home as its agent has it, and where the token goes."""

    live: Any
    node: Any
    home: Path
    dest: Path

    def arguments(self, **more: Any) -> dict[str, Any]:
        return {"home": str(self.home), "instance": "home.vm", "generation": "g1", "dest": str(self.dest), **more}

    def kept(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.dest.read_text())
        return found


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    from live import artifact, role, running_controller

    with running_controller(tmp_path / "controller") as live:
        live.register(artifact(tmp_path, "acme.virtual", {"vm": role({}, META)}))
        node = live.join("here")
        live.supply("here", "acme.virtual.vm")
        live.request("home.vm", "acme.virtual.vm")
        folder = tmp_path / "home" / "node"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"controller_url": live.url}))
        (folder / "ca.pem").write_bytes(Path(live.ca_file).read_bytes())
        for name in ("cert.pem", "key.pem"):
            (folder / name).write_bytes((node.folder / name).read_bytes())
        (tmp_path / "slot").mkdir()
        yield Host(live, node, tmp_path / "home", tmp_path / "slot" / "join.json")


def join(host: Host) -> None:
    """What the agent in the VM does with the token."""
    from live import Caller, key_and_csr

    kept = host.kept()
    body = {"node": kept["node"], "token": kept["token"], "csr": key_and_csr(kept["node"])[1]}
    Caller(host.live.url, host.live.ca_file).ok("POST", "/join", body)


def tokens(host: Host) -> int:
    return len(host.live.ok("GET", "/join-tokens?limit=500")["items"])


def test_a_token_in_twelve_steps(host: Host, run_module: Module) -> None:
    before = tokens(host)
    results = [run_module("vm_token", host.arguments(), check) for check in (True, False, False, True)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert tokens(host) == before + 1, "check mode and a token that is there ask for nothing"
    made = host.kept()
    assert made["generation"] == "g1"
    assert results[1]["expires"] == results[2]["expires"] == made["expires"]
    shown = {"node": made["node"], "generation": "g1", "token": "<secret>"}
    assert results[0]["diff"] == results[1]["diff"] == {"before": {}, "after": shown}
    assert results[2]["diff"] == {"before": shown, "after": shown}
    assert host.dest.stat().st_mode & 0o777 == 0o600
    assert made["token"].partition(".")[2] not in json.dumps(results)

    again = host.arguments(generation="g2")
    results = [run_module("vm_token", again, check) for check in (True, False, False, True)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert host.kept()["generation"] == "g2"
    assert host.kept()["token"] != made["token"]

    join(host)
    results = [run_module("vm_token", again, check) for check in (True, False, False, True)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert [result["joined"] for result in results] == [True] * 4
    assert results[1]["diff"] == {"before": {**shown, "generation": "g2"}, "after": {}}
    assert not host.dest.exists()


def test_a_rebuilt_vm_gets_another_token(host: Host, run_module: Module) -> None:
    run_module("vm_token", host.arguments())
    join(host)
    assert run_module("vm_token", host.arguments(generation="g2"), check=True)["changed"] is True
    assert host.live.ok("GET", f"/nodes/{host.kept()['node']}")["certificate_expires"] is not None
    assert run_module("vm_token", host.arguments(generation="g2"))["joined"] is False
    assert host.live.ok("GET", f"/nodes/{host.kept()['node']}")["certificate_expires"] is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"generation": "g1"}'])
def test_a_file_that_holds_no_token_is_replaced(host: Host, run_module: Module, content: str) -> None:
    host.dest.write_text(content)
    assert run_module("vm_token", host.arguments())["changed"] is True
    join(host)


def test_an_expired_token_is_replaced(host: Host, run_module: Module) -> None:
    run_module("vm_token", host.arguments())
    host.dest.write_text(json.dumps(host.kept() | {"expires": "2026-01-01T00:00:00.000Z"}))
    assert run_module("vm_token", host.arguments())["changed"] is True
    assert host.kept()["expires"] > "2026-01-01T00:00:00.000Z"


def test_what_keeps_the_token_away_is_said(host: Host, run_module: Module) -> None:
    said = run_module("vm_token", host.arguments(instance="home.no"))["msg"]
    assert said == "instance home.no: not on node here, expected one that it hosts"
    said = run_module("vm_token", host.arguments(dest=str(host.home / "nowhere" / "x")))["msg"]
    assert said.endswith("nowhere/x: No such file or directory, expected a file in a directory")
    certificate = host.home / "node" / "cert.pem"
    certificate.unlink()
    said = run_module("vm_token", host.arguments())["msg"]
    assert said.startswith(f"node in {host.home}/node: ")
    assert said.endswith("expected one that has joined")
    host.live.ok("DELETE", "/nodes/here")
    certificate.write_bytes((host.node.folder / "cert.pem").read_bytes())
    said = run_module("vm_token", host.arguments())["msg"]
    assert said == "certificate: unknown or revoked, expected that of a node"


def test_documentation_has_every_option() -> None:
    documented, options = yaml.safe_load(module("vm_token").DOCUMENTATION)["options"], module("vm_token").OPTIONS
    assert set(documented) == set(options)
    for key, option in options.items():
        assert documented[key]["type"] == option["type"]
        assert documented[key].get("required", False) == option.get("required", False)
