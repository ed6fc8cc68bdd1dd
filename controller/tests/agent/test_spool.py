"""Facts are sent at least once, and one that is refused does not hold up the rest."""

from pathlib import Path

import pytest
from clachan.agent.spool import Spool
from clachan.contract.facts import InstanceFact, UsageFact, Verdict, fact_id, usage_id


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool.db", "node-1")


def fact(state: str = "started") -> InstanceFact:
    return InstanceFact.model_validate({"instance": "i", "revision": 1, "state": state})


def usage(quantity: int = 5) -> UsageFact:
    return UsageFact(
        instance="i",
        meter="cpu_milliseconds",
        window_start="2026-01-01T00:00:00Z",
        window_end="2026-01-01T00:01:00Z",
        epoch="e",
        quantity=quantity,
    )


def ids(spool: Spool) -> list[str]:
    return [one.id for one in spool.batch().facts]


def accept(spool: Spool, kind: str = "accepted") -> list[Verdict]:
    verdicts = [Verdict.model_validate({"id": one, "verdict": kind, "message": "no"}) for one in ids(spool)]
    return spool.settle(verdicts)


def test_ids_and_order(spool: Spool) -> None:
    spool.add(fact("converging"), usage())
    spool.add(fact("started"))
    first, second, third = spool.batch().facts
    assert [first.sequence, second.sequence, third.sequence] == [1, 2, 3]
    assert first.id == fact_id("node-1", spool.epoch, 1)
    assert second.id == usage_id("node-1", "i", "cpu_milliseconds", "2026-01-01T00:00:00Z", "e")
    assert [first.content["state"], third.content["state"]] == ["converging", "started"]


def test_nothing_is_forgotten_before_a_verdict(spool: Spool, tmp_path: Path) -> None:
    spool.add(fact())
    sent = ids(spool)
    spool.close()
    again = Spool(tmp_path / "spool.db", "node-1")
    assert ids(again) == sent
    assert again.filled.is_set()
    assert accept(again, "known") == []
    assert ids(again) == []


def test_sequences_go_on_after_all_was_sent(spool: Spool, tmp_path: Path) -> None:
    spool.add(fact())
    accept(spool)
    spool.close()
    again = Spool(tmp_path / "spool.db", "node-1")
    again.add(fact())
    assert [one.sequence for one in again.batch().facts] == [2]


def test_a_new_spool_has_other_ids(tmp_path: Path) -> None:
    one, two = Spool(tmp_path / "1.db", "node-1"), Spool(tmp_path / "2.db", "node-1")
    one.add(fact())
    two.add(fact())
    assert ids(one) != ids(two)


def test_conflicts_are_set_aside(spool: Spool) -> None:
    spool.add(fact("converging"), fact("started"))
    first, second = ids(spool)
    conflict = Verdict(id=first, verdict="conflict", message="other content")
    assert spool.settle([conflict, Verdict(id=second, verdict="accepted")]) == [conflict]
    assert ids(spool) == []
    [(content, verdict)] = spool.aside()
    assert '"converging"' in content
    assert verdict == "conflict: other content"


def test_a_usage_fact_is_there_once(spool: Spool) -> None:
    spool.add(usage(5))
    spool.add(usage(6))
    [one] = spool.batch().facts
    assert one.content["quantity"] == 5


def test_facts_and_counters_are_one_transaction(spool: Spool) -> None:
    with pytest.raises(TypeError):
        spool.add_with_counters([usage()], {"good": 1, "bad": object()})
    assert ids(spool) == []
    assert spool.counters() == {}
    spool.add_with_counters([usage()], {"good": {"ticks": 1}})
    assert spool.counters() == {"good": {"ticks": 1}}


def test_a_batch_is_limited(spool: Spool) -> None:
    spool.add(*[fact() for _ in range(501)])
    assert len(ids(spool)) == 500
    accept(spool)
    assert len(ids(spool)) == 1
    assert spool.waiting() == 1


def test_only_the_owner_reads_it(spool: Spool, tmp_path: Path) -> None:
    assert (tmp_path / "spool.db").stat().st_mode & 0o077 == 0
