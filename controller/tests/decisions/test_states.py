import itertools
from datetime import UTC, datetime, timedelta

import pytest
from clachan.contract.api import Declaration
from clachan.contract.facts import InstanceFact, OutageFact, PromiseResult
from clachan.server.decisions.states import (
    Applied,
    EventDraft,
    PromiseStanding,
    Refused,
    Stale,
    Standing,
    Wanted,
    children,
    drops_at_once,
    effective_state,
    judge,
    moved,
    of_vm,
    outage_event,
    promises,
    requested,
)
from hypothesis import given
from hypothesis import strategies as st

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def fact(state, revision=1, message=""):
    return InstanceFact(instance="i1", revision=revision, state=state, message=message)


NEW = Standing("allocated", "", None, NOON)
STARTED = Standing("started", "", 1, at(1), sequence=5, at=at(1))


def test_a_new_instance_waits_or_is_allocated():
    assert requested(None, "no node", NOON) == Standing("waiting", "no node", None, NOON)
    assert requested(None, None, NOON) == NEW


def test_a_waiting_instance_is_allocated_when_nothing_is_missing():
    waiting = Standing("waiting", "no node", None, NOON)
    assert requested(waiting, None, at(9)) == Standing("allocated", "", None, at(9))
    assert requested(waiting, "no slot", at(9)) == Standing("waiting", "no slot", None, NOON)


def test_a_new_revision_leaves_what_the_node_said():
    assert requested(STARTED, None, at(9)) == STARTED
    waits = requested(STARTED, "waiting for home.lake to publish url", at(9))
    assert (waits.state, waits.revision, waits.sequence, waits.since) == ("waiting", 1, 5, at(9))


def test_a_vm_is_started_when_its_own_agent_says_so():
    def shown(joined, silent_since=None, standing=STARTED):
        found = of_vm(standing, joined=joined, silent_since=silent_since, now=at(9))
        return found.state, found.message, found.revision, found.since

    assert shown(joined=True) == ("started", "", 1, at(1))
    assert shown(joined=False) == ("converging", "waiting for the VM's agent to report", 1, at(9))
    said = "expected a VM that runs and reaches the controller"
    message = f"the VM's agent: last heard of at 2026-01-31T11:00:00.000Z, {said}"
    assert shown(joined=True, silent_since="2026-01-31T11:00:00.000Z") == ("failing", message, 1, at(9))
    # what its host says of a VM that does not run counts
    failed = Standing("failed", "no disk", 1, at(1), sequence=5, at=at(1))
    assert shown(joined=False, standing=failed) == ("failed", "no disk", 1, at(1))


def test_what_waits_goes_on_waiting_whatever_runs_meanwhile():
    waits = requested(STARTED, "waiting for home.lake to publish url", at(9))
    applied = judge(waits, Wanted(2, "started"), fact("failing", revision=1), sequence=6, at=at(10))
    assert applied == Applied(Standing("waiting", "waiting for home.lake to publish url", 1, at(9), 6, at(10)))
    assert requested(applied.standing, None, at(11)).state == "allocated"


def test_an_instance_wanted_again_after_its_removal_is_allocated():
    removed = Standing("absent", "", 1, at(1), sequence=5, at=at(1))
    assert requested(removed, None, at(2)).state == "allocated"


def test_another_node_starts_from_nothing():
    assert moved(STARTED, at(9)) == Standing("allocated", "", None, at(9))


def test_first_converge():
    standing = NEW
    for number, (state, revision) in enumerate(
        [("converging", None), ("failed", None), ("started", 1), ("failing", 1)]
    ):
        applied = judge(standing, Wanted(1, "started"), fact(state), sequence=number, at=at(number))
        assert isinstance(applied, Applied)
        assert not applied.drop
        standing = applied.standing
        assert (standing.state, standing.revision, standing.since) == (state, revision, at(number))


def test_the_same_state_again_keeps_since_and_takes_the_message():
    applied = judge(STARTED, Wanted(1, "started"), fact("started", message="new"), sequence=6, at=at(9))
    assert applied == Applied(Standing("started", "new", 1, at(1), 6, at(9)))


def test_an_older_fact_changes_nothing():
    assert judge(STARTED, Wanted(1, "started"), fact("converging"), sequence=4, at=at(0)) == Stale()
    assert judge(STARTED, Wanted(1, "started"), fact("started"), sequence=5, at=at(1)) == Stale()


def test_a_reinstalled_spool_counts_from_the_start():
    applied = judge(STARTED, Wanted(1, "started"), fact("failed"), sequence=0, at=at(60))
    assert isinstance(applied, Applied)
    assert (applied.standing.state, applied.standing.sequence) == ("failed", 0)


def test_a_clock_that_went_back_does_not_hold_up_facts():
    assert isinstance(judge(STARTED, Wanted(1, "started"), fact("failed"), sequence=6, at=at(-600)), Applied)


def test_a_fact_of_an_older_revision_tells_what_runs():
    applied = judge(NEW, Wanted(3, "stopped"), fact("started", revision=2), sequence=0, at=at(1))
    assert isinstance(applied, Applied)
    assert (applied.standing.state, applied.standing.revision, applied.drop) == ("started", 2, False)


def test_dropped_when_its_node_removed_the_revision_that_wants_it():
    assert judge(STARTED, Wanted(2, "absent"), fact("absent", revision=2), sequence=6, at=at(2)).drop


def test_not_dropped_when_it_is_wanted_again():
    again = judge(STARTED, Wanted(3, "started"), fact("absent", revision=2), sequence=6, at=at(2))
    assert isinstance(again, Applied)
    assert not again.drop
    older = judge(STARTED, Wanted(4, "absent"), fact("absent", revision=2), sequence=6, at=at(2))
    assert isinstance(older, Applied)
    assert not older.drop


@pytest.mark.parametrize(
    ("wanted", "said", "message"),
    [
        (Wanted(1, "started"), fact("started", 2), "revision 2, expected 1 to 1"),
        (Wanted(1, "started"), fact("started", 0), "revision 0, expected 1 to 1"),
        (Wanted(1, "started"), fact("waiting"), "state waiting, expected one that its node can know"),
        (Wanted(2, "started"), fact("allocated"), "state allocated, expected one that its node can know"),
        (
            Wanted(1, "started"),
            fact("absent"),
            "state absent, expected one of converging, failed, failing, started: it is wanted started",
        ),
        (
            Wanted(1, "absent"),
            fact("started"),
            "state started, expected one of absent, converging, failed: it is wanted absent",
        ),
    ],
)
def test_refused(wanted, said, message):
    assert judge(NEW, wanted, said, sequence=0, at=NOON) == Refused(f"fact of instance i1: {message}")


@given(order=st.permutations(range(5)), repeats=st.lists(st.integers(0, 4), max_size=4))
def test_facts_in_any_order_and_repeated_end_with_the_newest(order, repeats):
    states = ["converging", "failed", "converging", "started", "failing"]
    standing = NEW
    for number in (*order, *repeats):
        result = judge(standing, Wanted(1, "started"), fact(states[number]), sequence=number, at=at(number))
        standing = result.standing if isinstance(result, Applied) else standing
    assert (standing.state, standing.sequence) == ("failing", 4)


def test_roots_are_removed_after_their_children():
    waits = ("waiting", "waiting for its children to be removed: a, b")
    assert effective_state("absent", {"b", "a"}, None) == waits
    assert effective_state("absent", (), "waiting for home.lake to publish url") == ("absent", "")
    assert effective_state("stopped", {"a"}, None) == ("stopped", "")
    assert effective_state("started", (), "no node") == ("waiting", "no node")


def test_what_was_never_placed_goes_at_once():
    for wanted, placed, existing in itertools.product(("started", "absent"), (True, False), ((), ("a",))):
        expected = wanted == "absent" and not placed and not existing
        assert drops_at_once(wanted, placed=placed, children=existing) is expected


def test_promises_keep_since_until_they_turn():
    before = {"http": PromiseStanding(True, "", NOON), "gone": PromiseStanding(True, "", NOON)}
    results = {"http": PromiseResult(ok=True, message="200"), "tcp": PromiseResult(ok=False, message="refused")}
    after = promises(before, results, at(5))
    assert after == {"http": PromiseStanding(True, "200", NOON), "tcp": PromiseStanding(False, "refused", at(5))}
    turned = promises(after, {"tcp": PromiseResult(ok=True)}, at(6))
    assert turned == {"tcp": PromiseStanding(True, "", at(6))}


def test_children_that_are_missing_are_wanted_absent():
    db, web = Declaration(software="acme.tools.db"), Declaration(software="acme.tools.web")
    changes = children({"db": "started", "old": "stopped", "gone": "absent"}, {"db": db, "web": web}, parent="started")
    assert changes.declare == {"db": db, "web": web}
    assert changes.remove == ("old",)


def test_an_absent_parent_has_no_children():
    changes = children({"db": "started"}, {"db": Declaration(software="acme.tools.db")}, parent="absent")
    assert (changes.declare, changes.remove) == ({}, ("db",))


def test_outage_is_one_event_and_its_end_another():
    began = OutageFact(
        instance="i1", phase="began", began="2026-01-31T12:00:00Z", promises=["tcp", "http"], message="refused"
    )
    assert outage_event("home.web", began) == EventDraft(
        "outage",
        "home.web: promise http, tcp fails since 2026-01-31T12:00:00Z: refused",
        {"began": "2026-01-31T12:00:00Z", "ended": None, "promises": ["http", "tcp"]},
    )
    ended = began.model_copy(update={"phase": "ended", "ended": "2026-01-31T12:00:09Z"})
    event = outage_event("home.web", ended)
    assert (event.kind, event.message) == (
        "recovery",
        "home.web: promise http, tcp passes again since 2026-01-31T12:00:09Z, failed since 2026-01-31T12:00:00Z",
    )
