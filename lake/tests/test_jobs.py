"""Jobs of a lake: what is kept of them, which changes they go through, what their results may be."""

import asyncio
import io
import json
import math
import os
import pickle
import pwd
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.errors import (
    CorruptError,
    JobError,
    LateError,
    MissingError,
    TakenError,
    TransactionError,
    UntrustedError,
)
from clachan_lake.jobs import call, document, ledger, value
from clachan_lake.jobs.board import Board
from clachan_lake.jobs.ledger import Ledger, Outcome
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from hypothesis import given, settings
from hypothesis import strategies as st

from .working import Hostile

VALUES: list[tuple[Any, str]] = [
    (None, "json"),
    ({"a": [1, 2.5, "x", True, None], "b": {}}, "json"),
    (2**70, "json"),
    ((1, 2), "tree"),
    ({1: "a", None: (b"\x93NUMPY", 1)}, "tree"),
    ([math.inf, -math.inf], "tree"),
    (np.float32(1.5), "tree"),
    (np.datetime64("2026-01-02"), "tree"),
    ({"x": np.arange(6).reshape(2, 3), "deep": [(np.zeros(0), "t")]}, "tree"),
    (np.arange(10, dtype=">i2"), "npy"),
    (np.array(3), "npy"),
    (np.asfortranarray(np.ones((3, 4))), "npy"),
    (np.zeros(2, [("t", "<i8"), ("v", "<f4", 3)]), "npy"),
    ({1, 2}, "pickle"),
    (np.array([{}]), "pickle"),
    ([10**5000], "pickle"),
    (Path("x"), "pickle"),
]


def put(lake: LocalLake, **order: Any) -> str:
    job = document.new_id()
    lake.jobs.put(job, {"name": "test", **order}, b"a call")
    return job


def take(lake: LocalLake, slot: str = "slot") -> str | None:
    return ledger.commit(lake, lambda: Ledger(lake).take("worker", slot))


def finish(lake: LocalLake, job: str, returned: Any, attempt: int = 1, state: str = "done") -> bool:
    file = io.BytesIO()
    kind = value.write(returned, file)
    body = file.getvalue()
    outcome = Outcome(state, "", kind, body, len(body), str(hash(body)))
    return ledger.commit(lake, lambda: Ledger(lake).finish(job, attempt, outcome))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize(("returned", "kind"), VALUES)
def test_results_come_back_as_they_were(returned: Any, kind: str) -> None:
    file = io.BytesIO()
    assert value.write(returned, file) == kind
    file.seek(0)
    found = value.read(kind, file, "test", trust=True)
    assert type(found) is type(returned)
    assert equal(returned, found)


def test_a_number_that_is_none() -> None:
    file = io.BytesIO()
    assert value.write({"loss": float("nan")}, file) == "tree"
    assert math.isnan(value.read("tree", file, "test")["loss"])


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_plain_value_comes_back(returned: Any) -> None:
    file = io.BytesIO()
    kind = value.write(returned, file)
    assert kind in {"json", "tree"}
    file.seek(0)
    assert equal(returned, value.read(kind, file, "test"))


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_a_broken_tree_is_named_and_loads_nothing(noise: bytes, place: int) -> None:
    file = io.BytesIO()
    value.write({"x": np.arange(3), "y": (1, b"2")}, file)
    whole = bytearray(file.getvalue())
    place %= len(whole)
    whole[place : place + len(noise)] = noise
    said = found = None
    try:
        found = value.read("tree", io.BytesIO(bytes(whole)), "job 1")
    except CorruptError as error:
        said = str(error)
    assert "job 1" in said if said is not None else equal(found, found)


def test_no_pickle_is_loaded_unasked(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    bad = Hostile(ran)
    for kind, content in {
        "pickle": pickle.dumps(bad),
        "npy": _npy_with_objects(bad),
        "tree": _tree_with_objects(bad),
    }.items():
        with pytest.raises(UntrustedError if kind == "pickle" else CorruptError) as caught:
            value.read(kind, io.BytesIO(content), "job 1")
        assert str(caught.value).startswith("job 1, result: ")
    assert not ran.exists()


def _npy_with_objects(bad: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([bad], dtype=object), allow_pickle=True)
    return file.getvalue()


def _tree_with_objects(bad: Any) -> bytes:
    part = _npy_with_objects(bad)
    head = json.dumps({"tree": {"list": [{"array": 0}]}, "parts": [len(part)]}).encode()
    return value.MAGIC + part + head + len(head).to_bytes(8, "little")


def test_a_job_waits_for_a_worker_and_is_there_when_opened_again(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake:
        job = lake.submit(math.sqrt, 2.0)
        assert (job.state, job.document["name"], job.document["submitter"]) == (
            "queued",
            "sqrt",
            pwd.getpwuid(os.getuid()).pw_name,
        )
        assert job.document["environment"]["python"] == call.python()
        with pytest.raises(TimeoutError, match=rf"job {job.id}: queued after 0.1 s, expected an end"):
            job.result(0.1)
    with open_lake(tmp_path / "lake") as lake:
        assert lake.jobs[job.id].wait(0) == "queued"
        assert list(lake.jobs) == [job.id]
        function, args, kwargs = pickle.loads(b"".join(Ledger(lake).blocks(job.id)))
        assert function(*args, **kwargs) == math.sqrt(2)


def test_submitted_in_a_transaction_it_is_committed_with_it(lake: LocalLake) -> None:
    lake.begin()
    kept = lake.submit(math.sqrt, 2)
    assert kept.state == "queued"
    lake.abort()
    assert not list(lake.jobs)
    with pytest.raises(MissingError, match=r"job '[0-9a-f-]+': none of this id"):
        assert kept.state
    with lake.transaction():
        lake.submit(math.sqrt, 2)
    assert len(lake.jobs) == 1


def test_jobs_are_taken_in_their_order_and_once(lake: LocalLake) -> None:
    jobs = [put(lake) for _ in range(3)]
    assert list(lake.jobs) == jobs
    assert [take(lake, str(number)) for number in range(4)] == [*jobs, None]
    # an answer that was lost
    assert take(lake, "1") == jobs[1]
    assert lake.jobs[jobs[1]].document["attempt"] == 1


@pytest.mark.parametrize(("returned", "_kind"), VALUES)
def test_a_result_is_kept_with_the_state(lake: LocalLake, returned: Any, _kind: str) -> None:
    job = put(lake)
    take(lake)
    assert finish(lake, job, returned)
    assert equal(returned, lake.jobs[job].result(trust=True))
    assert not finish(lake, job, returned)
    with pytest.raises(LateError, match=rf"job {job}, attempt: 1, which is over, expected one that runs; it is done"):
        finish(lake, job, "another")
    assert equal(returned, lake.jobs[job].result(trust=True))


def test_a_large_result_is_a_file(lake: LocalLake) -> None:
    job, returned = put(lake), np.arange(300_000)
    take(lake)
    finish(lake, job, returned)
    np.testing.assert_array_equal(lake.jobs[job].result(), returned)
    body = lake.documents("jobs").record(document.result_key(job)).body
    assert type(body).__name__ == "Blob"


def test_a_result_goes_into_an_array(lake: LocalLake) -> None:
    job, returned = put(lake, into="out"), np.arange(100_000, dtype="<f4").reshape(-1, 2)
    take(lake)
    finish(lake, job, returned)
    result = lake.jobs[job].result()
    assert (result.name, result.attrs["job"]) == ("out", job)
    np.testing.assert_array_equal(lake.arrays["out"][:], returned)
    with pytest.raises(TakenError, match="job, into: array 'out' exists, expected a new name"):
        put(lake, into="out")


def test_a_dict_or_list_of_arrays_goes_into_arrays(lake: LocalLake) -> None:
    job = put(lake, into="fit")
    take(lake)
    finish(lake, job, {"mean": np.ones(2), "parts": (np.zeros(3), np.arange(4))})
    assert list(lake.arrays) == ["fit/mean", "fit/parts/0", "fit/parts/1"]
    found = lake.jobs[job].result()
    assert found["parts"][1][:].tolist() == [0, 1, 2, 3]
    assert isinstance(found["parts"], tuple)


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (np.arange(3), "array 'taken': exists, expected a new name"),
        ({"ok": np.arange(3), "x": "text"}, 'taken/x: "text", expected an array, or a list or dict of arrays'),
        ({"ok": np.arange(3), "bad\n": np.arange(3)}, "expected 1-1024 bytes of printable text"),
        ({"ok": np.arange(3), 1: np.arange(3)}, "key 1, expected text"),
        ({"kept": 1}, "json, expected an array"),
    ],
)
def test_what_cannot_go_into_its_array_is_kept_with_the_job(lake: LocalLake, returned: Any, why: str) -> None:
    """Nothing of it is made, and nothing is lost."""
    job = put(lake, into="taken")
    with lake.transaction():
        lake.arrays.create("taken", 3, "i4")
    take(lake)
    finish(lake, job, returned)
    assert lake.jobs[job].state == "done"
    assert why in lake.jobs[job].message
    assert lake.jobs[job].message.endswith("; the result is kept with the job")
    assert list(lake.arrays) == ["taken"]
    assert equal(returned, lake.jobs[job].result())


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ({"into": "~own"}, "job, key into: '~own', expected a name that does not begin with ~"),
        ({"into": "a\nb"}, "job, key into: array name: 'a\\nb', expected 1-1024 bytes of printable text"),
        ({"name": ""}, "job, key name: '', expected 1-200 printable characters"),
        ({"timeout_seconds": 0}, "job, key timeout_seconds: 0, expected a number above 0, or null"),
        ({"memory_mib": 1}, "job, key memory_mib: 1, expected a whole number of at least 16, or null"),
        ({"scheduler": "http://x"}, "job, key scheduler: 'http://x', expected tcp://host:port or tls://host:port"),
    ],
)
def test_a_wrong_order_is_named(lake: LocalLake, order: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"^job, key ") as caught:
        lake.submit(math.sqrt, 2, **order)
    assert text in str(caught.value)
    assert not list(lake.jobs)


def test_what_is_no_function_is_refused(lake: LocalLake) -> None:
    with pytest.raises(TypeError, match="job: 3, expected a function"):
        lake.submit(3)  # type: ignore[arg-type]


def test_a_waiting_job_is_cancelled_at_once(lake: LocalLake) -> None:
    job = lake.submit(math.sqrt, 2)
    assert job.cancel()
    assert not job.cancel()
    assert take(lake) is None
    with pytest.raises(JobError, match=f"job {job.id}, sqrt: cancelled: cancelled before it began") as caught:
        job.result()
    assert caught.value.state == "cancelled"


def test_given_back_it_waits_again_and_is_lost_in_the_end(lake: LocalLake) -> None:
    job = put(lake, attempts=2)

    def back(attempt: int, **more: bool) -> str:
        assert take(lake) == job
        return ledger.commit(lake, lambda: Ledger(lake).give_back(job, attempt, "gone", **more))

    assert back(1) == "queued"
    assert back(2, counts=False) == "queued"
    assert back(3) == "lost"
    assert take(lake) is None
    assert lake.jobs[job].message == "gone; it was begun 3 times"
    with pytest.raises(LateError):
        finish(lake, job, 1, attempt=2)


def test_cancelled_while_its_worker_vanishes_it_is_not_begun_again(lake: LocalLake) -> None:
    job = put(lake)
    take(lake)
    lake.jobs[job].cancel()
    assert lake.jobs[job].state == "running"
    ledger.commit(lake, lambda: Ledger(lake).give_back(job, 1, "gone"))
    assert (lake.jobs[job].state, take(lake)) == ("cancelled", None)


def test_the_log_has_each_part_once_and_is_bounded(lake: LocalLake) -> None:
    job = put(lake)
    take(lake)

    def add(position: int, text: str) -> bool:
        return ledger.commit(lake, lambda: Ledger(lake).add_log(job, 1, position, text))

    assert [add(0, "ab\n"), add(3, "é\n"), add(3, "é\n"), add(6, "z")] == [True, True, False, True]
    assert lake.jobs[job].log == "ab\né\nz"
    position = 7
    for _ in range(90):
        add(position, "x" * ledger.LOG_PART)
        position += ledger.LOG_PART
    log = lake.jobs[job].log
    assert len(log) < ledger.LOG_BYTES + 100
    assert log.startswith("[")
    assert "bytes left out]\nxxx" in log[:60]
    ledger.commit(lake, lambda: Ledger(lake).give_back(job, 1, "gone"))
    take(lake)
    ledger.commit(lake, lambda: Ledger(lake).add_log(job, 2, 0, "again"))
    assert lake.jobs[job].log.endswith("x--- attempt 2\nagain")


def test_deleted_nothing_is_left(lake: LocalLake) -> None:
    job = put(lake)
    take(lake)
    ledger.commit(lake, lambda: Ledger(lake).add_log(job, 1, 0, "text"))
    with pytest.raises(LateError, match=f"job {job}: running, expected one that has ended"):
        lake.jobs[job].delete()
    finish(lake, job, np.arange(9))
    lake.jobs[job].delete()
    assert len(lake.documents("jobs")) == 0


def test_another_call_of_the_same_id_is_refused(lake: LocalLake) -> None:
    job = put(lake)
    lake.jobs.put(job, {"name": "test"}, b"a call")
    with pytest.raises(TakenError, match=f"job {job}: exists with another call, expected a new id"):
        lake.jobs.put(job, {"name": "test"}, b"another")
    assert len(lake.jobs) == 1


def test_reading_needs_no_transaction_and_writing_ones_own(lake: LocalLake) -> None:
    put(lake)
    with pytest.raises(TransactionError, match=r"jobs, .*: (write|delete): outside a transaction"):
        Ledger(lake).take("w", "s")
    assert [item["state"] for item in lake.jobs.items_of()] == ["queued"]


def test_ids_are_in_the_order_of_time() -> None:
    first = [document.new_id() for _ in range(3)]
    time.sleep(0.002)
    assert max(first) < document.new_id()
    assert all(document.ID.fullmatch(one) and one[14] == "7" and one[19] in "89ab" for one in first)


def test_open_lake_without_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLACHAN_LAKE", raising=False)
    with pytest.raises(ValueError, match="lake: none given, expected its folder, socket or URL, or the variable"):
        open_lake()
    monkeypatch.setenv("CLACHAN_LAKE", str(tmp_path / "lake"))
    with open_lake() as lake:
        assert isinstance(lake, LocalLake)


def test_what_ended_or_was_forgotten_long_ago_goes(lake: LocalLake) -> None:
    kept, old = put(lake), put(lake)
    take(lake)
    take(lake, "other")
    finish(lake, old, 1)
    lake.jobs.put_part(part := document.new_id(), b"part")
    lake.jobs.put_part(recent := document.new_id(), b"recent")
    with lake.transaction():
        documents = lake.documents("jobs")
        documents.put(old, {**documents[old], "ended": document.now() - 5000})
        documents.record(f"part/{part}").created -= 3 * 86_400_000

    async def clean() -> None:
        board = Board(lake, 30, 4)
        board.clean()

    asyncio.run(clean())
    lake.refresh()
    assert list(lake.jobs) == [kept]
    assert [key for key in lake.documents("jobs") if key.startswith(("part/", "result/"))] == [f"part/{recent}"]


def test_a_list_goes_on_where_it_ended(lake: LocalLake) -> None:
    jobs = [put(lake) for _ in range(5)]
    assert list(Ledger(lake).ids(jobs[1])) == jobs[2:]
    assert list(Ledger(lake).ids()) == jobs
