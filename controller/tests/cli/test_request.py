"""request: what is declared, what is waited for, and how it ends."""

import json
import time

import pytest


def test_a_request_waits_until_it_is_so(cli, answers, live, machine, page) -> None:
    node = answers("home.first", "converging", "started", published={"url": "http://x/", "password": "pw"})
    ran = cli("request", "home.first", page, "-p", "page_text=Hi", "--timeout", 30)
    node.join()
    assert ran.status == 0
    assert "revision  1 (new)\nstate     started\n" in ran.out
    assert ran.out.endswith("password  <secret>\nurl       http://x/\n")
    said = [line.partition("] ")[2] for line in ran.err.splitlines()]
    assert said == [
        "home.first allocated: revision 1 not converged yet",
        "home.first converging: revision 1 not converged yet",
        "home.first started",
    ]
    again = cli("request", "home.first", page, "-p", "page_text=Hi", "--json")
    assert (again.status, again.json["revision"]) == (0, 1)
    assert again.json == live.ok("GET", "/instances/home.first")


def test_one_that_is_not_ready_in_time(cli, page) -> None:
    began = time.monotonic()
    ran = cli("request", "home.slow", page, "--timeout", 1)
    assert ran.status == 3
    assert 0.9 < time.monotonic() - began < 5
    assert "state     allocated\n" in ran.out
    assert cli("instance", "wait", "home.slow", "--timeout", 0).status == 3
    assert cli("request", "home.slow", page, "--no-wait").status == 0


def test_one_that_fails_says_why(cli, answers, machine, page) -> None:
    node = answers("home.broken", "converging", "failed", message="task Serve: no space")
    ran = cli("request", "home.broken", page, "--timeout", 30)
    node.join()
    assert ran.status == 1
    assert "state     failed\nmessage   task Serve: no space\n" in ran.out
    assert ran.err.splitlines()[-1].endswith("home.broken failed: task Serve: no space")


def test_an_old_failure_does_not_count_for_a_new_revision(cli, answers, machine, page) -> None:
    node = answers("home.mended", "failed", message="bad")
    assert cli("request", "home.mended", page, "--timeout", 30).status == 1
    node.join()
    assert cli("request", "home.mended", page).status == 1
    node = answers("home.mended", "converging", "started", seconds=1)
    assert cli("request", "home.mended", "-p", "page_text=better", "--timeout", 30).status == 0
    node.join()


def test_why_it_waits_is_said(cli, page) -> None:
    ran = cli("request", "home.lost", page, "--label", "zone=mars", "--timeout", 0.5)
    assert ran.status == 3
    assert "home.lost waiting: " in ran.err
    assert "zone" in ran.err
    reference = '{"from": "home.nobody", "key": "url"}'
    ran = cli("request", "home.reader", page, "-p", f"page_text={reference}", "--timeout", 0.5)
    assert ran.status == 3
    assert "waiting for home.nobody to publish url" in ran.err


def test_what_the_children_say_is_said_with_what_they_are(cli, machine, page) -> None:
    assert cli("request", "home.family", page, "--no-wait").status == 0
    parent = machine.slice()["records"]["home.family"]["clachan_instance"]["id"]
    members = {"ok": False, "message": "children: one failed"}
    machine.accepted(
        {"kind": "requests", "instance": parent, "revision": 1, "children": {"one": {"software": page}}},
        {"kind": "instance", "instance": parent, "revision": 1, "state": "converging"},
        {"kind": "promises", "instance": parent, "results": {"members": members}},
    )
    child = machine.slice()["records"]["home.family.one"]["clachan_instance"]["id"]
    said = "promise reached: m1 is not reached by IPv6"
    machine.accepted({"kind": "instance", "instance": child, "revision": 1, "state": "failed", "message": said})
    ran = cli("instance", "wait", "home.family", "--timeout", 0.5)
    assert ran.status == 3
    assert ran.status == 3
    assert f"members: children: one failed; one: {said}; revision 1 not converged yet" in ran.err


def test_without_software_only_what_is_given_changes(cli, page) -> None:
    cli("request", "home.keep", page, "-p", "page_text=a", "-p", "page_heading=b", "--title", "Mine", "--no-wait")
    ran = cli("request", "home.keep", "-p", "page_text=c", "--node", "here", "--no-wait", "--json")
    assert ran.json["parameters"] == {"page_text": "c", "page_heading": "b"}
    assert (ran.json["revision"], ran.json["title"], ran.json["placement"]["node"]) == (2, "Mine", "here")
    assert cli("request", "home.keep", "--state", "stopped", "--no-wait", "--json").json["wanted"] == "stopped"
    whole = cli("request", "home.keep", page, "--no-wait", "--json").json
    assert (whole["parameters"], whole["title"], whole["wanted"]) == ({}, "Mine", "started")


def test_a_rollback_is_a_new_revision_with_the_old_content(cli, live, page) -> None:
    cli("request", "home.back", page, "-p", "page_text=one", "--no-wait")
    cli("request", "home.back", page, "-p", "page_text=two", "-p", "page_count=2", "--no-wait")
    ran = cli("request", "home.back", "--rollback", 1, "--no-wait", "--json")
    assert (ran.json["revision"], ran.json["parameters"]) == (3, {"page_text": "one"})
    listed = cli("instance", "revisions", "home.back", "--json").json
    assert listed == live.ok("GET", "/instances/home.back/revisions")["items"]
    assert [each["number"] for each in listed] == [1, 2, 3]
    assert {**listed[0], "number": 3, "created": listed[2]["created"]} == listed[2]
    missing = cli("request", "home.back", "--rollback", 9)
    assert (missing.status, missing.err) == (
        1,
        "clachan: revision 9: not one of home.back, expected one of: clachan instance revisions home.back\n",
    )


def test_secrets_come_from_files_and_stay(cli, live, page, tmp_path) -> None:
    (tmp_path / "key").write_text("12345\n")
    made = cli("request", "home.safe", page, "-p", "page_key=@key", "--no-wait", "--json")
    assert made.json["parameters"] == {"page_key": "<secret>"}
    changed = cli("request", "home.safe", "-p", "page_text=x", "--no-wait", "--json")
    assert changed.json["parameters"] == {"page_key": "<secret>", "page_text": "x"}
    shown = cli("instance", "show", "home.safe", "--reveal", "--json").json["parameters"]
    assert shown == {"page_key": "12345", "page_text": "x"}
    back = cli("request", "home.safe", "--rollback", 1)
    assert (back.status, back.err) == (
        2,
        "clachan: parameter page_key of revision 1: a secret, which is not shown, expected it again: "
        "-p page_key=@FILE, or -p page_key='<secret>' for the one that it has now\n",
    )
    back = cli("request", "home.safe", "--rollback", 1, "-p", "page_key=<secret>", "--no-wait", "--json")
    assert (back.json["revision"], back.json["parameters"]) == (3, {"page_key": "<secret>"})
    assert live.ok("GET", "/instances/home.safe?reveal=true")["parameters"] == {"page_key": "12345"}


def test_values_are_json_where_they_parse_as_json(cli, page, tmp_path) -> None:
    (tmp_path / "all.json").write_text('{"page_heading": "over", "page_count": 5}')
    ran = cli(
        "request", "home.values", page, "--parameters", "all.json", "-p", 'page_heading="7"', "-p", "page_text=a=b {",
        "--no-wait", "--json",
    )  # fmt: skip
    assert ran.json["parameters"] == {"page_count": 5, "page_heading": "7", "page_text": "a=b {"}
    ran = cli("request", "home.values", page, "--parameters", "-", "--no-wait", "--json", stdin='{"page_text": "in"}')
    assert ran.json["parameters"] == {"page_text": "in"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-p", "page_text"], "parameter 'page_text', expected KEY=VALUE"),
        (["-p", "page_text=a", "-p", "page_text=b"], "parameter 'page_text' twice, expected each once"),
        (["-p", "page_text=@none"], "file none: No such file or directory, expected one that can be read"),
        (["--parameters", "list.json"], "parameters list.json: list, expected a JSON object"),
        (
            ["--parameters", "text"],
            "parameters text: Expecting value: line 1 column 1 (char 0), expected a JSON object",
        ),
        (["--state", "paused"], "state: Input should be 'started', 'stopped' or 'absent'"),
        (["--digest", "abc"], "digest: sha256 'abc', expected [0-9a-f]{64}"),
        (["--node", "No"], "name 'No', expected [a-z][a-z0-9_]{0,30}"),
        (["--rollback", "1"], "SOFTWARE with --rollback, expected one of the two"),
        (["--rollback", "0"], "Input should be greater than or equal to 1"),
    ],
)
def test_wrong_use_ends_with_2(arguments, text, cli, page, tmp_path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text").write_text("text")
    ran = cli("request", "home.wrong", page, *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert text in " ".join(ran.err.replace("│", "").split())


def test_what_the_controller_refuses_ends_with_1_and_is_named(cli, page) -> None:
    ran = cli("request", "home.wrong", page, "-p", "page_colour=red")
    assert (ran.status, ran.out) == (1, "")
    assert "page_colour" in ran.err.splitlines()[0]
    ran = cli("request", "home.wrong", page, "-p", "page_count=many")
    assert ran.status == 1
    assert "page_count" in ran.err.splitlines()[0]
    ran = cli("request", "home.wrong", page, "-p", "ansible_host=evil")
    assert ran.status == 1
    assert "ansible_host" in ran.err
    ran = cli("request", "nobody.wrong", page)
    assert (ran.status, ran.err.splitlines()[0]) == (1, "clachan: tenant nobody: unknown, expected one that exists")
    assert cli("instance", "show", "home.wrong").status == 1


def test_changing_what_is_not_there(cli) -> None:
    ran = cli("request", "home.nothing", "-p", "a=1")
    assert (ran.status, ran.err) == (
        2,
        "clachan: instance home.nothing: does not exist, expected SOFTWARE to make it\n",
    )


def test_a_dry_run_changes_nothing(cli, page) -> None:
    ran = cli("request", "home.dry", page, "--dry-run")
    assert (ran.status, ran.out) == (0, f"home.dry: would be revision 1 of {page}, on node here\n")
    assert cli("instance", "show", "home.dry").status == 1
    cli("request", "home.dry", page, "--no-wait")
    assert cli("request", "home.dry", page, "--dry-run").out == "home.dry: nothing would change, revision 1 is so\n"
    ran = cli("request", "home.dry", "-p", "page_text=x", "--dry-run", "--json")
    assert (ran.json["revision"], ran.json["parameters"]) == (2, {"page_text": "x"})
    assert cli("instance", "show", "home.dry", "--json").json["revision"] == 1


def test_payloads_come_back_byte_for_byte_and_reach_no_terminal(cli, page) -> None:
    payload = "{{ lookup('pipe', 'id') }} $HOME\n- !x\x1b[31m<b>\u202e\x07"
    ran = cli(
        "request", "home.text", page, "-p", "page_text=" + json.dumps(payload), "--title", "\x1b]0;t\x07", "--no-wait"
    )
    assert ran.status == 0
    shown = cli("instance", "show", "home.text", "--json").json
    assert (shown["parameters"]["page_text"], shown["title"]) == (payload, "\x1b]0;t\x07")
    text = cli("instance", "show", "home.text").out
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert "\\x1b[31m<b>\\u202e\\x07" in text
