"""node, supply: the machines, and what is made present on them."""

import threading
import time

import pytest
from clachan.client import Client
from clachan.contract.api import Answer, Finding, NodeView


def plain(view):
    return view.model_dump(mode="json", by_alias=True)


def test_a_join_token_is_shown_once(cli, live) -> None:
    made = cli("node", "token", "attic", "--lasts", "10m", "--label", "zone=up", "--json")
    assert made.status == 0
    assert made.json["node"] == "attic"
    assert len(made.json["token"].partition(".")[0]) == 32
    listed = {each["id"]: each for each in cli("node", "tokens", "--json").json}
    assert listed[made.json["id"]] == made.json | {"token": None}
    text = cli("node", "token", "attic")
    assert text.out.endswith(f"\nOn that machine: clachan node join {live.url} --name attic\n")
    assert cli("node", "token-delete", made.json["id"]).status == 0
    assert made.json["id"] not in cli("node", "tokens").out


def test_list_and_show_are_the_apis_own_objects(cli, machine, live) -> None:
    shown = cli("node", "show", "here", "--json").json
    assert shown == live.ok("GET", "/nodes/here")
    assert NodeView.model_validate(shown).slots == 100
    assert [each["name"] for each in cli("node", "list", "--json").json] == [
        each["name"] for each in live.ok("GET", "/nodes")["items"]
    ]
    rows = cli("node", "list").out.splitlines()
    assert rows[0].split()[:3] == ["NAME", "STATE", "REACHED"]
    assert any(row.split()[:3] == ["here", "active", "online"] for row in rows)
    assert "isolation    a unix user for each slot\n" in cli("node", "show", "here").out


def answering(machine, *findings: Finding, after: float = 0) -> threading.Thread:
    """The agent's part: answers the next question."""

    def answer() -> None:
        with Client(machine.url, ca_file=machine.ca_file, cert=machine.cert) as node:
            (question,) = node.questions(wait=20)
            time.sleep(after)
            node.answer(question.id, Answer(findings=list(findings)))

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


KEY = Finding(kind="agent", name="key", ok=True, found="readable by its owner only")
TAP = Finding(kind="tap", name="cv7", ok=False, found="a tap\x1b[2J", expected="none: no member is at it")


def test_doctor_says_what_is_wrong_and_ends_with_1(cli, machine) -> None:
    thread = answering(machine, KEY, TAP)
    ran = cli("node", "doctor", "here")
    thread.join()
    assert (ran.status, ran.err) == (1, "")
    assert [" ".join(line.split()) for line in ran.out.splitlines()] == [
        "KIND NAME RESULT FOUND EXPECTED",
        "agent key ok readable by its owner only -",
        "tap cv7 wrong a tap\\x1b[2J none: no member is at it",
    ]
    thread = answering(machine, KEY, TAP)
    ran = cli("node", "doctor", "here", "--json")
    thread.join()
    assert (ran.status, ran.json) == (1, {"findings": [plain(KEY), plain(TAP)]})


def test_doctor_says_that_it_waits_and_ends_with_0_when_all_is_well(cli, machine) -> None:
    thread = answering(machine, KEY, after=3)
    ran = cli("node", "doctor", "here")
    thread.join()
    assert (ran.status, ran.err) == (0, "[   0 s] node here looks at what is on it\n")


def test_doctor_of_a_node_that_does_not_answer(cli, machine) -> None:
    ran = cli("node", "doctor", "here", "--json")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.endswith("clachan: node here: no answer within 2 s, expected its agent to run\n")
    assert cli("node", "doctor", "nowhere").err == "clachan: node nowhere: unknown, expected one that joined\n"


def test_an_unknown_node_is_one_line(cli) -> None:
    ran = cli("node", "show", "nowhere")
    assert (ran.status, ran.out, ran.err) == (1, "", "clachan: node nowhere: unknown, expected one that joined\n")


def test_labels_drain_reach_and_revoke(cli, live) -> None:
    node = live.join("cellar", slots=2)
    assert cli("node", "label", "cellar", "zone=down", "disk=big", "--json").json["labels"] == {
        "zone": "down",
        "disk": "big",
    }
    changed = cli("node", "label", "cellar", "zone=", "disk=huge")
    assert "labels  disk=huge\n" in changed.out
    assert cli("node", "drain", "cellar", "--json").json["state"] == "drained"
    assert cli("node", "activate", "cellar", "--json").json["state"] == "active"
    assert cli("node", "reach", "cellar", "10.0.0.7", "--json").json["addresses"]["reach"] == "10.0.0.7"
    changed = cli("node", "links", "cellar", "2001:db8::7", "192.0.2.7")
    assert "links   192.0.2.7 2001:db8::7\n" in changed.out
    assert "links        192.0.2.7 2001:db8::7\n" in cli("node", "show", "cellar").out
    assert cli("node", "links", "cellar", "--json").json["addresses"]["links"] == []
    assert cli("node", "revoke", "cellar", "--yes", "--json").json["state"] == "revoked"
    assert node.call("GET", "/nodes/self/inventory").status_code == 401
    node.session.close()


@pytest.mark.parametrize("pair", ["zone", "=x"])
def test_a_label_of_another_form(pair, cli, machine) -> None:
    ran = cli("node", "label", "here", pair)
    assert (ran.status, ran.out) == (2, "")
    assert f"label {pair!r}, expected KEY=VALUE" in ran.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["label", "here", "ZONE=x"], "labels.ZONE: name 'ZONE', expected [a-z][a-z0-9_]{0,30}"),
        (
            ["links", "here", "127.0.0.1"],
            "links ['127.0.0.1'], expected at most one IPv4 and one IPv6 address of a host",
        ),
        (
            ["token", "attic", "--link", "oak"],
            "links ['oak'], expected at most one IPv4 and one IPv6 address of a host",
        ),
        (["token", "attic", "--lasts", "8d"], "seconds: Input should be less than or equal to 604800"),
        (["token", "attic", "--label", "ZONE=x"], "labels.ZONE: name 'ZONE', expected [a-z][a-z0-9_]{0,30}"),
    ],
)
def test_what_the_contract_does_not_allow_is_wrong_use(arguments, text, cli, machine) -> None:
    ran = cli("node", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert text in " ".join(ran.err.replace("│", "").split())


def test_join_checks_the_token_before_it_runs_anything(cli, live, tmp_path) -> None:
    (tmp_path / "token").write_text(f"{'0' * 32}.wrong\n")
    ran = cli("node", "join", live.url, "--name", "attic", "--token-file", tmp_path / "token")
    assert ran.status == 1
    assert ran.err.startswith(f"clachan: CA of {live.url}: fingerprint ")
    assert ran.err.endswith(f", expected one that begins with {'0' * 32}\n")


@pytest.fixture
def workshop(live, request):
    """A node of the test's own, named by it; revoked after it, or later tests' instances were placed there."""
    node = live.join(f"w_{request.node.originalname[5:25]}", slots=2)
    yield node
    live.ok("DELETE", f"/nodes/{node.name}")
    node.session.close()


def later(seconds, action) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_supply_waits_for_the_node_and_says_why(cli, live, page, workshop) -> None:
    def report() -> None:
        line = workshop.slice()["supplies"][0]
        workshop.accepted({"kind": "supply", "supply": line["id"], "digest": line["digest"], "state": "present"})

    timer = later(1, report)
    ran = cli("supply", workshop.name, page, "--json", "--timeout", 30)
    timer.join()
    assert ran.status == 0
    assert ran.json == live.ok("GET", f"/supplies/{workshop.name}/{page}")
    assert ran.json["observed"] == "present"
    again = cli("supply", workshop.name, page)
    assert (again.status, again.err) == (0, "")
    assert any(each == ran.json for each in cli("supply", "--json").json)
    assert any(row.split()[:2] == [workshop.name, page] for row in cli("supply").out.splitlines())


def test_supply_that_fails_or_takes_too_long(cli, page, workshop) -> None:
    ran = cli("supply", workshop.name, page, "--timeout", 0.2)
    assert ran.status == 3
    assert f"[   0 s] {page} on {workshop.name} waiting" in ran.err
    line = workshop.slice()["supplies"][0]
    failed = {"kind": "supply", "supply": line["id"], "digest": line["digest"], "state": "failed", "message": "no disk"}
    workshop.accepted(failed)
    ran = cli("supply", workshop.name, page)
    assert ran.status == 1
    assert "state     failed\nmessage   no disk\n" in ran.out


def test_supply_absent_ends_when_it_is_gone(cli, page, workshop) -> None:
    assert cli("supply", workshop.name, page, "--no-wait").status == 0

    def report() -> None:
        line = workshop.slice()["supplies"][0]
        workshop.accepted({"kind": "supply", "supply": line["id"], "digest": line["digest"], "state": line["state"]})

    report()
    timer = later(1, report)
    ran = cli("supply", workshop.name, page, "--absent", "--timeout", 30)
    timer.join()
    assert ran.status == 0
    assert "state     absent\n" in ran.out


def test_supply_needs_both_or_none(cli) -> None:
    ran = cli("supply", "here")
    assert (ran.status, ran.out) == (2, "")
    assert "SOFTWARE: missing, expected NODE and SOFTWARE, or neither" in ran.err
