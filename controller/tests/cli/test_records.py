"""usage, events, inventory."""

import json
import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest
from clachan.cli.records import _moment


def test_usage(cli, live, machine, page) -> None:
    cli("request", "home.metered", page, "--node", "here", "--no-wait")
    mine = machine.slice()["records"]["home.metered"]["clachan_instance"]["id"]
    end = datetime.now(UTC).replace(second=0, microsecond=0)
    begin = end - timedelta(minutes=1)
    window = {"window_start": begin.strftime("%Y-%m-%dT%H:%M:%SZ"), "window_end": end.strftime("%Y-%m-%dT%H:%M:%SZ")}
    machine.accepted({"kind": "usage", "instance": mine, "meter": "cpu_milli", "epoch": "1", "quantity": 42, **window})
    found = cli("usage", "--path", "home.metered", "--json").json
    assert found == live.ok("GET", "/usage?path=home.metered")["items"]
    assert [(each["meter"], each["quantity"]) for each in found] == [("cpu_milli", 42)]
    assert cli("usage", "--path", "home.metered", "--since", "5m", "--json").json == found
    shown = cli("usage", "--path", "home.metered").out.splitlines()
    assert (shown[0].split()[-1], shown[1].split()[-1]) == ("BILLED", "yes")
    assert cli("usage", "--path", "home.metered", "--until", "5m", "--json").out == "[]\n"
    assert cli("usage", "--tenant", "home", "--meter", "nothing").out.split()[:2] == ["PATH", "METER"]
    assert cli("usage", "--since", "soon").status == 2


def test_moments_are_utc() -> None:
    assert _moment("2026-01-31") == "2026-01-31T00:00:00Z"
    assert _moment("2026-01-31T12:00:00+02:00") == "2026-01-31T10:00:00Z"
    assert _moment(None) is None
    ago = datetime.now(UTC) - datetime.fromisoformat(_moment("1h"))
    assert timedelta(minutes=59) < ago < timedelta(minutes=61)


def test_events(cli, live, page) -> None:
    cli("request", "home.eventful", page, "--no-wait")
    found = cli("events", "--path", "home.eventful", "--json").json
    assert found == live.ok("GET", "/events?path=home.eventful")["items"]
    assert found[0]["kind"] == "instance_requested"
    assert cli("events", "--path", "home.eventful", "--after", found[-1]["id"], "--json").out == "[]\n"
    lines = cli("events", "--path", "home.eventful", "--kind", "instance_requested").out.splitlines()
    assert lines[0].split() == ["ID", "AT", "KIND", "WHO", "MESSAGE"]
    assert "home.eventful" in lines[1]


def test_events_follow_until_interrupted(cli, page, command, environment) -> None:
    cli("request", "home.followed", page, "--no-wait")
    line = [command, "events", "--follow", "--json", "--kind", "instance_requested", "--path", "home.followed"]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = json.loads(process.stdout.readline())
        cli("request", "home.followed", "-p", "page_text=more", "--no-wait")
        second = json.loads(process.stdout.readline())
        process.send_signal(2)
        _, err = process.communicate(timeout=20)
    assert (first["kind"], second["kind"]) == ("instance_requested", "instance_requested")
    assert first["id"] < second["id"]
    assert (process.returncode, err) == (130, "clachan: interrupted\n")


def test_inventory_is_the_wire_form(cli, live, machine, page) -> None:
    cli("request", "home.inventoried", page, "--no-wait")
    assert cli("inventory", "--json").json == live.ok("GET", "/inventory")
    text = cli("inventory").out
    assert "@tenant_home:\n" in text
    assert "  home.inventoried\n" in text


def test_json_is_ascii_so_that_no_terminal_is_led_astray(cli, page) -> None:
    cli("request", "home.ascii", page, "--title", "Überraschung \u009b31m", "--no-wait")
    ran = cli("instance", "show", "home.ascii", "--json")
    assert ran.out.isascii()
    assert ran.json["title"] == "Überraschung \u009b31m"


@pytest.mark.parametrize("verb", [["events", "--json"], ["events"], ["instance", "list"]])
def test_a_reader_that_goes_away_is_no_error(verb, command, environment, live) -> None:
    line = f"{command} {' '.join(verb)} | head -c 1; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode in {0, 1}
    assert ran.stderr == ""


def test_a_controller_that_is_not_there(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CLACHAN_URL", "https://127.0.0.1:1")
    began = time.monotonic()
    ran = cli("instance", "list")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "clachan: controller https://127.0.0.1:1: not reachable (Connection refused)\n"
    assert time.monotonic() - began < 5
