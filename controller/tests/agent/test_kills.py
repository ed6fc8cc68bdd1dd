"""The agent is killed at any moment: the next one converges, and the pass after that does nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clachan.agent.memory import Memory
from clachan.agent.planning import hosts_of

from .conftest import Node, wait_for

pytestmark = pytest.mark.slow
KILLS = 20


def start(node: Node) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "clachan.agent", "run", "--home", str(node.home)]
    with (node.home / "agent.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def converged(node: Node, text: str) -> bool:
    """What the files and the services say, without asking the agent."""
    slot = node.directory("it")
    files = ("etc/first.conf", "var/second.conf", "etc/third.conf")
    contents = [path.read_text() if (path := slot / name).exists() else None for name in files]
    return contents == [text] * 3 and node.supervisor.pids().keys() == {("s000", "one"), ("s000", "two")}


def is_done(node: Node) -> bool:
    """Whether the agent says that it converged to what the slice wants now, not to something older."""
    hosts, _ = hosts_of(node.inventory())
    memory = Memory(node.layout.state)
    try:
        known = memory.instances.get("id-it")
        return known is not None and (known.phase, known.applied) == ("converged", hosts["id-it"].digest)
    finally:
        memory.close()


def ansible_processes(node: Node) -> list[str]:
    mark = f"CLACHAN_RUN={node.layout.runs}/".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.name != str(os.getpid()):
            try:
                if mark in (folder / "environ").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue
    return found


def services_started_after(node: Node) -> bool:
    """Each service was started after the files that it is restarted on were written."""
    from clachan.agent.processes import TICKS, process

    slot = node.directory("it")
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    files = {"one": ["etc/first.conf", "etc/third.conf"], "two": ["var/second.conf"]}
    for (_, service), pid in node.supervisor.pids().items():
        found = process(pid)
        assert found
        newest = max((slot / name).stat().st_mtime for name in files[service])
        if boot + found.started / TICKS < newest - 0.05:
            return False
    return True


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_killed_twenty_times_in_the_middle_of_a_role(bare: Node) -> None:
    bare.start_supervisord()
    bare.unpack_things()
    chance = random.Random(4711)
    text = "never"
    for number in range(KILLS):
        text = f"text {number}"
        bare.declare("it", software="acme.things.slow", parameters={"slow_text": text})
        bare.keep_slice()
        agent = start(bare)
        left = set(ansible_processes(bare))  # of the agent before; this one ends them first
        wait_for(lambda left=left: set(ansible_processes(bare)) - left, 60)
        time.sleep(chance.uniform(0, 2.5))
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    agent = start(bare)
    try:
        wait_for(lambda: is_done(bare) and converged(bare, text), 60)
        assert services_started_after(bare), "a restart was lost in a kill"
    finally:
        agent.terminate()
        agent.wait(30)
    before = (bare.supervisor.pids(), sorted(path.name for path in bare.layout.runs.iterdir()))
    agent = start(bare)
    time.sleep(5)
    agent.terminate()
    assert agent.wait(30) == 0
    after = (bare.supervisor.pids(), sorted(path.name for path in bare.layout.runs.iterdir()))
    assert after == before, "nothing was left to do"
    assert ansible_processes(bare) == []
    for run in bare.layout.runs.iterdir():
        assert {path.name for path in run.iterdir()} <= {"run.json", "output.log"}


def test_the_run_of_a_killed_agent_does_not_go_on(bare: Node) -> None:
    bare.start_supervisord()
    bare.unpack_things()
    bare.declare("it", software="acme.things.slow", parameters={"slow_text": "x"})
    bare.keep_slice()
    agent = start(bare)
    wait_for(lambda: ansible_processes(bare), 60)
    agent.kill()
    agent.wait()
    agent = start(bare)
    wait_for(lambda: is_done(bare), 60)
    agent.terminate()
    agent.wait(30)
    assert converged(bare, "x")
    finished = [json.loads(path.read_text()) for path in bare.layout.runs.glob("*/run.json")]
    assert [run["status"] for run in finished].count("successful") == 1


def test_only_one_agent_runs(bare: Node) -> None:
    bare.start_supervisord()
    agent = start(bare)
    wait_for(lambda: "started" in (bare.home / "agent.log").read_text())
    second = start(bare)
    assert second.wait(30) == 1
    agent.terminate()
    assert agent.wait(30) == 0
    text = (bare.home / "agent.log").read_text()
    assert f"clachan agent: agent of {bare.home}: another one runs, expected none" in text
