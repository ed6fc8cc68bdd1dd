"""The verbs for policies, transformations, tokens, dead letters, streams and the catalogue: at a URL, a socket, a
folder."""

import json
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from clachan_lake.opening import open_lake

from .making import Server, tone, wait_for, wav
from .test_cli import cli

Command = Callable[..., str]


@pytest.fixture(params=["url", "socket", "folder"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """The command on a lake: `lake("policy", "list")`, `lake("find", "--json")`."""
    if request.param == "folder":
        open_lake(tmp_path / "lake").close()
        place: list[Any] = [tmp_path / "lake"]
    else:
        server: Server = request.getfixturevalue("server")
        url = [server.url, "--token-file", server.token_file]
        place = url if request.param == "url" else [server.socket, "--blobs", server.folder / "blobs"]

    def run(*words: Any, status: int = 0) -> str:
        verbs = 1 if words[0] in {"find", "list", "show"} else 2
        return cli(*words[:verbs], place[0], *words[verbs:], *place[1:], status=status)

    return run


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of its own for each test, as they share a server."""
    return "".join(letter if letter.isalnum() else "_" for letter in request.node.name)


def test_policies(lake: Command, name: str) -> None:
    pattern = r"halls\.(?P<hall>[a-z]+)"
    words = [
        "--pattern",
        pattern,
        "--name",
        "halls/{hall}",
        "--attr",
        "hall={hall}",
        "--keep",
        "7d",
        "--title",
        "Halls",
    ]
    assert lake("policy", "set", name, *words) == f"{name}: set\n"
    assert lake("policy", "set", name, *words) == f"{name}: is so already\n"
    found = json.loads(lake("policy", "show", name, "--json"))
    assert (found["pattern"], found["name"], found["attrs"]) == (pattern, "halls/{hall}", {"hall": "{hall}"})
    assert (found["keep_seconds"], found["into"], found["unmatched"]) == (604800, "stream", "refuse")
    [listed] = [one for one in json.loads(lake("policy", "list", "--json")) if one["policy"] == name]
    assert {key: listed[key] for key in found} == found
    shown = lake("policy", "list")
    assert pattern in shown
    assert "604800 s" in shown
    rows = ["--into", "array", "--dtype", '[["t", "<i8"], ["v", "<f4"]]', "--row-shape", "2"]
    made = json.loads(lake("policy", "set", name, *rows, "--json"))[0]
    assert (made["changed"], made["dtype"], made["row_shape"]) == (True, [["t", "<i8"], ["v", "<f4"]], [2])
    assert made["pattern"] == ".+", "a declaration is complete"
    assert lake("policy", "remove", name) == f"{name}: removed\n"
    assert name not in lake("policy", "list")
    assert "none of this name" in lake("policy", "show", name, status=1)
    assert "none of this name" in lake("policy", "remove", name, status=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pattern", "("], "key pattern: '(', expected a regular expression of RE2"),
        (["--name", "{x}"], "key name: '{x}', expected {tag} as its only parts"),
        (["--into", "heap"], "key into: 'heap', expected stream or array"),
        (["--into", "array", "--dtype", "[1"], "'[1', expected JSON"),
        (["--attr", "x"], "option --attr: 'x', expected NAME=JSON"),
    ],
)
def test_wrong_policies_are_named(lake: Command, words: list[str], message: str) -> None:
    assert message in lake("policy", "set", "wrong", *words, status=1)
    assert "wrong" not in lake("policy", "list")


def test_tokens(lake: Command, name: str, tmp_path: Path) -> None:
    said = lake("token", "create", "read", "ingest:raw", "--note", name, "--valid", "1h")
    key, _, token = said.strip().partition(": ")
    assert len(token) > 30
    [listed] = [one for one in json.loads(lake("token", "list", "--json")) if one["id"] == key]
    assert (listed["scopes"], listed["note"], listed["revoked"]) == (["read", "ingest:raw"], name, None)
    assert listed["expires"] == pytest.approx(time.time() * 1000 + 3600_000, abs=60_000)
    shown = lake("token", "list") + json.dumps(listed)
    assert token not in shown
    assert "sha256" not in listed
    out = tmp_path / "token"
    made = json.loads(lake("token", "create", "view:array/a b", "--out", out, "--json"))[0]
    assert set(made) == {"id", "file"}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert len(out.read_text().strip()) > 30
    assert "File exists" in lake("token", "create", "read", "--out", out, status=1)
    assert "expected" in lake("token", "create", "everything", "--out", tmp_path / "none", status=1)
    assert not (tmp_path / "none").exists()
    assert lake("token", "revoke", key) == f"{key}: revoked\n"
    [listed] = [one for one in json.loads(lake("token", "list", "--json")) if one["id"] == key]
    assert listed["revoked"] is not None
    lake("token", "revoke", "no-such-token", status=1)


def test_a_token_that_was_made_and_revoked_here_counts(server: Server) -> None:
    reach = [server.url, "--token-file", server.token_file]
    key, _, token = cli("token", "create", reach[0], "read", *reach[1:]).strip().partition(": ")
    headers = {"Authorization": f"Bearer {token}"}

    def status(path: str = "/streams") -> int:
        return requests.get(server.url + path, headers=headers, timeout=9).status_code

    assert (status(), status("/tokens")) == (200, 403)
    cli("token", "revoke", server.socket, key, "--blobs", server.folder / "blobs")
    wait_for(lambda: status() == 401, "refusal")


def test_streams(lake: Command, name: str) -> None:
    assert lake("stream", "set", name, "--attr", "title=One", "--attr", 'tags=["a"]').startswith(f"{name}: 0 bytes")
    made = json.loads(lake("stream", "set", name, "--attr", "title=Two", "--remove-attr", "tags", "--json"))[0]
    assert (made["attrs"], made["policy"], made["size"]) == ({"title": "Two"}, "raw", 0)
    assert lake("stream", "truncate", name, 0) == f"{name}: 0 bytes forgotten, begins at 0\n"
    assert "expected at most its size 0" in lake("stream", "truncate", name, 5, status=1)
    assert lake("stream", "remove", name) == f"{name}: removed\n"
    assert "none of this name" in lake("stream", "remove", name, status=1)


def test_its_beginning_is_forgotten(server: Server) -> None:
    for part in (b"first", b"second", b"third"):
        server.post(part, reference="cut")
    done = cli("stream", "truncate", server.url, "cut", "8", "--token-file", server.token_file)
    assert done == "cut: 5 bytes forgotten, begins at 5\n"
    assert server.get("/streams/data", name="cut").content == b"secondthird"
    done = cli("stream", "truncate", server.socket, "cut", "11", "--blobs", server.folder / "blobs")
    assert done == "cut: 6 bytes forgotten, begins at 11\n"


def test_dead_letters(server: Server, tmp_path: Path) -> None:
    reach = ["--token-file", server.token_file]

    def dead(*words: Any, status: int = 0) -> str:
        return cli("dead", words[0], server.url, *words[1:], *reach, status=status)

    cli("policy", "set", server.url, "strict", "--pattern", r"a\d", "--unmatched", "dead", *reach)
    numbers = []
    for body in (b"one", b"two [bold]"):
        answer = server.post(body, "strict", reference="b1")
        assert answer.status_code == 204
        numbers.append(int(answer.headers["Clachan-Dead-Letter"]))
    listed = {one["number"]: one for one in json.loads(dead("list", "--json"))}
    assert [(listed[number]["tag"], listed[number]["length"]) for number in numbers] == [("b1", 3), ("b1", 10)]
    assert "strict" in dead("list")
    shown = json.loads(dead("show", numbers[1], "--out", tmp_path / "bytes", "--json"))
    assert (shown["policy"], (tmp_path / "bytes").read_bytes()) == ("strict", b"two [bold]")
    # the policy is as it was
    assert "expected a tag that the pattern of policy strict matches" in dead("replay", numbers[0], status=1)
    socket = [server.socket, numbers[0], "--blobs", server.folder / "blobs"]
    assert numbers[0] in {one["number"] for one in json.loads(dead("list", "--json"))}
    cli("policy", "set", server.url, "strict", "--pattern", r"[ab]\d", *reach)
    assert dead("replay", numbers[0]) == f"{numbers[0]}: taken\n"
    assert server.get("/streams/data", name="b1").content == b"one"
    assert dead("remove", numbers[1]) == f"{numbers[1]}: removed\n"
    assert not set(numbers) & {one["number"] for one in json.loads(dead("list", "--json"))}
    assert "none of this name" in cli("dead", "show", *socket, status=1)
    assert "none of this name" in dead("replay", 12345, status=1)


def test_transformations_are_declared(lake: Command, name: str, tmp_path: Path) -> None:
    options = {"columns": [{"name": "t", "dtype": "float64"}]}
    (tmp_path / "options").write_text(json.dumps(options))
    words = ["--function", "jsonl", "--policy", "none_of_these", "--output", "rows/{name}"]
    assert lake("transformation", "set", name, *words, "--options", json.dumps(options)) == f"{name}: set\n"
    again = lake("transformation", "set", name, *words, "--options", f"@{tmp_path / 'options'}")
    assert again == f"{name}: is so already\n"
    shown = json.loads(lake("transformation", "show", name, "--json"))
    assert (shown["function"], shown["options"], shown["output"], shown["on"]) == (
        "jsonl",
        options,
        "rows/{name}",
        "chunk",
    )
    assert (shown["source"]["policy"], shown["positions"], shown["sources"]) == ("none_of_these", [], 0)
    assert lake("transformation", "pause", name) == f"{name}: paused\n"
    assert lake("transformation", "pause", name) == f"{name}: paused already\n"
    [listed] = [one for one in json.loads(lake("transformation", "list", "--json")) if one["transformation"] == name]
    assert listed["paused"] is True
    assert "paused" in lake("transformation", "list")
    assert lake("transformation", "resume", name) == f"{name}: runs\n"
    assert lake("transformation", "retry", name) == f"{name}: 0 sources tried again\n"
    assert lake("transformation", "backfill", name, "--wait", "5s") == f"{name}: 0 sources from their start\n"
    code = tmp_path / "code.py"
    code.write_text("def transform(batch, output, state):\n    pass\n")
    made = json.loads(lake("transformation", "set", name, "--code", code, "--kind", "array", "--json"))[0]
    assert (made["function"], made["code"], made["source"]["kind"]) == (None, code.read_text(), "array")
    assert lake("transformation", "remove", name) == f"{name}: removed\n"
    assert name not in lake("transformation", "list")
    for verb in ("show", "pause", "retry", "remove"):
        assert "none of this name" in lake("transformation", verb, name, status=1)
    wrong = lake("transformation", "set", name, "--function", "jsonl", "--options", "[1]", status=1)
    assert "option --options: '[1]', expected a JSON object, or @FILE with one" in wrong
    assert "expected one of" in lake("transformation", "set", name, "--function", "nope!", status=1)


@pytest.mark.slow
def test_a_transformation_is_waited_for(server: Server, tmp_path: Path) -> None:
    reach = ["--token-file", server.token_file]
    code = tmp_path / "code.py"
    # what it makes is the bytes' count; the second call fails
    code.write_text(
        "def transform(batch, output, state):\n"
        "    if b'bad' in bytes(batch.data):\n"
        "        raise ValueError('no [bold] good')\n"
        "    output.append(bytes(batch.data))\n"
    )
    words = ["--code", code, "--pattern", "counted/.+", "--output", "copies/{name}", "--attempts", "2"]
    cli("transformation", "set", server.url, "copied", *words, *reach)
    for part in (b"one", b"two"):
        server.post(part, reference="counted/a")
    cli("transformation", "retry", server.url, "copied", "--wait", "30s", *reach)
    shown = json.loads(cli("transformation", "show", server.url, "copied", "--json", *reach))
    assert [(one["source"], one["lag_bytes"], one["position"]) for one in shown["positions"]] == [("counted/a", 0, 6)]
    assert "6 of 6" in cli("transformation", "show", server.url, "copied", *reach)
    assert "caught up" in cli("transformation", "list", server.url, *reach)
    assert server.get("/streams/data", name="copies/counted/a").content == b"onetwo"
    done = cli("transformation", "backfill", server.url, "copied", "--wait", "30s", *reach)
    assert done == "copied: 1 sources from their start\n"
    assert server.get("/streams/data", name="copies/counted/a").content == b"onetwo"
    cli("transformation", "pause", server.url, "copied", *reach)
    server.post(b"three", reference="counted/a")
    said = cli("transformation", "retry", server.url, "copied", "--wait", "5s", *reach, status=1)
    assert "transformation copied, stream counted/a: paused, expected it to run" in said


@pytest.mark.slow
def test_find(server: Server, lake: Command, tmp_path: Path) -> None:
    if (tmp_path / "lake").exists():
        with open_lake(tmp_path / "lake") as opened, opened.transaction():
            for made in (opened.streams.create("found/tone.wav"), opened.arrays.create("found/tone.wav", 3, "i2")):
                made.attrs["title"] = "[bold]A tone"
    server.post(wav(tone(440, 0.1)), "wav", reference="found/tone.wav", final=1)
    server.transformed("found/tone.wav")
    cli(
        "stream", "set", server.url, "found/tone.wav", "--attr", "title=[bold]A tone", "--token-file", server.token_file
    )
    found = json.loads(lake("find", "found", "tone", "--json"))
    assert [(one["kind"], one["name"]) for one in found] == [("array", "found/tone.wav"), ("stream", "found/tone.wav")]
    assert "[bold]A tone" in lake("find", "bold")
    assert len(json.loads(lake("find", "found", "--kind", "array", "--json"))) == 1
    assert json.loads(lake("find", "nothing-like-it", "--json")) == []
    assert len(json.loads(lake("find", "--limit", "1", "--json"))) == 1
