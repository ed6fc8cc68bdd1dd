from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from clachan.contract.facts import UsageFact, usage_id
from clachan.server.decisions.usage import Metered, Reporter, UsageLine, problem, totals
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
NODE = Reporter("n1", "here", None)
WEB = Metered("i1", "home.web", "home", frozenset({"n1"}))


def fact(start="2026-01-31T12:00:00Z", end="2026-01-31T12:01:00Z", quantity=60, epoch="boot-1"):
    return UsageFact(instance="i1", meter="seconds", window_start=start, window_end=end, epoch=epoch, quantity=quantity)


def judged(said, reporter=NODE, metered=WEB, now=NOW):
    return problem(
        usage_id(reporter.id, said.instance, said.meter, said.window_start, said.epoch), said, reporter, metered, now
    )


WHAT = "usage of instance i1, meter seconds: "


def test_right():
    assert judged(fact()) is None
    assert judged(fact(end="2026-01-31T13:00:00Z"), now=NOW + timedelta(minutes=30)) is None
    assert judged(fact(start="2026-01-31T12:34:59Z", end="2026-01-31T12:35:00Z")) is None
    assert judged(fact(start="2026-01-01T00:00:00Z")) is None
    assert judged(fact(start="2026-01-31T12:00:00.000000Z", end="2026-01-31T12:01:00.000Z")) is None
    assert judged(fact(quantity=2**63 - 1)) is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (fact(start="2026-01-31T12:00:00+00:00"), "window_start 2026-01-31T12:00:00+00:00, expected a time like"),
        (fact(start="2026-1-31T12:00:00Z"), "window_start 2026-1-31T12:00:00Z, expected a time like"),
        (fact(end="2026-01-31T12:01:00.5Z"), "window_end 2026-01-31T12:01:00.5Z, expected a time like"),
        (fact(end="2026-02-31T12:01:00Z"), "window_end 2026-02-31T12:01:00Z, expected a time like"),
        (
            fact(end="2026-01-31T12:00:00Z"),
            "window 2026-01-31T12:00:00Z to 2026-01-31T12:00:00Z, expected an end after its start",
        ),
        (
            fact(start="2025-12-31T12:00:00Z"),
            "window 2025-12-31T12:00:00Z to 2026-01-31T12:01:00Z, expected at most 31 days",
        ),
        (
            fact(end="2026-01-31T12:35:01Z"),
            "window 2026-01-31T12:00:00Z to 2026-01-31T12:35:01Z, expected none of the future: "
            "it is 2026-01-31T12:30:00Z",
        ),
        (fact(quantity=2**63), "quantity 9223372036854775808, expected less than 2 to the power of 63"),
        (fact(epoch=""), "epoch of 0 characters, expected 1 to 128"),
        (fact(epoch="x" * 129), "epoch of 129 characters, expected 1 to 128"),
    ],
)
def test_refused(said, message):
    assert judged(said).startswith(WHAT + message)


def test_only_a_node_that_hosts_it():
    assert judged(fact(), metered=None) == WHAT + "from node here, expected from a node that hosts it"
    moved = replace(WEB, nodes=frozenset({"n2", "n3"}))
    assert judged(fact(), metered=moved) == WHAT + "from node here, expected from a node that hosts it"
    assert judged(fact(), metered=replace(WEB, nodes=frozenset({"n1", "n2"}))) is None


def test_a_tenant_s_node_meters_that_tenant_only():
    assert judged(fact(), reporter=replace(NODE, owner="home")) is None
    assert judged(fact(), reporter=replace(NODE, owner="other")) == (
        WHAT + "from node here of tenant other, expected from a node that may meter it"
    )


def test_id_is_the_hash_of_what_is_counted():
    other = usage_id("n1", "i1", "seconds", "2026-01-31T12:01:00Z", "boot-1")
    assert problem(other, fact(), NODE, WEB, NOW) == (
        WHAT + f"id {other}, expected the hash of node, instance, meter, window_start and epoch"
    )


@given(start=st.text(max_size=25), end=st.text(max_size=25))
def test_any_text_is_judged(start, end):
    assert judged(fact(start=start, end=end)) is not None


@given(
    lines=st.lists(
        st.builds(
            UsageLine,
            tenant=st.sampled_from(["home", "acme"]),
            path=st.sampled_from(["home.a", "home.b"]),
            meter=st.sampled_from(["cpu", "memory"]),
            quantity=st.integers(0, 2**63 - 1),
        )
    )
)
def test_totals_are_exact_sums(lines):
    counted = totals(lines)
    assert sum(counted.values()) == sum(line.quantity for line in lines)
    assert all(isinstance(quantity, int) for quantity in counted.values())
    assert set(counted) == {(line.tenant, line.path, line.meter) for line in lines}
