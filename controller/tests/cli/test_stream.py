"""instance connect and host-key: their errors, their forms, and how little they load. agent/test_streams.py carries."""

import socket
import subprocess
import sys

import pytest
from clachan.cli import listening, stream
from clachan.cli.errors import CommandError
from clachan.contract import names
from live import artifact, role

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6MDEyMzQ1"


def test_a_path_is_what_the_contract_says() -> None:
    assert stream.PATH == names.PATH


@pytest.mark.parametrize("verb", ["connect", "host-key"])
def test_wrong_use(cli, verb: str) -> None:
    for path in ("home", "Home.x", "home.x\n", "-home.x", "../x", "home.x;id"):
        ran = cli("instance", verb, "--", path)
        assert (ran.status, ran.out) == (2, "")
        assert "expected [a-z]" in ran.err
    assert cli("instance", "connect", "home.one", "--port", "0").status == 2
    assert cli("instance", "connect", "home.one", "--port", "65536").status == 2


def test_refusals(cli, machine, page) -> None:
    cli("request", "home.shut", page, "--no-wait")
    ran = cli("instance", "connect", "home.shut", "--port", "22")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("clachan: port 22 of home.shut: not of its slot, expected 2")
    ran = cli("instance", "connect", "home.nobody")
    assert (ran.status, ran.err) == (1, "clachan: instance home.nobody: unknown, expected one that exists\n")
    ran = cli("instance", "connect", "home.shut")
    expected = "clachan: instance home.shut, on node here: node: no answer within 2 s, expected its agent to run\n"
    assert (ran.status, ran.err) == (1, expected)


def test_a_host_key_is_one_line_of_known_hosts(cli, live, machine, tmp_path) -> None:
    files = role({}, {"published": {"host_key": {"title": "SSH host key"}}})
    live.register(artifact(tmp_path, "acme.keyed", {"box": files}))
    live.supply("here", "acme.keyed.box")
    live.request("home.keyed", "acme.keyed.box")
    missing = "clachan: host key of home.keyed: none is published, expected a VM whose node made one\n"
    assert cli("instance", "host-key", "home.keyed").err == missing
    for wrong in ("", "no key", f"{KEY}\n* {KEY}", f"@cert-authority * {KEY}", f"home.other {KEY}", 5):
        machine.started("home.keyed", published={"host_key": wrong})
        ran = cli("instance", "host-key", "home.keyed")
        assert (ran.status, ran.out, ran.err) == (1, "", missing), wrong
    machine.started("home.keyed", published={"host_key": f"{KEY} root@here"})
    assert cli("instance", "host-key", "home.keyed").out == f"home.keyed {KEY}\n"
    assert cli("instance", "host-key", "home.keyed", "--json").json["published"]["host_key"] == f"{KEY} root@here"


def test_the_forms_that_ssh_uses_load_little(environment) -> None:
    script = (
        "import sys, os; sys.argv = ['clachan', 'instance', *sys.argv[1:]]\n"
        "from clachan.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, [m for m in ('requests', 'pydantic', 'typer', 'asyncio', 'rich') if m in sys.modules])"
    )
    for words in (["connect", "home.nobody"], ["connect", "home.nobody", "--port", "20000"], ["host-key", "home.no"]):
        command = [sys.executable, "-c", script, *words]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout == "1 []\n", words
        assert ran.stderr.endswith(": unknown, expected one that exists\n")


def test_another_form_goes_the_usual_way(environment, command: str) -> None:
    for words in (["--port", "20000", "home.nobody"], ["home.nobody", "--port=20000"]):
        ran = subprocess.run(
            [command, "instance", "connect", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr == "clachan: instance home.nobody: unknown, expected one that exists\n"


def test_where_may_be_listened(cli, machine) -> None:
    for text, where in (("5901", "127.0.0.1:5901"), ("localhost:1", "127.0.0.1:1"), ("[::1]:0", "::1:0")):
        assert "{}:{}".format(*listening.address(text, others=False)) == where
    assert listening.address("0.0.0.0:0", others=True) == ("0.0.0.0", 0)
    for text in ("x", "", "65536", "-1", ":5901", "::1:5901", "[127.0.0.1]:1", "example.org:1", "127.0.0.1:"):
        with pytest.raises(CommandError) as caught:
            listening.address(text, others=True)
        assert str(caught.value) == (
            f"address {text!r}: expected [ADDRESS:]PORT like 5901, 127.0.0.1:5901 or [::1]:5901"
        )
    for text in ("0.0.0.0:0", "[::]:0", "192.0.2.1:5901"):
        ran = cli("instance", "connect", "home.one", "--listen", text)
        refusal = f"clachan: address {text}: others reach it, expected a loopback address, or --open-to-others\n"
        assert (ran.status, ran.out, ran.err) == (2, "", refusal)


def test_it_listens_only_for_what_there_is_and_where_there_is_room(cli, machine, page) -> None:
    ran = cli("instance", "connect", "home.nobody", "--vnc", "--listen", "0")
    assert (ran.status, ran.err) == (1, "clachan: instance home.nobody: unknown, expected one that exists\n")
    cli("request", "home.heard", page, "--no-wait")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = cli("instance", "connect", "home.heard", "--listen", f"localhost:{port}")
    expected = f"clachan: address 127.0.0.1:{port}: Address already in use, expected one that is free here\n"
    assert (ran.status, ran.err) == (1, expected)


def test_one_thing_is_connected_to(cli) -> None:
    for words in (("--console", "--vnc"), ("--port", "22", "--vnc"), ("--port", "22", "--console")):
        ran = cli("instance", "connect", "home.one", *words)
        assert (ran.status, ran.out) == (2, "")
        assert "expected at most one of --port, --console and --vnc" in ran.err
