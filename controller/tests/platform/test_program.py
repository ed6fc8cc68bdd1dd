"""The module `program` under supervisord, and what `clachan down` and `reset` do with what it started."""

import os
import pathlib
import signal
import sys
import time

import pytest
from clachan.cli import platform_processes, platform_reset, platform_stop
from clachan.cli.errors import CommandError

from .conftest import Module

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and pathlib.Path("/run/systemd/system").is_dir(), reason="here the programs are systemd units"
)


@pytest.fixture
def keep(module: Module, home: pathlib.Path, folder: pathlib.Path) -> Module:
    """`keep("controller", restart_on=[...])`: a program that sleeps."""
    module("home", path=home, source="x")
    (folder / "env").symlink_to(pathlib.Path(sys.prefix))

    def run(name: str, seconds: int = 1000, **arguments: object) -> dict:
        script = home / "sleep.py"
        script.write_text("import sys, time\ntime.sleep(float(sys.argv[1]))\n")
        command = ["python", script, str(seconds)]
        return module("program", name=name, home=home, environment_path=folder / "env", arguments=command, **arguments)

    return run


def pid_of(home: pathlib.Path, name: str) -> int | None:
    return {program.name: program.pid for program in platform_processes.programs(home)}.get(name)


@pytest.mark.slow
def test_a_program_is_restarted_exactly_when_something_changed(
    keep: Module, home: pathlib.Path, folder: pathlib.Path
) -> None:
    settings = folder / "settings"
    settings.write_text("one")
    assert keep("agent", restart_on=[settings], check=True)["action"] == "started"
    assert not pid_of(home, "agent")
    assert keep("agent", restart_on=[settings])["action"] == "started"
    pid = pid_of(home, "agent")
    assert keep("agent", restart_on=[settings])["action"] == "none"
    assert pid_of(home, "agent") == pid
    settings.write_text("two")
    assert keep("agent", restart_on=[settings], check=True)["action"] == "restarted"
    assert keep("agent", restart_on=[settings])["action"] == "restarted"
    assert pid_of(home, "agent") not in {pid, None}
    # a kill between the restart and its record: made good
    (home / "supervisor" / "agent.applied").unlink()
    assert keep("agent", restart_on=[settings])["action"] == "restarted"
    changed = keep("agent", seconds=2000, restart_on=[settings])
    assert changed["action"] == "restarted"
    assert "sleep.py 1000" in changed["diff"]["before"]
    assert "sleep.py 2000" in changed["diff"]["after"]


@pytest.mark.slow
def test_what_a_program_needs_is_made_ready_before_its_start(
    keep: Module, home: pathlib.Path, folder: pathlib.Path
) -> None:
    made = folder / "made"
    wanted = {"prepare": ["python", "-c", f"open('{made}', 'a').write('x')"], "restart_on": [made]}
    assert keep("controller", check=True, **wanted)["action"] == "started"
    assert not made.exists()
    assert keep("controller", **wanted)["action"] == "started"
    assert keep("controller", **wanted)["action"] == "none"
    assert made.read_text() == "x"
    made.unlink()
    assert keep("controller", **wanted)["action"] == "restarted"
    assert made.read_text() == "x"
    bad = keep("controller", seconds=2, prepare=["python", "-c", "import sys; sys.exit('no moon')"])
    assert bad["msg"].startswith("program controller: ")
    assert "exit status 1" in bad["msg"]
    assert bad["msg"].endswith("no moon\n")


@pytest.mark.slow
def test_programs_live_beside_each_other_and_come_back(keep: Module, home: pathlib.Path) -> None:
    keep("controller")
    keep("agent")
    controller, agent = pid_of(home, "controller"), pid_of(home, "agent")
    assert controller
    assert agent
    os.kill(agent, signal.SIGKILL)
    limit = time.monotonic() + 20
    while pid_of(home, "agent") in {agent, None} and time.monotonic() < limit:
        time.sleep(0.1)
    assert pid_of(home, "agent") not in {agent, None}
    assert pid_of(home, "controller") == controller


@pytest.mark.slow
def test_down_and_reset_leave_nothing(keep: Module, home: pathlib.Path) -> None:
    keep("controller")
    keep("agent")
    assert platform_stop.stop(home) == 3
    assert platform_processes.processes(home) == []
    assert platform_stop.stop(home) == 0
    assert (home / "settings.json").exists()
    keep("agent")
    assert platform_reset.check(home)
    platform_reset.remove(home)
    assert not home.exists()
    assert not platform_reset.check(home)


@pytest.mark.slow
def test_what_a_killed_supervisord_left_behind_is_ended(keep: Module, home: pathlib.Path) -> None:
    keep("agent")
    orphan = pid_of(home, "agent")
    os.kill(pid_of(home, "supervisord") or 0, signal.SIGKILL)
    assert platform_processes.processes(home) == [orphan]
    assert platform_stop.stop(home) == 1
    assert platform_processes.processes(home) == []


@pytest.mark.heavy
def test_a_program_that_does_not_start_is_shown_with_its_log(module: Module, keep: Module, home: pathlib.Path) -> None:
    result = module(
        "program",
        name="agent",
        home=home,
        environment_path=home.parent / "env",
        arguments=["python", "-c", "import sys; sys.exit('no such moon')"],
    )
    assert result["msg"].startswith("program agent: is BACKOFF after 30 s, expected it to run; its log ends with:\n")
    assert "no such moon" in result["msg"]


def test_reset_refuses_what_is_no_home(folder: pathlib.Path) -> None:
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(CommandError) as refused:
        platform_reset.check(folder)
    assert str(refused.value) == (
        f"home {folder}: no settings.json of Clachan in it, expected a Clachan home; nothing was removed"
    )
    (folder / "link").symlink_to("/etc")
    with pytest.raises(CommandError, match="not a directory, expected a Clachan home"):
        platform_reset.check(folder / "link")
