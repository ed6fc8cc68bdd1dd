"""What the service's settings say of policies and transformations, at each start."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.ingest.config import Config, load
from clachan_lake.ingest.defaults import declare
from clachan_lake.local import LocalLake

COLUMNS = {"columns": [{"name": "value", "dtype": "float64"}]}
MEASURED = {"name": "measured", "function": "jsonl", "source": {"kind": "stream", "policy": "logs"}, "options": COLUMNS}


def settings(directory: Path, **more: Any) -> Config:
    given = {
        "folder": str(directory / "lake"),
        "socket": str(directory / "s"),
        "token_file": str(directory / "t"),
        **more,
    }
    (directory / "serve.json").write_text(json.dumps(given))
    return load(directory / "serve.json")


def test_what_is_said_holds_at_each_start(lake: LocalLake, tmp_path: Path) -> None:
    logs = {"name": "logs", "pattern": r"(?P<host>\w+)/.+", "target": "logs/{tag}", "keep_bytes": 100, "title": None}
    config = settings(
        tmp_path,
        policies=[{"name": "raw"}, {"name": "wav", "transformation": "wav"}, logs],
        transformations=[MEASURED],
    )
    declare(lake, config)
    assert set(lake.policies) == {"raw", "wav", "logs"}
    assert lake.policies["logs"]["name"] == "logs/{tag}"
    assert (lake.policies["logs"]["keep_bytes"], lake.policies["logs"]["title"]) == (100, "")
    assert set(lake.transformations) == {"wav", "measured"}
    assert lake.transformations["wav"]["source"]["policy"] == "wav"
    with lake.transaction():
        lake.policies.declare("raw", title="changed by hand")
        lake.policies.declare("logs", title="changed by hand")
        lake.transformations.declare(
            "wav", function="wav", source={"kind": "stream", "policy": "wav"}, output="a/{name}"
        )
        lake.transformations.declare("measured", **{**_keys(MEASURED), "output": "other/{name}", "paused": True})
        lake.policies.declare("mine", title="mine")
    declare(lake, config)
    # of the first two no more is said than that they are there
    assert lake.policies["raw"]["title"] == "changed by hand"
    assert lake.transformations["wav"]["output"] == "a/{name}"
    assert (lake.policies["logs"]["title"], lake.policies["logs"]["keep_bytes"]) == ("", 100)
    assert lake.transformations["measured"]["output"] == "{name}"
    assert lake.transformations["measured"]["paused"] is True, "nothing is said of its rest"
    assert "mine" in lake.policies


def test_a_start_that_changes_nothing_commits_nothing(lake: LocalLake, tmp_path: Path) -> None:
    config = settings(tmp_path, policies=[{"name": "logs", "keep_bytes": 9}], transformations=[MEASURED])
    declare(lake, config)
    before = lake.tid
    declare(lake, config)
    lake.refresh()
    assert lake.tid == before


def test_a_transformation_that_is_said_takes_the_place_of_the_policys(lake: LocalLake, tmp_path: Path) -> None:
    wav = {"name": "wav", "function": "wav", "source": {"kind": "stream", "policy": "wav"}, "output": "sounds/{name}"}
    declare(lake, settings(tmp_path, policies=[{"name": "wav", "transformation": "wav"}], transformations=[wav]))
    assert list(lake.transformations) == ["wav"]
    assert lake.transformations["wav"]["output"] == "sounds/{name}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tokens": "x"}, "key tokens: 'x', expected a list of objects with file and scopes"),
        ({"tokens": [{"file": "f"}]}, "key tokens: token 0, key scopes: missing, expected a value"),
        ({"tokens": [{"file": "f", "scopes": []}]}, "key scopes: [], expected a list of scopes"),
        ({"tokens": [{"file": "f", "scopes": ["root"]}]}, "key scopes: 'root', expected admin, write"),
        ({"policies": {}}, "key policies: {}, expected a list of objects, each with another name of a policy"),
        ({"policies": ["raw"]}, "key policies: 'raw', expected a list of objects"),
        (
            {"policies": [{"name": "a"}, {"name": "a"}]},
            "key policies: {'name': 'a'}, expected a list of objects, each with an",
        ),
        ({"policies": [{"name": "a b"}]}, "key policies: policy name: 'a b', expected 1-100 letters"),
        ({"policies": [{"name": "a", "pattern": "("}]}, "key policies: policy a, key pattern: '(', expected a regular"),
        (
            {"policies": [{"name": "a", "pattern": "a", "x": 1}]},
            "key policies: policy a, key x: unknown, expected one of",
        ),
        (
            {"policies": [{"name": "a", "transformation": "mp3"}]},
            "policy a, key transformation: 'mp3', expected none or wav",
        ),
        ({"transformations": [{"function": "wav"}]}, "expected a list of objects, each with another name of a transf"),
        (
            {"transformations": [{"name": "t", "function": "wav"}]},
            "key transformations: transformation t, key source: miss",
        ),
        (
            {"transformations": [MEASURED | {"options": {}}]},
            "transformation measured, key options: options, key columns",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        settings(tmp_path, **more)
    assert str(caught.value).startswith(f"file {tmp_path}/serve.json, key ")


def _keys(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != "name"}
