"""The life of instances on a node: supplied, started, changed, failed, stopped, removed."""

import os
import signal
import socket
from pathlib import Path

import pytest

from .conftest import Node

pytestmark = pytest.mark.slow

SECRET = "canary-secret-4711"


def test_an_instance_is_supplied_and_started(node: Node) -> None:
    node.supply()
    node.declare("one", parameters={"hello_message": "hi"})
    node.send()
    node.until(lambda: node.state("one") == "started")
    assert node.states("one") == ["converging", "started"]
    assert [fact.state for fact in node.facts("supply")] == ["present"]
    assert [(fact.purpose, fact.changed, fact.failures) for fact in node.facts("run")] == [
        ("supply", 0, {}),
        ("converge", 1, {}),
    ]
    [started] = [fact for fact in node.facts("instance") if fact.state == "started"]
    assert (started.published, started.revision) == ({"greeting": "hi"}, 1)
    assert [fact.results["runs"].ok for fact in node.facts("promises")] == [True]
    assert node.supervisor.pids().keys() == {("s000", "main")}


def test_several_are_one_run_and_one_change_is_one_run_of_one_host(node: Node) -> None:
    for name in ("one", "two", "three"):
        node.declare(name, parameters={"hello_message": name})
    node.send()
    node.until(lambda: all(node.state(name) == "started" for name in ("one", "two", "three")))
    before = node.supervisor.pids()
    node.send()
    node.work(1.5)
    assert [sorted(fact.hosts) for fact in node.facts("run")] == [["home.one", "home.three", "home.two"]]

    node.declare("two", parameters={"hello_message": "changed"})
    node.send()
    node.until(lambda: node.states("two")[-2:] == ["converging", "started"] and node.runs() == 2)
    node.work(1.5)
    assert node.facts("run")[-1].hosts == ["home.two"]
    assert node.runs() == 2
    after = node.supervisor.pids()
    assert {key for key in before if before[key] != after[key]} == {("s001", "main")}
    assert (node.directory("two") / "etc/hello.conf").read_text().startswith("message = changed\n")


def test_what_an_operator_pushed_takes_effect_without_a_run(node: Node) -> None:
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    before = node.supervisor.pids()
    pushed = node.directory("one") / "etc/hello.conf"
    (pushed.parent / ".new").write_text("message = pushed\n")
    (pushed.parent / ".new").rename(pushed)
    node.until(lambda: node.supervisor.pids() != before and node.supervisor.pids().keys() == before.keys())
    node.work(1.5)
    assert node.runs() == 1
    assert node.state("one") == "started"
    assert not node.facts("outage")


def test_a_revision_that_changes_no_file_restarts_nothing(node: Node) -> None:
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    before = node.supervisor.pids()
    node.declare("one", parameters={"hello_message": "hello"})  # the role's own default
    node.send()
    node.until(lambda: node.runs() == 2 and node.state("one") == "started")
    assert node.facts("run")[-1].changed == 0
    assert node.supervisor.pids() == before


def test_a_failed_role_is_told_redacted_and_tried_again_when_it_changes(node: Node) -> None:
    node.declare("bad", parameters={"hello_fail": "because", "hello_secret": SECRET}, sealed=["hello_secret"])
    node.declare("good")
    node.send()
    node.until(lambda: node.state("bad") == "failed" and node.state("good") == "started")
    [failed] = [fact for fact in node.facts("instance") if fact.state == "failed"]
    assert failed.message == "task 'Fail when told so': told to fail: because <secret>"
    [run] = node.facts("run")
    assert (run.status, run.failures) == ("failed", {"home.bad": failed.message})
    node.work(1.5)
    assert node.runs() == 1, "a failed one is tried again only after its pause"
    known = node.agent.memory.instances["id-bad"]
    assert (known.failures, known.applied) == (1, None)

    node.declare("bad", parameters={"hello_secret": SECRET}, sealed=["hello_secret"])
    node.send()
    node.until(lambda: node.state("bad") == "started")
    assert f"secret = {SECRET}\n" in (node.directory("bad") / "etc/hello.conf").read_text()
    assert files_with(node.layout.node, SECRET) == []


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_failed_role_is_tried_again_by_itself(node: Node) -> None:
    node.declare("bad", parameters={"hello_fail": "because"})
    node.send()
    node.until(lambda: node.state("bad") == "failed")
    known = node.agent.memory.instances["id-bad"]
    node.agent.memory.save(known.model_copy(update={"retry_at": known.retry_at - 5}))
    node.until(lambda: node.runs() == 2)
    assert node.states("bad") == ["converging", "failed"], "the same failure is told once"
    assert node.agent.memory.instances["id-bad"].failures == 2


def test_templates_of_a_tenant_stay_text(node: Node, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = "{{ lookup('pipe', 'touch CANARY') }} $HOME <b> 'x' \"y\" ; # %(x)s".replace("CANARY", str(canary))
    node.declare("one", parameters={"hello_message": text})
    node.send()
    node.until(lambda: node.state("one") == "started")
    assert (node.directory("one") / "etc/hello.conf").read_text().splitlines()[0] == f"message = {text}"
    [started] = [fact for fact in node.facts("instance") if fact.state == "started"]
    assert started.published == {"greeting": text}
    assert not canary.exists()


def test_the_commands_of_a_service_reach_no_supervisor_file(node: Node) -> None:
    words = "%(here)s ; user=root\n[program:evil]\ncommand=/bin/false"
    node.declare("one", parameters={"hello_command": ["/bin/sh", "-c", 'printf "%s" "$1"; exec sleep 99', "x", words]})
    node.send()
    node.until(lambda: node.state("one") == "started")
    assert files_with(node.home / "supervisor", "evil") == []
    node.until(lambda: (node.directory("one") / "log/main.log").read_text() == words)


def test_stopped_then_started_again(node: Node) -> None:
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    node.declare("one", state="stopped")
    node.send()
    node.until(lambda: node.state("one") == "stopped")
    assert node.supervisor.pids() == {}
    assert (node.directory("one") / "etc/hello.conf").exists()
    node.work(1)
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    assert node.supervisor.pids().keys() == {("s000", "main")}


def test_absent_leaves_nothing_and_frees_the_slot(node: Node) -> None:
    node.declare("one", parameters={"hello_command": ["/bin/sh", "-c", "trap '' TERM; sleep 9999 & wait; wait"]})
    node.send()
    node.until(lambda: node.state("one") == "started")
    directory = node.directory("one")
    node.declare("one", state="absent")
    node.send()
    node.until(lambda: node.state("one") == "absent")
    assert list(directory.iterdir()) == []
    assert node.supervisor.pids() == {}
    assert list((node.home / "supervisor/conf.d").iterdir()) == []
    assert node.facts("run")[-1].purpose == "absent"
    runs = node.runs()
    node.work(1.5)
    assert node.runs() == runs

    del node.records["home.one"]
    node.declare("next", parameters={"hello_message": "in the same slot"})
    node.send()
    node.until(lambda: node.state("next") == "started")
    assert node.directory("next") == directory
    assert set(node.agent.memory.instances) == {"id-next"}


def test_an_instance_that_never_ran_is_removed_too(node: Node) -> None:
    node.declare("one", state="absent")
    node.send()
    node.until(lambda: node.state("one") == "absent")


def test_two_instances_never_share_a_slot(node: Node) -> None:
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    del node.records["home.one"]
    node.declare("two")
    node.send()
    node.until(lambda: node.state("two") == "failed")
    [failed] = [fact for fact in node.facts("instance") if fact.state == "failed"]
    assert failed.message == "slot s000: still holds home.one (id-one), expected it to be free"
    assert node.supervisor.pids().keys() == {("s000", "main")}, "what is missing from the slice is left alone"


def test_a_waiting_instance_is_left_alone(node: Node) -> None:
    node.declare("one", state="waiting")
    node.send()
    node.work(1.5)
    assert node.facts("instance") == []
    assert node.runs() == 0


@pytest.fixture
def impatient(bare: Node) -> Node:
    """A node on which promises may fail for half a second."""
    bare.config.patience_seconds = 0.5
    bare.layout.config.write_bytes(bare.config.json_bytes())
    bare.start_supervisord()
    bare.open_agent()
    return bare


def test_children_are_declared_and_their_change_reconverges_the_parent(impatient: Node) -> None:
    node = impatient
    node.declare("one", parameters={"hello_child": "of one"})
    node.send()
    node.until(lambda: bool(node.facts("promises")))
    told = node.facts("promises")[-1].results
    assert (told["members"].ok, told["members"].message) == (False, "children: child requested")
    assert node.state("one") == "converging", "children take the time that they take"
    [requests] = node.facts("requests")
    assert requests.children["child"].parameters == {"hello_message": "of one"}
    child = {"child": {"state": "started", "published": {"greeting": "of one"}}}
    node.declare("one", parameters={"hello_child": "of one"}, children=child)
    node.send()
    node.until(lambda: node.runs() == 2 and node.state("one") == "started")
    assert '"greeting": "of one"' in (node.directory("one") / "etc/hello.conf").read_text()
    assert len(node.facts("requests")) == 1

    node.declare("one")
    node.send()
    node.until(lambda: len(node.facts("requests")) == 2)
    assert node.facts("requests")[-1].children == {}


def test_a_parent_is_not_whole_while_a_child_goes(impatient: Node) -> None:
    node, child = impatient, {"child": {"state": "started", "published": {}}}
    node.declare("one", parameters={"hello_child": "of one"}, children=child)
    node.send()
    node.until(lambda: node.state("one") == "started")
    more = child | {"former": {"state": "started", "published": {}}}
    node.declare("one", parameters={"hello_child": "of one"}, children=more)
    node.send()
    node.until(lambda: node.facts("promises")[-1].results["members"].message == "children: former going")
    assert node.state("one") == "converging"
    node.declare("one", parameters={"hello_child": "of one"}, children=child)
    node.send()
    node.until(lambda: node.state("one") == "started")


def start_site(node: Node) -> None:
    """An instance with a promise of each kind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node.declare("site", software="acme.things.web", parameters={"web_port": port})
    node.send()
    node.until(lambda: node.state("site") == "started")


def test_promises_of_every_kind_pass(node: Node) -> None:
    start_site(node)
    [fact] = node.facts("promises")
    assert {name for name, result in fact.results.items() if result.ok} == {
        *("process", "port", "page", "command", "file", "disk")
    }


def test_a_message_that_changes_is_told_after_a_while(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    start_site(node)
    said = node.directory("site") / "var/said"
    said.write_text("half of it\n")
    node.work(2.5)
    assert len(node.facts("promises")) == 1
    monkeypatch.setattr("clachan.agent.progress.MESSAGE_SECONDS", 0.5)
    node.until(lambda: node.facts("promises")[-1].results["command"].message.endswith("half of it"))
    assert node.states("site") == ["converging", "started"]


def test_a_killed_service_is_an_outage_once_and_heals(node: Node) -> None:
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    node.work(1.2)
    [pid] = node.supervisor.pids().values()
    os.kill(pid, signal.SIGKILL)
    node.until(lambda: len(node.facts("outage")) == 2, seconds=15)
    began, ended = node.facts("outage")
    assert (began.phase, ended.phase) == ("began", "ended")
    assert began.began == ended.began
    assert began.message in {
        "promise runs: service main: ended and was started again",
        "promise runs: service main: no process, expected one",
    }
    assert node.states("one") == ["converging", "started", "failing", "started"]
    assert [fact.results["runs"].ok for fact in node.facts("promises")] == [True, False, True]
    node.work(2)
    assert len(node.facts("outage")) == 2
    assert node.runs() == 1, "the supervisor healed it, no run was needed"


def test_a_promise_that_goes_on_failing_brings_a_run(node: Node) -> None:
    start_site(node)
    (node.directory("site") / "var/www/index.html").unlink()
    node.until(lambda: [fact.phase for fact in node.facts("outage")] == ["began", "ended"], seconds=20)
    assert node.runs() == 2
    assert node.facts("outage")[0].promises[0] in {"page", "file"}
    assert node.states("site") == ["converging", "started", "failing", "started"]


def test_promises_that_never_pass_fail_and_the_run_is_repeated(impatient: Node) -> None:
    node = impatient
    node.declare("one", parameters={"hello_command": ["/bin/false"]})
    node.send()
    node.until(lambda: node.state("one") == "failed")
    [failed] = [fact for fact in node.facts("instance") if fact.state == "failed"]
    assert failed.message.startswith("promise runs: service main: ")
    node.until(lambda: node.runs() == 2)
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")


def test_a_restarted_agent_watches_again_without_a_run(node: Node) -> None:
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    before = node.supervisor.pids()
    node.close_agent()
    node.open_agent()
    node.send()
    node.until(lambda: "id-one" in node.agent.progress.watch.watched)
    node.work(1.2)
    assert (node.runs(), node.supervisor.pids()) == (1, before)
    assert node.states("one") == ["converging", "started"]
    os.kill(before["s000", "main"], signal.SIGKILL)
    node.until(lambda: len(node.facts("outage")) == 2, seconds=15)


def test_a_restarted_agent_finishes_a_restart(node: Node) -> None:
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    before = node.supervisor.pids()
    known = node.agent.memory.instances["id-one"]
    node.agent.memory.save(known.model_copy(update={"services": {"main": "of an older file"}}))
    node.close_agent()
    node.open_agent()
    node.send()
    node.until(lambda: node.supervisor.pids().get(("s000", "main")) not in {None, before["s000", "main"]})
    node.until(lambda: node.agent.memory.instances["id-one"].phase == "converged")
    assert node.facts("outage") == []
    assert node.runs() == 1


def test_one_that_waited_and_came_back_is_told_again(node: Node) -> None:
    node.declare("one")
    node.send()
    node.until(lambda: node.state("one") == "started")
    record = node.records["home.one"]
    node.records["home.one"] = {"clachan_instance": {**record["clachan_instance"], "state": "waiting"}}
    node.send()
    node.work(0.7)
    assert node.supervisor.pids().keys() == {("s000", "main")}
    node.records["home.one"] = record
    node.send()
    node.work(0.7)
    assert node.states("one") == ["converging", "started", "started"]
    assert node.runs() == 1


def test_software_that_nothing_needs_is_removed(node: Node) -> None:
    node.supply()
    node.send()
    node.until(lambda: node.facts("supply"))
    assert [path.name for path in node.layout.software.iterdir()] == [node.things.digest]
    node.declare("one")
    node.supply(state="absent")
    node.send()
    node.until(lambda: len(node.facts("supply")) == 2)
    assert node.facts("supply")[-1].message == (
        "software acme.things.hello: still used by home.one, expected no instance of it"
    )
    del node.records["home.one"]
    known = node.agent.memory.supplies["supply-acme.things.hello"]
    node.agent.memory.save_supply(known.model_copy(update={"retry_at": 0}))
    node.send()
    node.until(lambda: [fact.state for fact in node.facts("supply")] == ["present", "failed", "absent"])
    node.until(lambda: not list(node.layout.software.iterdir()))
