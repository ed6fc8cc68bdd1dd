"""instance list, show, wait, logs, delete: what they say, and how they end."""

import threading
import time

from clachan.client import Client
from clachan.contract.api import Answer


def test_list_is_the_apis_own_objects(cli, live, machine, page) -> None:
    cli("request", "home.listed", page, "--no-wait")
    machine.started("home.listed")
    mine = machine.slice()["records"]["home.listed"]["clachan_instance"]["id"]
    results = {"answers": {"ok": True, "message": "200"}, "runs": {"ok": False, "message": "exited with 1"}}
    machine.accepted({"kind": "promises", "instance": mine, "results": results})
    assert cli("instance", "list", "--json").json == live.ok("GET", "/instances?limit=500")["items"]
    one = cli("instance", "list", "--tenant", "home", "--state", "started", "--software", page, "--json").json
    assert "home.listed" in [each["path"] for each in one]
    assert cli("instance", "list", "--tenant", "nobody", "--json").out == "[]\n"
    row = next(line for line in cli("instance", "list").out.splitlines() if line.startswith("home.listed "))
    assert row.split() == ["home.listed", page, "started", "started", "1/2", "here", "runs"]
    shown = " ".join(cli("instance", "show", "home.listed").out.split())
    assert "state started since 20" in shown
    assert "runs failing 20" in shown


def test_an_unknown_state_is_refused_by_name(cli) -> None:
    ran = cli("instance", "list", "--state", "happy")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("clachan: state: ")


def test_wait(cli, answers, machine, page) -> None:
    cli("request", "home.waited", page, "--no-wait")
    node = answers("home.waited", "started", seconds=1)
    ran = cli("instance", "wait", "home.waited", "--timeout", 30, "--json")
    node.join()
    assert (ran.status, ran.json["observed"]["state"]) == (0, "started")
    assert cli("instance", "wait", "home.unknown").err == (
        "clachan: instance home.unknown: unknown, expected one that exists\n"
    )


def test_delete_waits_until_it_is_gone(cli, answers, machine, page) -> None:
    cli("request", "home.gone", page, "--no-wait")
    machine.started("home.gone")
    held = cli("instance", "delete", "home.gone", "--timeout", 0.5)
    assert (held.status, held.out) == (3, "home.gone: wanted absent, now started\n")
    node = answers("home.gone", "absent", seconds=1)
    ran = cli("instance", "delete", "home.gone", "--timeout", 30)
    node.join()
    assert (ran.status, ran.out) == (0, "home.gone: removed\n")
    assert cli("instance", "show", "home.gone").status == 1


def test_delete_as_json(cli, page) -> None:
    cli("request", "home.unplaced", page, "--label", "zone=mars", "--no-wait")
    ran = cli("instance", "delete", "home.unplaced", "--json")
    assert (ran.status, ran.json) == (0, None)


def test_logs_are_asked_of_the_node(cli, machine, page) -> None:
    cli("request", "home.logging", page, "--no-wait")
    machine.started("home.logging")
    asked = []

    def answer() -> None:
        with Client(machine.url, ca_file=machine.ca_file, cert=machine.cert) as node:
            for question in node.questions(wait=20):
                asked.append(question)
                node.answer(question.id, Answer(logs={"web": "GET /\n\x1b[2J", "side": "line"}))

    thread = threading.Thread(target=answer)
    thread.start()
    ran = cli("instance", "logs", "home.logging", "--lines", 7)
    thread.join()
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == "==> side <==\nline\n==> web <==\nGET /\n\x1b[2J\n"
    assert [(each.lines, each.service) for each in asked] == [(7, None)]


def test_logs_of_a_node_that_does_not_answer(cli, machine, page) -> None:
    cli("request", "home.silent", page, "--no-wait")
    began = time.monotonic()
    ran = cli("instance", "logs", "home.silent", "--json")
    assert (ran.status, ran.out) == (1, "")
    assert time.monotonic() - began < 8
    assert "no answer within 2 s" in ran.err


def test_a_path_of_another_form(cli) -> None:
    for path in ("home", "Home.x", "home.x\n", "home..x", "../x"):
        ran = cli("instance", "show", path)
        assert (ran.status, ran.out) == (2, "")
        assert "expected [a-z]" in ran.err
