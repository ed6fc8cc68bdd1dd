"""Transformations that fail, or are changed while they run: what is tried again, given up or thrown away."""

import json
import textwrap
from typing import Any

import pytest
from clachan_lake.local import LocalLake
from clachan_lake.transform import document, engine, position
from clachan_lake.transform.calling import Caller
from clachan_lake.transform.engine import Engine
from clachan_lake.transform.worker import run_pending

from .transforming import LINES, STREAMS, at, declare, feed, letters


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the clock of retries says."""
    moment = [1_000_000]
    monkeypatch.setattr(position, "now", lambda: moment[0])
    return moment


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("np.zeros((2, 3), 'i8')", "output x.out: rows of int64, shape (2, 3), expected int64, shape (n)"),
        ("np.zeros(2, 'f8')", "output x.out: rows of float64, shape (2,), expected int64, shape (n)"),
        ("np.array([object()])", "output x.out: object of shape (1,), expected bytes, or rows of numbers"),
        ("5", "output x.out: int64 of shape (), expected bytes, or rows of numbers"),
        ("None", "output x.out: object of shape (), expected bytes, or rows of numbers"),
        ("np.zeros(1), '~mine'", "output '~mine': expected a name that does not begin with ~"),
        ("np.zeros(1), 'taken'", "array 'taken': exists, expected a free name or what this transformation made"),
        ("b'x', 'x'", "stream 'x': exists, expected a free name or what this transformation made"),
        ("np.zeros(1), 'a' * 2000", "output name: 'aaa"),
    ],
)
def test_what_cannot_be_added_is_named_and_nothing_is_kept(lake: LocalLake, given: str, message: str) -> None:
    with lake.transaction():
        lake.arrays.create("taken", (1,), "f8")
    code = f"""
        import numpy as np
        def transform(batch, output, state):
            output.append(np.array([1], "i8"))
            state["ran"] = True
            if b"bad" in batch.data:
                output.append({given})
    """
    declare(lake, code, attempts=1)
    feed(lake, b"good")
    run_pending(lake)
    feed(lake, b"bad")
    run_pending(lake)
    assert lake.arrays["x.out"][:].tolist() == [1]
    assert lake.arrays["taken"][:].tolist() == [0]
    assert message in at(lake)["message"]
    assert [one["reason"][:20] for one in letters(lake)] == [at(lake)["message"][:20]]


def test_what_raises_is_tried_again_then_a_dead_letter(lake: LocalLake, now: list[int]) -> None:
    code = """
        import numpy as np
        def transform(batch, output, state):
            output.append(np.array([batch.start]))
            if b"bad" in batch.data:
                raise RuntimeError("<b>no</b>")
    """
    declare(lake, code, attempts=3)
    feed(lake, b"one", b"bad", b"two")
    # the three together; then each by itself
    assert run_pending(lake) == 1
    assert lake.arrays["x.out"][:].tolist() == [0]
    found = at(lake)
    assert (found["state"], found["failures"], found["position"]) == ("retrying", 1, 3)
    assert (found["message"], found["next_try"]) == ("RuntimeError: <b>no</b>", now[0] + 1000)
    assert run_pending(lake) == 0
    now[0] += 1000
    assert run_pending(lake) == 0
    assert at(lake)["next_try"] == now[0] + 2000
    now[0] += 2000
    assert run_pending(lake) == 1
    assert lake.arrays["x.out"][:].tolist() == [0, 6]
    assert letters(lake)[0] | {"created": 0} == {
        "kind": "transformation",
        "transformation": "t",
        "source": "x",
        "source_kind": "stream",
        "position": 3,
        "length": 3,
        "reason": "RuntimeError: <b>no</b>",
        "content_type": "",
        "created": 0,
    }
    assert (at(lake)["dead"], at(lake)["position"], at(lake)["state"]) == (1, 9, "waiting")
    # mended, it is done after all, behind what came since
    declare(lake, code.replace("bad", "worse"))
    with lake.transaction():
        assert lake.transformations.retry("t") == 1
    assert run_pending(lake) == 1
    assert (lake.arrays["x.out"][:].tolist(), letters(lake), at(lake)["dead"]) == ([0, 6, 3], [], 0)
    with lake.transaction():
        assert lake.transformations.retry("t") == 0


def test_a_letter_that_fails_again_stays(lake: LocalLake) -> None:
    declare(lake, "def transform(batch, output, state): raise ValueError('never')", attempts=1)
    feed(lake, b"x")
    run_pending(lake)
    with lake.transaction():
        lake.transformations.retry("t", "x")
    assert run_pending(lake) == 0
    assert len(letters(lake)) == 1
    assert at(lake)["message"].endswith("ValueError: never")
    assert list(lake.root()["due"]) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def transform(batch, output, state): sys.exit(1)\nimport sys", "SystemExit: 1"),
        ("def transform(batch): pass", "TypeError: transform() takes 1 positional argument but 3 were given"),
        ("def transform(batch, output, state): state['x'] = {1, 2}", "TypeError: Object of type set is not JSON"),
        ("def transform(batch, output, state): state['x'] = float('nan')", "ValueError: Out of range float values"),
        ("def transform(batch, output, state): state['x'] = 'y' * (40 << 20)", "state: 41943049 bytes of JSON"),
        ("def transform(batch, output, state): open('/nope/nope')", "FileNotFoundError: [Errno 2]"),
        ("def transform(batch, output, state): return (lambda f: f(f))(lambda f: f(f))", "RecursionError: maximum"),
        ("transform = 5", "transformation t: 5, expected a function"),
        ("x = 1", "transformation t, key code: expected that it defines transform(batch, output, state)"),
        ("def transform(", "SyntaxError: '(' was never closed"),
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
    ],
)
def test_what_a_function_may_do_wrong(lake: LocalLake, code: str, message: str) -> None:
    declare(lake, code, attempts=1)
    feed(lake, b"x")
    run_pending(lake)
    assert message in at(lake)["message"]
    assert (at(lake)["dead"], at(lake)["position"]) == (1, 1)


@pytest.mark.parametrize("function", ["nope.nope:f", "os:nope", "os.path:sep"])
def test_a_function_that_is_not_there(lake: LocalLake, function: str) -> None:
    with lake.transaction():
        lake.transformations.declare("t", function=function, source=STREAMS, attempts=1)
    feed(lake, b"x")
    run_pending(lake)
    assert "expected" in at(lake)["message"]


def test_content_that_is_wrong_is_not_tried_again(lake: LocalLake) -> None:
    options = {"columns": [{"name": "a", "dtype": "i4"}]}
    with lake.transaction():
        lake.transformations.declare("t", function="jsonl", source=STREAMS, output="{name}.out", options=options)
    feed(lake, b'{"a":1}\n{"a', b'":2}\nwrong\n{"a":', b"3}\n", b'{"a":4}\n')
    run_pending(lake)
    # the second chunk is given up, and with it the line that it cuts; what begins behind it is there
    assert lake.arrays["x.out"][:].tolist() == [(1,), (4,)]
    (letter,) = letters(lake)
    assert letter["reason"] == "line 1: b'wrong', expected JSON (JSON is malformed: invalid character (byte 0))"
    assert (letter["position"], letter["length"]) == (11, 16)


def test_the_disk_is_nobodys_failure(lake: LocalLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the function passes over what it was told."""
    code = """
        def transform(batch, output, state):
            try:
                output.append(b"x")
            except OSError:
                pass
    """
    declare(lake, code)
    feed(lake, b"x")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("clachan_lake.streams.stream.append", full)
        with pytest.raises(OSError, match="No space left"):
            run_pending(lake)
    assert (at(lake)["failures"], at(lake)["position"]) == (0, 0)
    assert run_pending(lake) == 1
    assert lake.streams["x.out"].read() == b"x"


class Changing(Caller):
    """Another one changes something while the function runs, once."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self._change = change

    def __call__(self, *what: Any) -> Any:
        left = super().__call__(*what)
        if self._change is not None:
            change, self._change = self._change, None
            change()
        return left


def run_while(lake: LocalLake, change: Any) -> int:
    """Run what is due, while another session does `change(it)`."""

    def other() -> None:
        with lake.session() as session, session.transaction():
            change(session)

    return Engine(lake, caller=Changing(other)).run_due()


def test_changed_while_it_runs_it_is_done_with_the_new_one(lake: LocalLake) -> None:
    declare(lake, "def transform(batch, output, state): output.append(b'old')")
    feed(lake, b"x")
    new = {
        "source": STREAMS,
        "output": "{name}.out",
        "code": "def transform(batch, output, state): output.append(b'new')",
    }
    assert run_while(lake, lambda session: session.transformations.declare("t", **new)) == 1
    assert lake.streams["x.out"].read() == b"new"


def test_paused_deleted_or_backfilled_while_it_runs(lake: LocalLake) -> None:
    declare(lake, LINES)
    feed(lake, b"1\n")
    assert run_while(lake, lambda session: session.transformations.pause("t")) == 0
    assert at(lake)["state"] == "paused"
    assert "x.out" not in lake.arrays
    assert run_pending(lake) == 0
    with lake.transaction():
        lake.transformations.resume("t")
    assert run_while(lake, lambda session: session.transformations.backfill("t")) == 1
    assert lake.arrays["x.out"][:].tolist() == [1]
    feed(lake, b"2\n")
    assert run_while(lake, lambda session: session.transformations.delete("t")) == 0
    assert lake.arrays["x.out"][:].tolist() == [1]
    assert (list(lake.root()["positions"]), list(lake.root()["due"]), lake.streams["x"].record.followers) == (
        [],
        [],
        (),
    )


def test_the_source_goes_on_or_goes_away_while_it_runs(lake: LocalLake) -> None:
    declare(lake, LINES)
    feed(lake, b"1\n")
    assert run_while(lake, lambda session: session.streams["x"].append(b"2\n")) == 2
    assert lake.arrays["x.out"][:].tolist() == [1, 2]
    feed(lake, b"3\n")

    def delete(session: LocalLake) -> None:
        del session.streams["x"]

    run_while(lake, delete)
    run_pending(lake)
    assert list(lake.root()["due"]) == []
    assert list(lake.transformations.positions("t")) == []


def test_a_source_that_is_made_while_it_is_declared(lake: LocalLake) -> None:
    with lake.session() as other:
        lake.begin()
        lake.streams.create("x").append(b"1\n")
        declare(other, LINES)
        with pytest.raises(Exception, match="conflict"):
            lake.commit()
        # and the other way around: the stream is there first
        with other.transaction():
            other.transformations.delete("t")
        other.begin()
        other.transformations.declare("t", code=textwrap.dedent(LINES), source=STREAMS, output="{name}.out")
        feed(lake, b"1\n", name="y")
        other.commit()
    with lake.transaction():
        assert lake.transformations.adopt() == 1
        assert lake.transformations.adopt() == 0
    run_pending(lake)
    assert lake.arrays["y.out"][:].tolist() == [1]


def test_a_whole_stream_that_fails_has_failed_until_it_goes_on(lake: LocalLake, now: list[int]) -> None:
    declare(lake, "def transform(batch, output, state): raise ValueError(len(batch.data))", on="end", attempts=2)
    feed(lake, b"abc", final=True)
    run_pending(lake)
    assert at(lake)["state"] == "retrying"
    now[0] += 1000
    run_pending(lake)
    assert (at(lake)["state"], at(lake)["message"], letters(lake)) == ("failed", "ValueError: 3", [])
    assert run_pending(lake) == 0
    feed(lake, b"d", final=True)
    run_pending(lake)
    assert (at(lake)["state"], at(lake)["message"]) == ("retrying", "ValueError: 4")
    with lake.transaction():
        assert lake.transformations.retry("t") == 1
    assert at(lake)["state"] == "waiting"


def test_a_document_that_somebody_else_wrote_holds_up_nothing(lake: LocalLake, now: list[int]) -> None:
    declare(lake, LINES)
    declare(lake, "def transform(batch, output, state): output.append(b'good')", "good", output="{name}.good")
    feed(lake, b"1\n")
    with lake.transaction():
        lake.documents("transformations").put("t", {"source": STREAMS, "function": "nope"})
    run_pending(lake)
    assert lake.streams["x.good"].read() == b"good"
    assert "key function: 'nope', expected one of" in at(lake)["message"]


def test_a_call_is_told_before_it_is_made(lake: LocalLake) -> None:
    declare(lake, "def transform(batch, output, state): raise SystemError", timeout_seconds=7)
    feed(lake, b"abc")
    told: list[engine.Call | None] = []
    Engine(lake, told.append).run_due()
    assert told == [engine.Call(("stream", "x", "t"), 0, 3, True, 7), None]
    assert document.read("t", lake.transformations["t"]).timeout_seconds == 7
    assert json.loads(lake.documents("positions").record(("stream", "x", "t")).text)["failures"] == 1
