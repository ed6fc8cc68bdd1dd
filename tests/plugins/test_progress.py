"""What the callback `clachan.platform.progress` shows, in a pipe and on a terminal."""

import os
import pty
import re
import subprocess

from .conftest import BIN, Lab

PROGRESS = "clachan.platform.progress"
RECAP = (
    "home.one                   : ok=3    changed=1    unreachable=0    failed=0    skipped=2    rescued=0    ignored=0"
)


def test_one_line_per_task_and_the_usual_recap(lab: Lab) -> None:
    lab.add("home.one")
    done = lab.push(ANSIBLE_STDOUT_CALLBACK=PROGRESS)
    assert done.status == 0, done.all
    lines = done.out.splitlines()
    assert lines[:2] == ["", "Converge instances by push"]
    assert re.fullmatch(r"  Lock the slot +\d+\.\d s  ok", lines[2])
    assert lines[3] == "  testing.software.hello"
    assert re.fullmatch(r"    Describe the slot +\d+\.\d s  changed", lines[4])
    assert lines[5:] == ["", RECAP]
    assert "\033" not in done.out


def test_errors_are_shown_in_full(lab: Lab) -> None:
    lab.add("home.one")
    lab.add("home.bad", software="testing.software.failing")
    lab.add("home.bare", software="testing.nowhere.none")
    done = lab.push(ANSIBLE_STDOUT_CALLBACK=PROGRESS)
    assert done.status == 2
    assert "    home.bad:\n      home.bad fails by design\n" in done.out
    assert "    home.bare:\n      the role 'testing.nowhere.none' was not found" in done.out
    assert re.search(r"    Fail +\d+\.\d s  failed\n", done.out)
    assert re.search(r"home\.bad +: ok=\d +changed=0 +unreachable=0 +failed=1 ", done.out)


def test_hosts_are_counted_and_skipped_tasks_not_shown(lab: Lab) -> None:
    for name in ("one", "two", "three"):
        lab.add(f"home.{name}")
    done = lab.push(ANSIBLE_STDOUT_CALLBACK=PROGRESS)
    assert "    Describe the slot (3 changed) " in done.out
    assert "Unlock the slot" not in done.out
    assert "Reveal secret parameters" not in done.out


def test_on_a_terminal_the_running_task_stands_there(lab: Lab) -> None:
    lab.add("home.one")
    lab.write()
    reader, terminal = pty.openpty()
    command = [str(BIN / "ansible-playbook"), "-i", str(lab.inventory), "clachan.platform.converge"]
    environment = lab.environment | {"ANSIBLE_STDOUT_CALLBACK": PROGRESS, "TERM": "xterm"}
    with subprocess.Popen(
        command, cwd=lab.directory, env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    ) as running:
        os.close(terminal)
        shown = b""
        while part := _read(reader):
            shown += part
    os.close(reader)
    assert running.returncode == 0, shown
    text = shown.decode()
    assert "    Describe the slot ...\r\033[2K    Describe the slot " in text
    assert RECAP in text


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 4096)
    except OSError:  # what Linux says when the last process has closed the terminal
        return b""
