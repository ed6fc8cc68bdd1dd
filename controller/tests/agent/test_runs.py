"""The directories of runs: private, redacted, few."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from clachan.agent import runs
from clachan.agent.layout import AgentError

from .conftest import Node, wait_for

SECRET = "canary-secret-0815"


def test_a_run_keeps_only_what_it_may(node: Node) -> None:
    parameters = {"hello_secret": SECRET, "hello_fail": f"a {SECRET} b"}
    node.declare("bad", parameters=parameters, sealed=["hello_secret"])
    node.send()
    node.until(lambda: node.state("bad") == "failed")
    [directory] = node.layout.runs.iterdir()
    assert directory.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in directory.iterdir()) == ["output.log", "run.json"]
    output = (directory / "output.log").read_text()
    assert "told to fail: a <secret> b <secret>" in output
    assert SECRET not in output
    assert json.loads((directory / "run.json").read_text())["status"] == "failed"


def test_old_runs_are_removed_by_count_and_by_age(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"r{number}").mkdir()
        file = tmp_path / f"r{number}/run.json"
        file.touch()
        os.utime(file, (time.time() - number * 86400,) * 2)
    (tmp_path / "going_on").mkdir()
    runs.retain(tmp_path, kept=6, days=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["going_on", "r0", "r1", "r2", "r3"]
    runs.retain(tmp_path, kept=2, days=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["going_on", "r0", "r1"]


def test_what_a_killed_agent_left_is_ended_and_cleared(tmp_path: Path) -> None:
    directory = tmp_path / "runs/r1"
    (directory / "artifacts/job_events").mkdir(parents=True)
    (directory / "slice.json").write_text(SECRET)
    (directory / "output.log").write_text("kept")
    (directory / "link").symlink_to("/etc")
    ended = tmp_path / "runs/ended"
    ended.mkdir()
    (ended / "run.json").touch()
    daemon = subprocess.Popen(["sleep", "999"], env={runs.MARK: str(ended)})
    script = "import subprocess; subprocess.Popen(['sleep', '999'], env={}).wait()"
    left = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, runs.MARK: str(directory)})
    children = Path(f"/proc/{left.pid}/task/{left.pid}/children")
    wait_for(lambda: children.read_text())
    child = int(children.read_text())
    runs.clear_leftovers(tmp_path / "runs")
    assert left.wait(5) == -9
    wait_for(lambda: not Path(f"/proc/{child}/exe").exists())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["ended"]
    assert daemon.poll() is None, "what a run that ended left running is the node's"
    daemon.kill()
    daemon.wait()


def test_a_module_is_asked_and_nothing_of_it_is_kept(bare: Node) -> None:
    collections = [Path(bare.config.platform_path)]

    def ask(module: str, **arguments: object) -> dict[str, Any]:
        return runs.ask(module, arguments, collections, bare.layout, 50)

    assert ask("ansible.builtin.ping", data="heard")["ping"] == "heard"
    with pytest.raises(AgentError, match=r"module ansible\.builtin\.slurp: .*/nowhere.* \(status failed\), expected"):
        ask("ansible.builtin.slurp", src="/nowhere")
    with pytest.raises(
        AgentError, match=r"module clachan\.platform\.nothing: Task failed: Cannot resolve .*, expected its result"
    ):
        ask("clachan.platform.nothing")
    assert list(bare.layout.runs.iterdir()) == []
