"""The word of a VM's build, and the actions that work on a node without a module's process."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Lab

Module = Callable[..., dict[str, Any]]
REFUSAL = "the machine runs another one"


def arguments(folder: Path, image: str, **more: Any) -> dict[str, Any]:
    return {"disk": str(folder / f"system-{image}.qcow2"), "note": str(folder / "build"), **more}


def test_a_build_has_one_word_as_long_as_its_disk(run_module: Module, tmp_path: Path) -> None:
    expected = run_module("vm_build", arguments(tmp_path, "a"), check=True)
    assert (expected["changed"], expected["build"], expected["former"]) == (True, "", [])
    assert not (tmp_path / "build").exists()
    first = run_module("vm_build", arguments(tmp_path, "a"))
    assert (first["changed"], len(first["build"])) == (True, 16)
    assert (tmp_path / "build").stat().st_mode & 0o777 == 0o600
    again = run_module("vm_build", arguments(tmp_path, "a"))
    assert again["build"] != first["build"], "the disk was never made: a run that was killed"
    (tmp_path / "system-a.qcow2").touch()
    same = run_module("vm_build", arguments(tmp_path, "a"))
    assert (same["changed"], same["build"], same["former"]) == (False, again["build"], [])


def test_another_disk_is_another_build_unless_it_is_refused(run_module: Module, tmp_path: Path) -> None:
    word = run_module("vm_build", arguments(tmp_path, "a"))["build"]
    (tmp_path / "system-a.qcow2").touch()
    refused = run_module("vm_build", arguments(tmp_path, "b", refusal=REFUSAL))
    assert refused["msg"] == REFUSAL
    assert (tmp_path / "build").read_text() == word
    other = run_module("vm_build", arguments(tmp_path, "b"))
    assert other["build"] != word
    assert other["former"] == [str(tmp_path / "system-a.qcow2")]


@pytest.mark.root
def test_on_the_node_itself_no_module_is_started(lab: Lab) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    done = play(lab, arguments(lab.directory, "a"))
    assert done["failed"] is False
    assert (done["changed"], len(done["build"])) == (True, 16)
    assert "diff" not in done
    refused = play(lab, arguments(lab.directory, "b", refusal=REFUSAL))
    assert len(refused["build"]) == 16
    (lab.directory / "system-a.qcow2").touch()
    assert play(lab, arguments(lab.directory, "b", refusal=REFUSAL))["msg"] == REFUSAL
    expected = play(lab, arguments(lab.directory, "b"), "--check", "--diff")
    assert expected["changed"] is True
    assert expected["diff"]["before"] == expected["diff"]["after"] == f"{refused['build']}\n"


@pytest.mark.root
@pytest.mark.parametrize(
    "more", [{"environment": {"A": "b"}}, {"become": True, "become_method": "su", "become_user": "nobody"}]
)
def test_elsewhere_the_module_is_run(lab: Lab, more: dict[str, Any]) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    done = play(lab, arguments(lab.directory, "a"), **more)
    assert done["failed"] is True
    assert "build" not in done
    wrong = play(lab, arguments(lab.directory, "a", odd=1))
    assert wrong["failed"] is True
    assert "/nonexistent/python" in json.dumps(wrong)


def play(lab: Lab, options: dict[str, Any], *words: str, **task: Any) -> dict[str, Any]:
    """The result of one task on this machine, where no module could run."""
    show = {"ansible.builtin.copy": {"dest": str(lab.directory / "done.json"), "content": "{{ done }}"}}
    here = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    tasks = [
        {"clachan.platform.vm_build": options, "register": "done", "ignore_errors": True} | task,
        {"check_mode": False, "vars": here} | show,
    ]
    host = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    book = lab.directory / "book.json"
    book.write_text(json.dumps([host | {"vars": {"ansible_python_interpreter": "/nonexistent/python"}}]))
    done = lab.ansible(str(book), *words)
    assert done.status == 0, done.all
    found: dict[str, Any] = json.loads((lab.directory / "done.json").read_text())
    return found
