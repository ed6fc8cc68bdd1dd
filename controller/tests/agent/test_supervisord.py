"""Services under a real supervisord."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from clachan.agent import slots, supervisord
from clachan.agent.supervisor import SlotServices, SupervisorError, Unit

from .conftest import Node, wait_for

SLEEP = {"command": ["/bin/sleep", "9999"]}


def fill(node: Node, index: int, **services: dict) -> Path:
    """A slot with these service documents."""
    directory = Path(node.slot(index)["directory"])
    slots.prepare(directory, node.config.user_of(index), root=False)
    folder = directory / "etc/services.d"
    folder.mkdir(exist_ok=True)
    for name, document in services.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return directory


def wanted(node: Node, index: int, restart: tuple[str, ...] = (), **seconds: int) -> SlotServices:
    units = {name: Unit(stop_seconds, name in restart) for name, stop_seconds in seconds.items()}
    return SlotServices(f"s{index:03d}", Path(node.slot(index)["directory"]), None, units)


def test_only_what_changed_is_started_and_stopped(node: Node) -> None:
    fill(node, 0, a=SLEEP, b=SLEEP)
    fill(node, 1, a=SLEEP)
    supervisor = node.supervisor
    supervisor.apply([wanted(node, 0, a=1), wanted(node, 1, a=1)])
    first = supervisor.pids()
    assert first.keys() == {("s000", "a"), ("s001", "a")}

    supervisor.apply([wanted(node, 0, a=1, b=1)])
    second = supervisor.pids()
    assert second.keys() == {("s000", "a"), ("s000", "b"), ("s001", "a")}
    assert {key: second[key] for key in first} == first

    supervisor.apply([wanted(node, 0, restart=("b",), a=1, b=1)])
    third = supervisor.pids()
    assert {key for key in second if second[key] != third[key]} == {("s000", "b")}

    supervisor.apply([wanted(node, 0, b=1)])
    assert supervisor.pids() == {key: pid for key, pid in third.items() if key != ("s000", "a")}

    supervisor.apply([wanted(node, 0), wanted(node, 1)])
    assert supervisor.pids() == {}
    assert list((node.home / "supervisor/conf.d").iterdir()) == []


def test_an_unchanged_apply_touches_nothing(node: Node) -> None:
    fill(node, 0, a=SLEEP)
    node.supervisor.apply([wanted(node, 0, a=1)])
    before = node.supervisor.pids()
    node.supervisor.apply([wanted(node, 0, a=1)])
    assert node.supervisor.pids() == before


def test_a_file_that_was_written_but_not_read(node: Node) -> None:
    """The agent was killed in between."""
    fill(node, 0, a=SLEEP)
    supervisor = node.supervisor
    supervisor._write(wanted(node, 0, a=1))
    supervisor.apply([wanted(node, 0, a=1)])
    assert supervisor.pids().keys() == {("s000", "a")}
    (node.home / "supervisor/conf.d/slot-s000.conf").unlink()
    supervisor.apply([wanted(node, 0)])
    assert supervisor.pids() == {}


def test_what_was_stopped_by_hand_is_started(node: Node) -> None:
    fill(node, 0, a=SLEEP)
    supervisor = node.supervisor
    supervisor.apply([wanted(node, 0, a=1)])
    supervisor._stop(["slot-s000_a"])
    assert supervisor.pids() == {}
    supervisor.apply([wanted(node, 0, a=1)])
    assert supervisor.pids().keys() == {("s000", "a")}


def test_one_that_ignores_the_signal_is_killed_with_its_children(node: Node) -> None:
    script = "trap '' TERM; sleep 9999 & echo $! > child; while :; do sleep 0.1; done"
    directory = fill(node, 0, a={"command": ["/bin/sh", "-c", script]})
    supervisor = node.supervisor
    supervisor.apply([wanted(node, 0, a=1)])
    wait_for(lambda: (directory / "var/child").exists() and (directory / "var/child").read_text())
    child = int((directory / "var/child").read_text())
    supervisor.apply([wanted(node, 0)])
    wait_for(lambda: not Path(f"/proc/{child}/exe").exists())


def test_one_that_ends_is_started_again(node: Node) -> None:
    fill(node, 0, a=SLEEP)
    supervisor = node.supervisor
    supervisor.apply([wanted(node, 0, a=1)])
    before = supervisor.pids()["s000", "a"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: supervisor.pids().get(("s000", "a"), before) != before)


def test_fifty_are_up_at_once(node: Node) -> None:
    import time

    for index in range(50):
        fill(node, index, a=SLEEP)
    began = time.monotonic()
    node.supervisor.apply([wanted(node, index, a=1) for index in range(50)])
    assert len(node.supervisor.pids()) == 50
    assert time.monotonic() - began < 10, "about 1 s on an idle machine"


def test_the_service_has_a_clean_environment(node: Node) -> None:
    script = "env > env; ulimit -n > files; umask > umask; pwd > pwd; exec sleep 9999"
    service = {"command": ["/bin/sh", "-c", script], "environment": {"MINE": "a b"}, "open_files": 128}
    directory = fill(node, 0, a=service)
    node.supervisor.apply([wanted(node, 0, a=1)])
    wait_for(lambda: (directory / "var/pwd").exists() and (directory / "var/pwd").read_text())
    found = dict(line.split("=", 1) for line in (directory / "var/env").read_text().splitlines())
    for key in ("_", "OLDPWD", "SHLVL"):
        found.pop(key, None)  # the shell's own
    assert found == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(directory / "var"),
        "CLACHAN_SLOT": str(directory),
        "MINE": "a b",
        "PWD": str(directory / "var"),
    }
    assert (directory / "var/files").read_text() == "128\n"
    assert (directory / "var/umask").read_text() == "0027\n"
    assert (directory / "var/pwd").read_text() == f"{directory}/var\n"


def test_a_service_that_cannot_start_says_why_in_its_log(node: Node) -> None:
    directory = fill(node, 0, a={"command": ["/no/such/program"]}, b={"command": ["/bin/true"], "directory": "nowhere"})
    node.supervisor.apply([wanted(node, 0, a=1, b=1)])
    for name, reason in (("a", "No such file or directory"), ("b", "No such file or directory: '")):
        log = directory / f"log/{name}.log"
        wait_for(lambda log=log: log.exists() and log.read_text())
        assert log.read_text().startswith(f"service {name}: [Errno 2] {reason}")


def test_names_and_paths_that_could_steer_supervisord(node: Node) -> None:
    with pytest.raises(SupervisorError, match=r"service 'x\]' of s000, expected a contract name"):
        node.supervisor.apply([wanted(node, 0, **{"x]": 1})])
    evil = SlotServices("s000", Path("/tmp/a ;b"), None, {"a": Unit(1, False)})
    with pytest.raises(SupervisorError, match="expected a path without ' ;' and control characters"):
        node.supervisor.apply([evil])


def test_without_supervisord(bare: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = r"supervisord .*: .*No such file or directory, expected it to answer"
    with pytest.raises(SupervisorError, match=problem):
        bare.supervisor.pids()
    monkeypatch.setattr(supervisord, "UP_SECONDS", 0.2)
    with pytest.raises(SupervisorError, match=problem):
        bare.supervisor.apply([])


def test_one_that_comes_up_later_is_waited_for(bare: Node) -> None:
    """At a boot the agent may be the first of the two."""
    fill(bare, 0, a=SLEEP)
    with ThreadPoolExecutor(1) as other:
        applied = other.submit(bare.supervisor.apply, [wanted(bare, 0, a=1)])
        assert not wait([applied], 0.5).done
        bare.start_supervisord()
        applied.result(20)
    assert bare.supervisor.pids().keys() == {("s000", "a")}
