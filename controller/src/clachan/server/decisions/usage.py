"""Usage: what a usage fact must satisfy before it is counted, and totals of what was.

A fact is counted once by its id, which hashes the text of the window's start: so few spellings of a time are taken.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from clachan.contract.facts import UsageFact, usage_id

SKEW = timedelta(seconds=300)
"""How far a node's clock may be ahead of the controller's."""
LONGEST = timedelta(days=31)
QUANTITY_LIMIT = 2**63
EPOCH_CHARS = 128
_FORM = "%Y-%m-%dT%H:%M:%SZ"
_FORMS = (_FORM, "%Y-%m-%dT%H:%M:%S.000Z", "%Y-%m-%dT%H:%M:%S.000000Z")


@dataclass(frozen=True)
class Reporter:
    """The node that reports."""

    id: str
    name: str
    owner: str | None
    """The tenant that owns it; None: the operator's."""


@dataclass(frozen=True)
class Metered:
    """The instance that a fact names, and the nodes (ids) that host it or hosted it."""

    id: str
    path: str
    tenant: str
    nodes: frozenset[str]


@dataclass(frozen=True)
class UsageLine:
    tenant: str
    path: str
    meter: str
    quantity: int


def problem(fact_id: str, fact: UsageFact, reporter: Reporter, metered: Metered | None, now: datetime) -> str | None:
    """Why the fact is refused, in the house form, or None.

    The id is `contract.facts.usage_id` over the node's id. Bounds are whole seconds of UTC, written
    `2026-01-31T12:00:00Z`, maybe with three or six zeros for a fraction. A window is not empty, at most `LONGEST` (a
    node that slept reports one longer window) and ends at most `SKEW` after `now` (UTC, aware). The node hosts or
    hosted the instance; one that a tenant owns reports of that tenant's instances only.
    """
    what = f"usage of instance {fact.instance}, meter {fact.meter}"
    if metered is None or reporter.id not in metered.nodes:
        return f"{what}: from node {reporter.name}, expected from a node that hosts it"
    if reporter.owner not in {None, metered.tenant}:
        return f"{what}: from node {reporter.name} of tenant {reporter.owner}, expected from a node that may meter it"
    if fact.quantity >= QUANTITY_LIMIT:
        return f"{what}: quantity {fact.quantity}, expected less than 2 to the power of 63"
    if not 1 <= len(fact.epoch) <= EPOCH_CHARS:
        return f"{what}: epoch of {len(fact.epoch)} characters, expected 1 to {EPOCH_CHARS}"
    if (wrong := _wrong_window(fact, now)) is not None:
        return f"{what}: {wrong}"
    if fact_id != usage_id(reporter.id, fact.instance, fact.meter, fact.window_start, fact.epoch):
        return f"{what}: id {fact_id}, expected the hash of node, instance, meter, window_start and epoch"
    return None


def totals(lines: Iterable[UsageLine]) -> dict[tuple[str, str, str], int]:
    """(tenant, path, meter) -> quantity."""
    counter: Counter[tuple[str, str, str]] = Counter()
    for line in lines:
        counter[line.tenant, line.path, line.meter] += line.quantity
    return dict(counter)


def _wrong_window(fact: UsageFact, now: datetime) -> str | None:
    start, end = _parse(fact.window_start), _parse(fact.window_end)
    if start is None:
        return f"window_start {fact.window_start}, expected a time like 2026-01-31T12:00:00Z"
    if end is None:
        return f"window_end {fact.window_end}, expected a time like 2026-01-31T12:00:00Z"
    window = f"window {fact.window_start} to {fact.window_end}"
    if end <= start:
        return f"{window}, expected an end after its start"
    if end - start > LONGEST:
        return f"{window}, expected at most {LONGEST.days} days"
    if end > now + SKEW:
        return f"{window}, expected none of the future: it is {now.strftime(_FORM)}"
    return None


def _parse(text: str) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(text)
        if not text.endswith("Z"):
            return None
        return parsed if any(parsed.strftime(form) == text for form in _FORMS) else None
    except (ValueError, OverflowError):
        return None
