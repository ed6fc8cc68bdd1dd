"""A push to another machine: the same tasks, sent as modules. Only the network is missing: `ssh` runs what it gets."""

import fcntl
import json
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, Lab
from .payloads import payloads

pytestmark = pytest.mark.slow

SSH_WITHOUT_NETWORK = """#!/bin/sh
for last; do :; done
case "$last" in */bin/sh*|*python*|*echo*) exec /bin/sh -c "$last" ;; esac
exit 255
"""


@pytest.fixture
def far(lab: Lab) -> Lab:
    """A lab whose node is not this machine."""
    program = lab.directory / "ssh-without-network"
    program.write_text(SSH_WITHOUT_NETWORK)
    program.chmod(0o755)
    lab.add_node("here", identifier="another-machine", reach="far.example.org")
    (lab.directory / "group_vars").mkdir()
    (lab.directory / "group_vars" / "instances.yml").write_text(
        json.dumps({"ansible_ssh_executable": str(program), "ansible_python_interpreter": "/usr/bin/python3"})
    )
    lab.environment |= {"ANSIBLE_PIPELINING": "1"}
    return lab


def test_a_push_over_ssh_is_the_same(far: Lab, tmp_path: Path) -> None:
    texts = payloads(tmp_path / "canary")
    slots = {
        name: far.add(
            f"home.{name}", parameters={"hello_message": text, "hello_secret": "c4nary"}, sealed=["hello_secret"]
        )
        for name, text in texts.items()
        if name in {"template", "variable", "newline"}
    }
    first = far.push("--diff", "-v")
    assert first.status == 0, first.all
    assert {words["changed"] for words in first.recap().values()} == {1}
    for name, slot in slots.items():
        assert json.loads((slot / "etc/hello.json").read_text())["message"] == texts[name]
        assert (slot / "var/seed/note").read_bytes() == texts[name].encode()
        assert json.loads((slot / "etc/published.json").read_text())["secret"] == "c4nary"
    second = far.push("-vvv")
    assert {words["changed"] for words in second.recap().values()} == {0}
    assert "c4nary" not in first.all + second.all
    assert not (tmp_path / "canary").exists()


def test_the_lock_is_released_also_after_a_failure(far: Lab) -> None:
    far.add("home.bad", software="testing.software.failing")
    done = far.push()
    assert done.status == 2
    assert "home.bad fails by design" in done.all
    assert "TASK [Unlock the slot]" in done.out
    with (far.directory / "slots/s000.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_node_that_nobody_said_how_to_reach_is_not_reached(far: Lab) -> None:
    far.records["here"]["clachan_node"]["addresses"]["reach"] = None
    far.add("home.one")
    shown = far.ansible("--host", "home.one", program="ansible-inventory")
    assert json.loads(shown.out)["ansible_host"] == "here-has-no-reach-assigned.invalid"


@pytest.mark.parametrize("reach", ["-oProxyCommand=touch canary", "a b", "x;y", "$(touch canary)", "{{ 1 }}"])
def test_an_address_that_is_no_address_leaves_the_host_out(far: Lab, reach: str) -> None:
    far.records["here"]["clachan_node"]["addresses"]["reach"] = reach
    far.add("home.one")
    shown = far.ansible("--list", program="ansible-inventory")
    assert "inventory leaves out a host: node here: reach" in shown.err.replace("\n", " ")
    assert "home.one" not in json.loads(shown.out)["_meta"]["hostvars"]


def test_the_home_of_a_lab_is_saved_and_brought_back(far: Lab) -> None:
    defaults = yaml.safe_load((ROOT / "roles/lab/defaults/main.yml").read_text())
    given = defaults | {"lab_token": "token-of-the-lab_0123456789", "lab_backups": ["first"]}
    slot = far.add("home.lab", "clachan.platform.lab", parameters=given, sealed=["lab_token"])
    work = slot / "var/home" / "work.txt"
    work.parent.mkdir()
    work.write_text("before")
    done = far.push()
    assert (done.status, done.recap()["home.lab"]["changed"]) == (0, 2), done.all
    assert list(json.loads(json.loads((slot / "etc/published.json").read_text())["backups"])) == ["first"]
    work.write_text("after")
    far.records["home.lab"]["lab_restore"] = {"backup": "first"}
    done = far.push()
    assert (done.status, work.read_text()) == (0, "before"), done.all
    assert far.push().recap()["home.lab"]["changed"] == 0
