"""The playbook converge, mostly by pull: from a slice on disk, in the slots of this machine."""

import json
import os
from pathlib import Path

import pytest

from .conftest import Lab
from .payloads import payloads


def test_the_first_run_changes_and_the_second_does_not(lab: Lab) -> None:
    slot = lab.add("home.one", parameters={"hello_message": "hi", "hello_seconds": 5, "hello_secret": "s"})
    first = lab.pull()
    assert first.status == 0, first.all
    assert first.recap() == {"home.one": counts(ok=1, changed=1)}
    assert (slot / "etc/hello.txt").read_text() == "hello from home.one\nmessage: hi end\n"
    assert (slot / "etc/raw").read_bytes() == b"raw \xff\n"
    assert (slot / "etc/raw").stat().st_mode & 0o777 == 0o440
    assert (slot / "var/seed/note").read_text() == "hi"
    assert json.loads((slot / "etc/services.d/web.json").read_text()) == {
        "command": ["/bin/sleep", "5"],
        "environment": {"MESSAGE": "hi"},
        "restart_on": ["etc/hello.txt"],
    }
    assert json.loads((slot / "etc/promises.d/up.json").read_text()) == {"kind": "process", "service": "web"}
    assert json.loads((slot / "etc/published.json").read_text()) == {"message": "hi", "secret": "s", "port": 20000}
    second = lab.pull()
    assert second.status == 0, second.all
    assert second.recap() == {"home.one": counts(ok=1)}


def counts(**given: int) -> dict[str, int]:
    words = ("ok", "changed", "unreachable", "failed", "skipped", "rescued", "ignored")
    return {word: given.get(word, 0) for word in words}


def test_check_mode_changes_nothing_and_diff_hides_secrets(lab: Lab) -> None:
    slot = lab.add(
        "home.one",
        parameters={"hello_message": "token is s3cr3t-value", "hello_secret": "s3cr3t-value"},
        sealed=["hello_secret"],
    )
    checked = lab.pull("--check", "--diff")
    assert checked.recap()["home.one"]["changed"] == 1
    assert list((slot / "etc").iterdir()) == []
    assert "+message: token is <secret> end" in checked.out
    lab.pull("-vvv")
    lab.records["home.one"]["hello_secret"] = "an0ther-value"
    again = lab.pull("--diff", "-vvv")
    assert '"secret": "<secret>"' in again.out
    for done in (checked, again):
        assert "s3cr3t-value" not in done.all.replace("token is s3cr3t-value", "")
    assert "an0ther-value" not in again.all


def test_a_failure_stays_with_its_host(lab: Lab) -> None:
    lab.add("home.one")
    lab.add("home.bad", software="testing.software.failing")
    lab.add("home.none", software="testing.nowhere.none")
    lab.add("home.two")
    done = lab.push()
    assert done.status == 2
    assert {host: words["failed"] for host, words in done.recap().items()} == {
        "home.bad": 1,
        "home.none": 1,
        "home.one": 0,
        "home.two": 0,
    }
    assert "home.bad fails by design" in done.all
    assert "the role 'testing.nowhere.none' was not found" in done.all


def test_an_error_of_a_role_names_what_is_wrong(lab: Lab) -> None:
    lab.add("home.one", parameters={"hello_seconds": {"not": "a number"}})
    done = lab.pull()
    assert done.status == 2
    assert "service web: command is a list of 2, expected a list of 1 to 256 texts" in done.all


def test_a_waiting_instance_is_left_alone_and_an_absent_one_goes(lab: Lab) -> None:
    waiting = lab.add("home.waiting", state="waiting")
    absent = lab.add("home.absent", state="absent", parameters={"hello_message": "bye"})
    bare = lab.add("home.bare", software="testing.software.failing", state="absent")
    done = lab.push()
    assert done.status == 0, done.all
    assert list((waiting / "etc").iterdir()) == list((bare / "etc").iterdir()) == []
    assert (absent / "etc/gone").read_text() == "bye"
    assert not (absent / "etc/hello.txt").exists()


def test_supply_runs_once_on_the_node_and_only_where_there_is_something(lab: Lab) -> None:
    lab.add_node()
    lab.records["here"]["clachan_supply"] = {"software": "testing.software.hello", "digest": "0" * 64}
    first = lab.ansible("clachan.platform.supply")
    assert first.status == 0, first.all
    assert (lab.home / "supplied").is_dir()
    lab.records["here"]["clachan_supply"]["software"] = "testing.software.failing"
    assert lab.ansible("clachan.platform.supply").recap() == {"here": counts(skipped=1)}


@pytest.mark.root
@pytest.mark.parametrize(("software", "user"), [("confined", "nobody"), ("rooted", "root")])
def test_module_tasks_run_as_the_slots_user(root_lab: Lab, software: str, user: str) -> None:
    slot = root_lab.add("home.one", software=f"testing.software.{software}")
    done = root_lab.pull(ANSIBLE_PIPELINING="1")
    assert done.status == 0, done.all
    assert (slot / "etc/user").read_text() == user
    assert (slot / "etc/user").stat().st_uid == 0


@pytest.mark.root
def test_root_writes_var_as_the_slots_user(root_lab: Lab) -> None:
    slot = root_lab.add("home.one")
    assert root_lab.pull().status == 0
    assert {(slot / name).owner() for name in ("etc/hello.txt", "etc/services.d/web.json")} == {"root"}
    assert {(slot / name).owner() for name in ("var/seed", "var/seed/note", "var/spool")} == {"nobody"}
    os.unlink(slot / "var/seed/note")
    os.symlink("/etc/passwd", slot / "var/seed/note")
    done = root_lab.pull()
    assert "file var/seed/note: a link, expected a regular file" in done.all
    assert "nobody" in Path("/etc/passwd").read_text()


def test_tenants_texts_stay_texts(lab: Lab, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    texts = payloads(canary)
    slots = {
        name: lab.add(
            f"home.{name}",
            parameters={"hello_message": text, "hello_secret": text, "hello_map": {text: [text]}, "hello_list": [text]},
            children={name: {"state": "started", "published": {"text": text}}},
        )
        for name, text in texts.items()
    }
    done = lab.pull("--diff", "-v")
    assert done.status == 0, done.all
    for name, text in texts.items():
        slot = slots[name]
        written = json.loads((slot / "etc/hello.json").read_text())
        assert written == {"message": text, "map": {text: [text]}, "list": [text]}
        assert (slot / "var/seed/note").read_bytes() == text.encode()
        assert (slot / "etc/hello.txt").read_bytes() == f"hello from home.{name}\nmessage: {text} end\n".encode()
        assert json.loads((slot / "etc/services.d/web.json").read_text())["environment"] == {"MESSAGE": text}
        published = json.loads((slot / "etc/published.json").read_text())
        assert (published["message"], published["secret"]) == (text, text)
    assert not canary.exists()
