"""Transformations in one process: what is declared, what is run on what, and what becomes of what fails."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.errors import MissingError, TakenError, TransactionError
from clachan_lake.local import LocalLake
from clachan_lake.transform import sources
from clachan_lake.transform.engine import Engine
from clachan_lake.transform.worker import run_pending

from .transforming import LINES, STREAMS, at, declare, feed, letters

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "transformation t, key source: missing, expected a value"),
        ({"source": STREAMS}, "transformation t, key function: None, expected either function or code"),
        ({"source": STREAMS, "function": "wav", "code": "x"}, "key function: 'wav', expected either function or code"),
        ({"source": STREAMS, "function": "nope"}, "key function: 'nope', expected one of wav, minmax, csv, jsonl"),
        ({"source": STREAMS, "function": "a.b"}, "key function: 'a.b', expected one of"),
        ({"source": STREAMS, "function": "os:system; x"}, "expected one of"),
        ({"source": STREAMS, "code": ""}, "key code: '', expected Python source of at most 262144 bytes"),
        ({"source": STREAMS, "code": "x" * 300_000}, "expected Python source of at most 262144 bytes"),
        ({"source": "x", "code": "x"}, "key source: source: str, expected an object"),
        ({"source": {"kind": "table"}, "code": "x"}, "key kind: 'table', expected stream or array"),
        ({"source": {"kind": "stream", "x": 1}, "code": "x"}, "key x: unknown, expected one of kind, policy, pattern"),
        (
            {"source": {"kind": "stream", "pattern": "("}, "code": "x"},
            "key pattern: '(', expected a regular expression",
        ),
        ({"source": {"kind": "array", "policy": "p"}, "code": "x"}, "policy 'p', expected null for arrays"),
        ({"source": {"kind": "array"}, "function": "csv"}, "key source: kind array, expected stream for csv"),
        ({"source": STREAMS, "function": "minmax"}, "key source: kind stream, expected array for minmax"),
        ({"source": STREAMS, "function": "wav", "on": "chunk"}, "key on: chunk, expected end for wav"),
        ({"source": {"kind": "array"}, "code": "x", "on": "end"}, "key on: end, expected chunk for arrays"),
        ({"source": STREAMS, "code": "x", "on": "now"}, "key on: 'now', expected chunk or end"),
        ({"source": STREAMS, "code": "x", "output": "~x"}, "key output: '~x', expected a name that does not begin"),
        ({"source": STREAMS, "code": "x", "output": "{tag}"}, "key output: '{tag}', expected no other braces"),
        ({"source": STREAMS, "code": "x", "output": "a\nb"}, "output name: 'a\\nb', expected 1-1024 bytes of print"),
        ({"source": STREAMS, "code": "x", "options": []}, "key options: [], expected an object"),
        ({"source": STREAMS, "function": "jsonl"}, "key options: options, key columns: missing, expected a value"),
        ({"source": STREAMS, "code": "x", "from": "then"}, "key from: 'then', expected start or now"),
        ({"source": STREAMS, "code": "x", "from_": "now"}, "key from_: unknown, expected from"),
        ({"source": STREAMS, "code": "x", "attempts": 0}, "key attempts: 0, expected a whole number from 1 to 100"),
        ({"source": STREAMS, "code": "x", "timeout_seconds": 0}, "key timeout_seconds: 0, expected a number above 0"),
        ({"source": STREAMS, "code": "x", "paused": 1}, "key paused: 1, expected true or false"),
        ({"source": STREAMS, "code": "x", "scheduler": "http://x"}, "key scheduler: 'http://x', expected tcp://host"),
        ({"source": STREAMS, "code": "x", "after": 1}, "key after: unknown, expected one of source, function, code"),
        (
            {"source": {"kind": "array"}, "function": "minmax", "scheduler": "tcp://h:1"},
            "key scheduler: expected none for minmax",
        ),
    ],
)
def test_what_is_wrong_with_a_document_is_named(lake: LocalLake, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught, lake.transaction():
        lake.transformations.declare("t", **keys)
    assert message in str(caught.value)
    assert list(lake.transformations) == []


@pytest.mark.parametrize("name", ["", "~x", "a\nb", "x" * 2000])
def test_names_that_cannot_be(lake: LocalLake, name: str) -> None:
    with pytest.raises((TakenError, ValueError)), lake.transaction():
        lake.transformations.declare(name, source=STREAMS, code="x")


def test_declaring_again_changes_only_what_is_another(lake: LocalLake) -> None:
    with lake.transaction():
        assert lake.transformations.declare("t", source=STREAMS, code="x")
        assert not lake.transformations.declare("t", source=STREAMS, code="x")
        assert lake.transformations.pause("t")
        assert not lake.transformations.pause("t")
        assert not lake.transformations.declare("t", source=STREAMS, code="x")
        assert lake.transformations["t"]["paused"]
        assert lake.transformations.resume("t")
        assert lake.transformations.declare("t", source=STREAMS, code="y")
    assert lake.transformations.describe("t")["revision"] == 4
    with pytest.raises(TransactionError):
        lake.transformations.declare("t", source=STREAMS, code="z")
    for call in (lake.transformations.delete, lake.transformations.retry, lake.transformations.describe):
        with pytest.raises(MissingError, match="transformations, 'nope': none of this name"), lake.transaction():
            call("nope")
    with pytest.raises(MissingError, match="transformation t, source 'nope': none that it follows"), lake.transaction():
        lake.transformations.backfill("t", "nope")


def test_chunks_come_in_order_with_the_state_that_was_left(lake: LocalLake) -> None:
    declare(lake, LINES)
    feed(lake, b"1\n2", b"2\n3\n")
    assert run_pending(lake) == 1
    feed(lake, b"4", b"5\n")
    assert run_pending(lake) == 1
    assert lake.arrays["x.out"][:].tolist() == [1, 22, 3, 45]
    assert at(lake)["position"] == lake.streams["x"].size
    (described,) = lake.streams["x"].describe()["transformations"]
    assert (described["name"], described["lag_bytes"], described["output"]) == ("t", 0, "x.out")
    assert dict(lake.arrays["x.out"].attrs) == {"source": "x", "source_kind": "stream", "transformation": "t"}
    assert run_pending(lake) == 0


def test_small_chunks_come_together_and_long_ones_in_parts(lake: LocalLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BATCH_BYTES", 100)
    monkeypatch.setattr(sources, "PART_BYTES", 250)
    code = """
        import numpy as np
        def transform(batch, output, state):
            sizes = [batch.start, batch.stop, len(batch.chunks), sum(map(len, batch.chunks))]
            output.append(np.array([sizes]))
            output.append(batch.data, "copy")
    """
    declare(lake, code)
    feed(lake, b"a" * 40, b"b" * 40, b"c" * 40, b"d" * 600, b"e")
    run_pending(lake)
    assert lake.arrays["x.out"][:].tolist() == [
        [0, 80, 2, 80],
        [80, 120, 1, 40],
        [120, 370, 1, 250],
        [370, 620, 1, 250],
        [620, 720, 1, 100],
        [720, 721, 1, 1],
    ]
    assert lake.streams["copy"].read() == lake.streams["x"].read()
    assert lake.streams["copy"].attrs["source"] == "x"


def test_sources_by_kind_policy_and_pattern(lake: LocalLake) -> None:
    code = "def transform(batch, output, state): output.append(b'seen')"
    declare(lake, code, "old", source={"kind": "stream", "policy": "logs", "pattern": "a.*"}, output="{name}.old")
    for name, policy in (("a1", "logs"), ("b1", "logs"), ("a2", "raw")):
        with lake.transaction():
            lake.streams.create(name, policy).append(b"x")
    declare(lake, code, "new", source={"kind": "stream", "policy": "logs"}, output="{name}.new")
    run_pending(lake)
    made = sorted(name for name in lake.streams if "." in name)
    assert made == ["a1.new", "a1.old", "b1.new"]
    # other sources now: those it no longer follows are forgotten, those that it follows stay where they are
    declare(lake, code, "new", source={"kind": "stream", "pattern": "a2|b1"}, output="{name}.new")
    assert run_pending(lake) == 1
    assert sorted(name for name in lake.streams if ".new" in name) == ["a1.new", "a2.new", "b1.new"]
    assert [one["source"] for one in lake.transformations.positions("new")] == ["a2", "b1"]


def test_from_now_on(lake: LocalLake) -> None:
    feed(lake, b"1\n")
    declare(lake, LINES, **{"from": "now"})
    feed(lake, b"2\n")
    with lake.transaction():
        lake.arrays.create("a", (3,), "i4")
    declare(
        lake,
        "def transform(batch, output, state): output.append(batch.rows * 2)",
        "double",
        source={"kind": "array", "pattern": "a"},
        **{"from": "now"},
    )
    with lake.transaction():
        lake.arrays["a"].append([5, 6])
    run_pending(lake)
    assert lake.arrays["x.out"][:].tolist() == [2]
    assert lake.arrays["a.out"][:].tolist() == [10, 12]


def test_rows_of_an_array_and_what_it_was_changed_to(lake: LocalLake) -> None:
    declare(
        lake,
        "def transform(batch, output, state): output.append(batch.rows.sum(axis=1), attrs={'of': batch.start})",
        source={"kind": "array"},
    )
    with lake.transaction():
        lake.arrays.create("a", (0, 2), "i4").append([[1, 2], [3, 4]])
    assert run_pending(lake) == 1
    with lake.transaction():
        lake.arrays["a"].append([[5, 6]])
    assert run_pending(lake) == 1
    assert lake.arrays["a.out"][:].tolist() == [3, 7, 11]
    assert lake.arrays["a.out"].attrs["of"] == 2
    with lake.transaction():
        lake.arrays["a"][0] = [10, 10]
    run_pending(lake)
    assert lake.arrays["a.out"][:].tolist() == [20, 7, 11]
    with lake.transaction():
        lake.arrays["a"].resize(1, 2)
    run_pending(lake)
    assert lake.arrays["a.out"][:].tolist() == [20]
    assert list(lake.arrays) == ["a", "a.out"]  # its own output is no source


def test_one_output_of_many_sources(lake: LocalLake) -> None:
    declare(lake, LINES, output="all")
    for name in ("b", "a"):
        feed(lake, b"1\n2\n", name=name)
        run_pending(lake)
    assert lake.arrays["all"][:].tolist() == [1, 2, 1, 2]
    assert lake.arrays["all"].attrs["sources"] == ["b", "a"]
    message = r"array 'all': made of 'a' and 1 others, expected a back-fill of all sources"
    with pytest.raises(ValueError, match=message), lake.transaction():
        lake.transformations.backfill("t", "a")
    with lake.transaction():
        assert lake.transformations.backfill("t") == 2
    run_pending(lake)
    assert sorted(lake.arrays["all"][:].tolist()) == [1, 1, 2, 2]


def test_at_the_end_the_whole_stream(lake: LocalLake) -> None:
    code = """
        import numpy as np
        def transform(batch, output, state):
            output.append(np.array([len(batch.chunks), *map(len, batch.chunks), batch.read(1, 3)[0]]))
            output.warn("<i>" + str(batch.final))
    """
    declare(lake, code, on="end")
    feed(lake, b"abc", b"de")
    assert run_pending(lake) == 0
    feed(lake, b"f", final=True)
    assert run_pending(lake) == 1
    assert lake.arrays["x.out"][:].tolist() == [3, 3, 2, 1, ord("b")]
    assert (at(lake)["state"], at(lake)["warnings"]) == ("done", ["<i>True"])
    # once is enough
    made = lake.arrays["x.out"].history()[0].id
    assert not Engine(lake).step(("stream", "x", "t"))
    assert lake.arrays["x.out"].history()[0].id == made
    with lake.transaction():
        lake.arrays["x.out"].attrs["title"] = "Lengths"
    # what it made is made anew when the stream goes on and ends again, but for what people say of it
    feed(lake, b"g", final=True)
    assert run_pending(lake) == 1
    assert lake.arrays["x.out"][:].tolist() == [4, 3, 2, 1, 1, ord("b")]
    assert lake.arrays["x.out"].attrs["title"] == "Lengths"


def test_the_end_gives_out_what_was_left(lake: LocalLake) -> None:
    code = """
        def transform(batch, output, state):
            output.append(str([batch.data, batch.final]).encode())
    """
    declare(lake, code)
    feed(lake, b"a")
    run_pending(lake)
    feed(lake, final=True)
    run_pending(lake)
    assert lake.streams["x.out"].read() == b"[b'a', False][b'', True]"
    assert lake.streams["x.out"].final
    assert at(lake)["state"] == "done"
    feed(lake, b"b", final=True)
    run_pending(lake)
    assert lake.streams["x.out"].read().endswith(b"[b'b', True]")


def test_what_was_truncated_before_it_was_read_is_a_gap(lake: LocalLake) -> None:
    declare(
        lake, "def transform(batch, output, state): output.append(str([batch.start, batch.gap]).encode())", paused=True
    )
    feed(lake, b"aaa", b"bbb")
    with lake.transaction():
        lake.streams["x"].truncate(3)
        lake.transformations.resume("t")
    run_pending(lake)
    assert lake.streams["x.out"].read() == b"[3, True]"
    assert at(lake)["position"] == 6


def test_what_two_make_of_each_other_ends(lake: LocalLake) -> None:
    code = "def transform(batch, output, state): output.append(batch.data)"
    declare(lake, code, "a", output="{name}.a", attempts=1)
    declare(lake, code, "b", output="{name}.b", attempts=1)
    feed(lake, b"1")
    run_pending(lake)
    assert sorted(lake.streams) == ["x", "x.a", "x.a.b", "x.b", "x.b.a"]
    reasons = {one["reason"] for one in letters(lake)}
    assert reasons == {
        f"stream {name!r}: of what this transformation made itself, expected another source"
        for name in ("x.a.b.a", "x.b.a.b")
    }


def test_backfill_makes_everything_again_once(lake: LocalLake) -> None:
    declare(lake, LINES)
    feed(lake, b"1\n2\n3")
    run_pending(lake)
    declare(lake, LINES.replace("int(line)", "2 * int(line)"))
    feed(lake, b"\n")
    run_pending(lake)
    assert lake.arrays["x.out"][:].tolist() == [1, 2, 6]
    with lake.transaction():
        assert lake.transformations.backfill("t", "x") == 1
    assert "x.out" not in lake.arrays
    assert at(lake)["lag_bytes"] == 6
    run_pending(lake)
    assert lake.arrays["x.out"][:].tolist() == [2, 4, 6]


def test_progress_and_lag_are_seen(lake: LocalLake) -> None:
    declare(lake, LINES, paused=True)
    feed(lake, b"1\n", b"2\n")
    found = lake.transformations.describe("t")
    assert (found["sources"], found["lag_bytes"], found["troubled"], found["dead"]) == (1, 4, 0, 0)
    assert 0 <= found["lag_seconds"] < 60
    assert (at(lake)["state"], at(lake)["size"]) == ("paused", 4)
    with lake.transaction():
        lake.transformations.resume("t")
    run_pending(lake)
    found = lake.transformations.describe("t")
    assert (found["lag_bytes"], found["lag_seconds"]) == (0, 0)


def test_rows_are_not_to_be_written(lake: LocalLake) -> None:
    declare(lake, "def transform(batch, output, state): batch.rows[0] = 5", source={"kind": "array"}, attempts=1)
    with lake.transaction():
        lake.arrays.create("a", (3,), "i4")
    run_pending(lake)
    assert at(lake, source="a")["message"] == "ValueError: assignment destination is read-only"
    assert np.array_equal(lake.arrays["a"][:], [0, 0, 0])


def test_the_documents_function_does_what_is_said(lake: LocalLake) -> None:
    section = DOCUMENT.read_text().partition("\n### Your own\n")[2].partition("\n### ")[0]
    code, declaration = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    with lake.transaction():
        exec(declaration, {"lake": lake, "code": code})
    feed(lake, b"1.5\n2", b".5\n", name="wind/north", final=True)
    run_pending(lake)
    assert lake.arrays["wind/north"][:].tolist() == [1.5, 2.5]
    assert lake.arrays["wind/north"].units == "m/s"
    assert lake.streams["log"].read() == b"wind/north ended\n"
