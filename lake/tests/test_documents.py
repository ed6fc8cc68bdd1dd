"""Documents: JSON objects with revisions and bytes beside them, whole or not at all."""

from pathlib import Path

import pytest
from clachan_lake.errors import MissingError, TransactionError
from clachan_lake.format import PIECE_BYTES
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake


def test_a_document_counts_its_contents(lake: LocalLake) -> None:
    policies = lake.documents("policies")
    with lake.transaction():
        assert policies.put("p", {"b": 1, "a": "ä"})
    first = policies.record("p")
    assert (first.text, first.revision, first.body) == ('{"a":"ä","b":1}', 1, None)
    with lake.transaction():
        assert not policies.put("p", {"a": "ä", "b": 1})
        assert policies.put("p", {"a": "ä", "b": 2})
    assert (policies["p"], policies.record("p").revision) == ({"a": "ä", "b": 2}, 2)
    assert (list(policies), len(policies), "p" in policies, "q" in policies) == (["p"], 1, True, False)
    with lake.transaction():
        policies.delete("p")
    with pytest.raises(MissingError, match="policies, 'p': none of this name"):
        _ = policies["p"]


@pytest.mark.parametrize("size", [0, 3, PIECE_BYTES + 1])
def test_bytes_beside_a_document_stay_until_others_come(lake: LocalLake, size: int) -> None:
    jobs = lake.documents("jobs")
    with lake.transaction():
        jobs.put("j", {"n": 1}, b"x" * size)
        jobs.put("k", {})
    assert (jobs.body("j"), jobs.body("k")) == (b"x" * size, b"")
    with lake.transaction():
        jobs.put("j", {"n": 2})
    assert jobs.body("j") == b"x" * size
    with lake.transaction():
        assert jobs.put("j", {"n": 2}, b"other")
    assert jobs.body("j") == b"other"


def test_numbers_follow_each_other(lake: LocalLake) -> None:
    dead = lake.documents("dead")
    for expected in (1, 2):
        with lake.transaction():
            assert dead.following() == expected
            dead.put(dead.following(), {"reason": "x"}, b"body")
    assert [dead[number]["reason"] for number in dead] == ["x", "x"]


def test_changes_belong_to_a_transaction(lake: LocalLake) -> None:
    with pytest.raises(TransactionError, match="jobs, 'j': write: outside a transaction"):
        lake.documents("jobs").put("j", {})
    with lake.transaction(), pytest.raises(ValueError, match="JSON"):
        lake.documents("jobs").put("j", {"x": float("nan")})
    assert len(lake.documents("jobs")) == 0


def test_they_are_there_after_opening_again(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        assert isinstance(lake, LocalLake)
        lake.documents("tokens").put("t", {"note": "n"}, b"y" * 50_000)
    with open_lake(tmp_path / "lake") as lake:
        assert isinstance(lake, LocalLake)
        assert (lake.documents("tokens")["t"], lake.documents("tokens").body("t")) == ({"note": "n"}, b"y" * 50_000)
