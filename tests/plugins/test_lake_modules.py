"""The modules for policies, streams, transformations and tokens against a real lake: values, changed, differences,
messages; in check mode, really, again."""

import json
import stat
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from clachan_lake.policies.policy import CHOICES, Policy
from clachan_lake.transform.document import Source, Transformation

from .conftest import BIN, ROOT, Lab, run
from .payloads import payloads
from .test_lake_array import Module, arguments, check_documentation, lake, making, steps

__all__ = ["lake"]
PATHS = {
    "lake_policy": "/policies/meta",
    "lake_stream": "/streams/meta",
    "lake_transformation": "/transformations/meta",
}


def at(lake: Any, module: str, name: str) -> dict[str, Any] | None:
    answer = lake.get(PATHS[module], name=name)
    return answer.json() if answer.ok else None


def twelve_of(module: Module, name: str) -> Any:
    """`steps` of another module than lake_array."""
    return lambda given: steps(lambda _, options, check: module(name, options, check), given)


def modules(name: str) -> Any:
    import importlib

    return importlib.import_module(f"ansible_collections.clachan.platform.plugins.modules.{name}")


# policies

DEFAULTS = Policy().document()


def test_a_policy_in_twelve_steps(lake: Any, run_module: Module) -> None:
    twelve = twelve_of(run_module, "lake_policy")
    pattern = r"halls\.(?P<hall>[a-z]+)\.(?P<sensor>\w+)"
    more = {"pattern": pattern, "target": "halls/{hall}/{sensor}", "attrs": {"hall": "{hall}", "n": [1, None]}}
    first = arguments(lake, "halls", **more, keep_seconds=60, unmatched="dead")
    assert run_module("lake_policy", first, check=True)["changed"] is True
    assert at(lake, "lake_policy", "halls") is None
    made = twelve(first)
    declared = DEFAULTS | {
        "pattern": pattern,
        "name": "halls/{hall}/{sensor}",
        "attrs": more["attrs"],
        "keep_seconds": 60,
        "unmatched": "dead",
    }
    assert made[1]["diff"] == {"before": {}, "after": declared}
    assert (made[1]["policy"]["policy"], made[1]["policy"]["revision"]) == ("halls", 1)
    lake.post(b"22.5", "halls", reference="halls.east.t1")
    assert lake.stream("halls/east/t1")["attrs"]["hall"] == "east"

    changed = twelve(arguments(lake, "halls", pattern=pattern, title="Halls"))
    # a declaration is complete
    assert changed[1]["diff"]["after"] == DEFAULTS | {"pattern": pattern, "title": "Halls"}
    assert at(lake, "lake_policy", "halls") == changed[1]["policy"]
    assert changed[1]["policy"]["revision"] == 2

    gone = twelve(arguments(lake, "halls", state="absent"))
    assert gone[1]["diff"] == {"before": changed[1]["diff"]["after"], "after": {}}
    assert gone[1]["policy"] == {}
    assert at(lake, "lake_policy", "halls") is None
    assert lake.stream("halls/east/t1")["size"] == 4, "what it made stays"


def test_a_policy_into_an_array(lake: Any, run_module: Module) -> None:
    dtype = [["time", "<i8"], ["value", "<f4", [2]]]
    made = twelve_of(run_module, "lake_policy")(arguments(lake, "rows", into="array", dtype=dtype, target="rows/{tag}"))
    assert made[1]["policy"]["dtype"] == dtype
    assert lake.post(bytes(32), "rows", reference="a").status_code == 204
    assert lake.get("/arrays/meta", name="rows/a").json()["shape"] == [2]


@pytest.mark.parametrize(
    ("more", "message", "field"),
    [
        ({"pattern": "("}, "policy wrong, key pattern: '(', expected a regular expression of RE2", "pattern"),
        ({"pattern": "(?=x)"}, "policy wrong, key pattern: '(?=x)', expected a regular expression of RE2", "pattern"),
        ({"target": "{nope}"}, "policy wrong, key name: '{nope}', expected {tag} as its only parts", "name"),
        ({"target": "~x"}, "policy wrong, key name: '~x', expected none of the lake's own", "name"),
        ({"into": "array"}, "policy wrong, key dtype: missing, expected numpy's name of one", "dtype"),
        ({"dtype": "i2"}, "policy wrong, key dtype: 'i2', expected none with into 'stream'", "dtype"),
        (
            {"keep_seconds": -1},
            "policy wrong, key keep_seconds: -1, expected a whole number of at least 1",
            "keep_seconds",
        ),
        ({"name": "a b"}, "policy name: 'a b', expected 1-100 letters, digits, _ . -", None),
    ],
)
def test_a_wrong_policy_is_named(
    lake: Any, run_module: Module, more: dict[str, Any], message: str, field: str | None
) -> None:
    for check in (True, False):
        done = run_module("lake_policy", arguments(lake, "wrong") | more, check)
        assert message in done["msg"]
        assert (done["status"], done["field"]) == (400, field)
    assert at(lake, "lake_policy", "wrong") is None


def test_policies_have_the_services_keys() -> None:
    module = modules("lake_policy")
    assert set(module.TOLD) == set(DEFAULTS)
    assert {key: tuple(option["choices"]) for key, option in module.DOCUMENT.items() if "choices" in option} == CHOICES


# streams


def test_a_stream_in_twelve_steps(lake: Any, run_module: Module) -> None:
    twelve = twelve_of(run_module, "lake_stream")
    made = twelve(arguments(lake, "s/one", attrs={"title": "One", "tags": ["a"]}))
    declared = {"name": "s/one", "policy": "raw", "start": 0, "attrs": {"title": "One", "tags": ["a"]}}
    assert made[1]["diff"] == {"before": {}, "after": declared}
    assert (made[1]["stream"]["size"], made[1]["stream"]["final"]) == (0, False)

    lake.post(b"data", "raw", reference="s/one")
    assert run_module("lake_stream", arguments(lake, "s/one", attrs={"title": "One"}))["changed"] is False
    changed = twelve(arguments(lake, "s/one", attrs={"title": "Two", "owner": None}))
    attrs = {"title": "Two", "tags": ["a"], "owner": None}
    assert changed[1]["diff"] == {"before": declared, "after": declared | {"attrs": attrs}}
    assert lake.get("/streams/data", name="s/one").content == b"data"

    gone = twelve(arguments(lake, "s/one", state="absent"))
    assert gone[1]["diff"] == {"before": declared | {"attrs": attrs}, "after": {}}
    assert at(lake, "lake_stream", "s/one") is None


def test_its_beginning_is_forgotten_by_whole_chunks(lake: Any, run_module: Module) -> None:
    for part in (b"first", b"second", b"third"):
        lake.post(part, "raw", reference="s/cut")
    done = twelve_of(run_module, "lake_stream")(arguments(lake, "s/cut", keep_from=8))
    assert (done[1]["diff"]["before"]["start"], done[1]["diff"]["after"]["start"]) == (0, 5)
    found = at(lake, "lake_stream", "s/cut")
    assert found
    assert (found["start"], found["size"]) == (5, 16)
    assert lake.get("/streams/data", name="s/cut").content == b"secondthird"
    wrong = run_module("lake_stream", arguments(lake, "s/cut", keep_from=99))
    assert "before: 99, expected at most its size 16" in wrong["msg"]
    fresh = run_module("lake_stream", arguments(lake, "s/fresh", keep_from=8))
    assert (fresh["changed"], fresh["stream"]["start"]) == (True, 0)


def test_a_stream_of_another_policy_fails_and_stays(lake: Any, run_module: Module) -> None:
    run_module("lake_stream", arguments(lake, "s/other", attrs={"x": 1}))
    for check in (True, False):
        done = run_module("lake_stream", arguments(lake, "s/other", policy="wav", attrs={"x": 2}), check)
        assert (done["status"], done["field"]) == (409, "policy")
        assert "policy: wav, expected raw" in done["msg"]
    assert at(lake, "lake_stream", "s/other")["attrs"] == {"x": 1}  # type: ignore[index]
    system = run_module("lake_stream", arguments(lake, "~minmax/x"))
    assert system["status"] == 400


# transformations

COLUMNS = {"columns": [{"name": "value", "dtype": "float64"}]}


def test_a_transformation_in_twelve_steps(lake: Any, run_module: Module) -> None:
    twelve = twelve_of(run_module, "lake_transformation")
    lake.post(b'{"value": 1.5}\n', "raw", reference="rows/a")
    more = {"function": "jsonl", "source": {"pattern": "rows/.+"}, "output": "made/{name}", "options": COLUMNS}
    first = arguments(lake, "rows", **more)
    assert run_module("lake_transformation", first, check=True)["changed"] is True
    assert at(lake, "lake_transformation", "rows") is None
    made = twelve(first)
    document = Transformation(source=Source("stream", None, "rows/.+")).document()
    declared = document | more | {"on": "chunk", "source": {"kind": "stream", "policy": None, "pattern": "rows/.+"}}
    assert made[1]["diff"] == {"before": {}, "after": declared}
    assert made[1]["transformation"]["revision"] == 1
    making.wait_for(lambda: lake.get("/arrays/meta", name="made/rows/a").ok, "its output")
    assert lake.get("/arrays/meta", name="made/rows/a").json()["shape"] == [1]

    changed = twelve(first | {"output": "other/{name}", "attempts": 2, "timeout_seconds": 7.5, "paused": True})
    after = declared | {"output": "other/{name}", "attempts": 2, "timeout_seconds": 7.5, "paused": True}
    assert changed[1]["diff"] == {"before": declared, "after": after}
    # what is not said of its rest leaves it at that
    assert run_module("lake_transformation", first)["transformation"]["paused"] is True
    assert run_module("lake_transformation", first | {"paused": False})["changed"] is True

    gone = twelve(arguments(lake, "rows", state="absent"))
    assert gone[1]["diff"] == {"before": declared, "after": {}}
    assert at(lake, "lake_transformation", "rows") is None
    assert lake.get("/arrays/meta", name="made/rows/a").ok, "what it made stays"


def test_code_of_its_own(lake: Any, run_module: Module) -> None:
    code = "def transform(batch, output, state):\n    output.append(bytes(batch.data).upper())\n"
    given = arguments(lake, "upper", code=code, source={"pattern": "spoken/.+"}, output="loud/{name}")
    made = twelve_of(run_module, "lake_transformation")(given)
    assert made[1]["transformation"]["code"] == code
    lake.post(b"quiet", "raw", reference="spoken/a")
    making.wait_for(lambda: lake.get("/streams/data", name="loud/spoken/a").content == b"QUIET", "its output")


@pytest.mark.parametrize(
    ("more", "message", "field"),
    [
        ({"function": "nope"}, "key function: 'nope', expected one of ", "function"),
        ({}, "key function: None, expected either function or code", "function"),
        ({"function": "jsonl", "options": {}}, "key options: options, key columns: missing", "options"),
        ({"function": "wav", "output": "~x"}, "key output: '~x', expected a name that does not begin with ~", "output"),
        ({"function": "wav", "source": {"pattern": "("}}, "key pattern: '(', expected a regular expression", None),
        ({"function": "wav", "source": {"kind": "array"}}, "key on: end, expected chunk for arrays", "on"),
        (
            {"function": "wav", "scheduler": "nowhere"},
            "key scheduler: 'nowhere', expected tcp://host:port",
            "scheduler",
        ),
    ],
)
def test_a_wrong_transformation_is_named(
    lake: Any, run_module: Module, more: dict[str, Any], message: str, field: str | None
) -> None:
    for check in (True, False):
        done = run_module("lake_transformation", arguments(lake, "wrong", source={}) | more, check)
        assert message in done["msg"]
        assert (done["status"], done["field"]) == (400, field or done["field"])
    assert at(lake, "lake_transformation", "wrong") is None


def test_transformations_have_the_services_keys() -> None:
    module = modules("lake_transformation")
    assert set(module.DOCUMENT) == set(Transformation(source=Source("stream")).document())
    assert set(module.SOURCE) == {one.name for one in fields(Source)}


# both


@pytest.mark.parametrize("name", ["lake_policy", "lake_stream"])
def test_payloads_come_back_byte_for_byte(lake: Any, run_module: Module, tmp_path: Path, name: str) -> None:
    for key, text in payloads(tmp_path / "canary").items():
        if name == "lake_policy":
            # braces are the policy's own signs
            given = arguments(lake, f"p.{key}", title=text)
            assert run_module(name, given)["policy"]["title"] == text
        else:
            given = arguments(lake, f"payload {key}", attrs={text: [text]})
            assert run_module(name, given)["stream"]["attrs"] == {text: [text]}
        assert run_module(name, given)["changed"] is False
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["lake_policy", "lake_stream", "lake_token", "lake_transformation"])
def test_documentation_has_the_options(name: str) -> None:
    check_documentation(modules(name))
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    assert name in runtime["action_groups"]["lake"]
    examples = yaml.safe_load(modules(name).EXAMPLES)
    for example in examples:
        assert set(example[f"clachan.platform.{name}"]) <= set(modules(name).OPTIONS)


@pytest.mark.parametrize("name", ["lake_policy", "lake_stream", "lake_transformation", "lake_token"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"token": "wrong-wrong"}, "credentials: none or wrong, expected the lake's token"),
        ({"url": "lake.example"}, "lake's url: 'lake.example', expected http://HOST:PORT or https://HOST:PORT"),
        ({"url": "http://127.0.0.1:1"}, "lake http://127.0.0.1:1: no answer ("),
    ],
)
def test_what_is_wrong_is_named(
    lake: Any, run_module: Module, tmp_path: Path, name: str, more: dict[str, Any], message: str
) -> None:
    given = arguments(lake, "wrong") | more
    if name == "lake_token":
        given |= {"note": given.pop("name"), "scopes": ["read"], "dest": str(tmp_path / "token")}
    for check in (True, False):
        done = run_module(name, given, check)
        assert message in done["msg"]
        assert making.TOKEN not in json.dumps(done)
    assert list(tmp_path.iterdir()) == []


# tokens


def token_arguments(lake: Any, note: str, dest: Path, **more: Any) -> dict[str, Any]:
    return {"url": lake.url, "token": making.TOKEN, "note": note, "dest": str(dest), **more}


def may(lake: Any, token: str, method: str, path: str) -> int:
    answer = requests.request(
        method, lake.url + path, headers={"Authorization": f"Bearer {token}"}, data=b"x", timeout=9
    )
    return answer.status_code


def test_a_token_in_twelve_steps(lake: Any, run_module: Module, tmp_path: Path) -> None:
    dest = tmp_path / "token"
    twelve = twelve_of(run_module, "lake_token")
    made = twelve(token_arguments(lake, "of a sender", dest, scopes=["read", "ingest:raw"]))
    assert made[1]["diff"] == {"before": {"tokens": []}, "after": {"tokens": [{"scopes": ["ingest:raw", "read"]}]}}
    assert "id" not in made[0]
    assert made[1]["id"] == made[2]["id"]
    first = dest.read_text().strip()
    assert stat.S_IMODE(dest.stat().st_mode) == 0o600
    assert first not in json.dumps(made)
    assert may(lake, first, "POST", "/ingest/raw?reference=t") == 204
    assert may(lake, first, "DELETE", "/streams/meta?name=t") == 403

    changed = twelve(token_arguments(lake, "of a sender", dest, scopes=["ingest:raw"]))
    assert changed[1]["revoked"] == [made[1]["id"]]
    second = dest.read_text().strip()
    assert may(lake, first, "POST", "/ingest/raw?reference=t") == 401
    assert may(lake, second, "GET", "/streams") == 403
    assert may(lake, second, "POST", "/ingest/raw?reference=t") == 204

    gone = twelve(token_arguments(lake, "of a sender", dest, state="absent"))
    assert gone[1]["revoked"] == [changed[1]["id"]]
    assert may(lake, second, "POST", "/ingest/raw?reference=t") == 401


def test_a_token_whose_file_is_gone_is_made_again(lake: Any, run_module: Module, tmp_path: Path) -> None:
    given = token_arguments(lake, "lost", tmp_path / "token", scopes=["read"], seconds=3600)
    first = run_module("lake_token", given)
    old = (tmp_path / "token").read_text().strip()
    (tmp_path / "token").unlink()
    second = run_module("lake_token", given)
    assert (second["changed"], second["revoked"]) == (True, [first["id"]])
    assert may(lake, old, "GET", "/streams") == 401
    other = run_module("lake_token", token_arguments(lake, "another", tmp_path / "b", scopes=["read"]))
    assert (other["changed"], other["revoked"]) == (True, [])
    assert run_module("lake_token", given)["changed"] is False


def test_a_token_that_cannot_be_written_is_none(lake: Any, run_module: Module, tmp_path: Path) -> None:
    given = token_arguments(lake, "nowhere", tmp_path / "none" / "token", scopes=["read"])
    assert "No such file or directory, expected a file that can be written" in run_module("lake_token", given)["msg"]
    items = lake.get("/tokens", limit=500).json()["items"]
    assert [one["revoked"] is None for one in items if one["note"] == "nowhere"] in ([], [False])
    for missing, message in [("scopes", "option scopes: missing"), ("dest", "option dest: missing")]:
        wrong = {key: value for key, value in given.items() if key != missing}
        assert message in run_module("lake_token", wrong)["msg"]
    wrong = run_module("lake_token", token_arguments(lake, "x", tmp_path / "token", scopes=["everything"]))
    assert (wrong["status"], wrong["field"]) == (400, "scopes")
    assert list(tmp_path.iterdir()) == []


PLAY = """
- hosts: localhost
  gather_facts: false
  module_defaults:
    group/clachan.platform.lake:
      url: "{{ url }}"
      token: "{{ lookup('ansible.builtin.env', 'LAKE_TOKEN') }}"
  tasks:
    - clachan.platform.lake_policy: {name: played, pattern: 'p/(?P<n>[a-z]+)', target: 'played/{n}', attrs: {n: '{n}'}}
    - clachan.platform.lake_stream: {name: played/x, policy: played, attrs: {title: "{{ title }}"}}
    - clachan.platform.lake_transformation:
        name: played
        function: jsonl
        source: {policy: played}
        output: 'rows/{name}'
        options: {columns: [{name: value, dtype: float64}]}
    - clachan.platform.lake_token: {note: played, scopes: ['ingest:played'], dest: "{{ dest }}"}
"""


@pytest.mark.slow
def test_in_a_play(lab: Lab, lake: Any, tmp_path: Path) -> None:
    """A group's defaults, values that look like templates, no secret in what is printed."""
    (lab.directory / "play.yml").write_text(PLAY)
    dest = tmp_path / "sender.token"
    command = [str(BIN / "ansible-playbook"), "-i", "localhost,", "-c", "local", "play.yml", "-vvv", "--diff"]
    variables = {
        "ansible_python_interpreter": str(BIN / "python"),
        "url": lake.url,
        "dest": str(dest),
        "title": "A {n}",
    }
    command += ["-e", json.dumps(variables)]
    done = [run(command, lab.directory, lab.environment | {"LAKE_TOKEN": making.TOKEN}) for _ in range(2)]
    assert [one.recap().get("localhost", {}).get("changed") for one in done] == [4, 0], done[0].all
    sender = dest.read_text().strip()
    assert not [text for text in (making.TOKEN, sender) for one in done if text in one.all]
    assert lake.stream("played/x")["attrs"] == {"title": "A {n}"}
    assert may(lake, sender, "POST", "/ingest/played?reference=p/x") == 204
