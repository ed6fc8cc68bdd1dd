"""How an instance stands: what a request makes of it, what its node's facts make of it, when it goes.

An instance keeps what its node said of it until the node says something else, also when a newer revision is wanted:
`Standing.revision` tells that it is behind. Facts of a node come in any order and more than once; an older one than
the last applied changes nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from clachan.contract.api import Declaration
from clachan.contract.facts import InstanceFact, OutageFact, PromiseResult
from clachan.contract.inventory import ObservedState, WantedState

EffectiveState = Literal["started", "stopped", "absent", "waiting"]

_REPORTED: Mapping[WantedState, frozenset[ObservedState]] = {
    "started": frozenset({"converging", "started", "failing", "failed"}),
    "stopped": frozenset({"converging", "stopped", "failing", "failed"}),
    "absent": frozenset({"converging", "absent", "failed"}),
}
"""What a node may say of the current revision; `waiting` and `allocated` are the controller's words."""
_CONVERGED: frozenset[ObservedState] = frozenset({"started", "stopped", "failing"})
VM_JOINS = "waiting for the VM's agent to report"
_CONTROLLERS: frozenset[ObservedState] = frozenset({"waiting", "allocated"})


@dataclass(frozen=True)
class Standing:
    """How an instance stands, as the controller keeps it. All times are UTC."""

    state: ObservedState
    message: str
    revision: int | None
    """The last revision that the node converged to."""
    since: datetime
    """When it came into this state, by the clock of who said so."""
    sequence: int = -1
    """Of the last fact applied; -1 when its present node has said nothing yet."""
    at: datetime | None = None
    """When that fact was made, by the node's clock."""


@dataclass(frozen=True)
class Wanted:
    """The current revision of an instance."""

    revision: int
    state: WantedState


@dataclass(frozen=True)
class Applied:
    standing: Standing
    drop: bool = False
    """The instance is gone: delete its row, free its slot, make an event."""


@dataclass(frozen=True)
class Stale:
    """An older fact than the last applied: accepted, changes nothing."""


@dataclass(frozen=True)
class Refused:
    message: str


@dataclass(frozen=True)
class ChildChanges:
    declare: dict[str, Declaration]
    """Names and declarations as requested; an identical one makes no revision."""
    remove: tuple[str, ...]
    """Names of children that are still wanted and no longer requested: wanted absent, sorted."""


@dataclass(frozen=True)
class EventDraft:
    kind: str
    message: str
    data: dict[str, Any]


@dataclass(frozen=True)
class PromiseStanding:
    ok: bool
    message: str
    since: datetime


def requested(standing: Standing | None, reason: str | None, now: datetime) -> Standing:
    """After a new revision, an allocation or a new published value.

    `reason` is why it waits (not placed, a reference is missing, its children are still there), None when it does not.
    """
    if reason is not None:
        return _put(standing or Standing("waiting", reason, None, now), "waiting", reason, now)
    if standing is None or standing.state in {"waiting", "absent"}:
        return _put(standing or Standing("allocated", "", None, now), "allocated", "", now)
    return standing


def moved(standing: Standing, now: datetime) -> Standing:
    """After it got another node: what the former node said no longer counts."""
    return replace(_put(standing, "allocated", "", now), revision=None, sequence=-1, at=None)


def effective_state(wanted: WantedState, children: Collection[str], reason: str | None) -> tuple[EffectiveState, str]:
    """The state that the slice shows, and why it waits (else empty).

    `children`: the names of those that still exist: a parent is removed after them. `reason`: why its references or
    its place wait. Removal needs no references.
    """
    if wanted == "absent":
        if children:
            return "waiting", f"waiting for its children to be removed: {', '.join(sorted(children))}"
        return "absent", ""
    return (wanted, "") if reason is None else ("waiting", reason)


def drops_at_once(wanted: WantedState, *, placed: bool, children: Collection[str]) -> bool:
    """An absent instance that no node ever got has nobody to wait for."""
    return wanted == "absent" and not placed and not children


def is_stale(standing: Standing, sequence: int, at: datetime) -> bool:
    """Whether a fact of the instance's node is older than the last one applied.

    By sequence; but a reinstalled spool counts from the start again, so one that was made later is not older.
    """
    return sequence <= standing.sequence and (standing.at is None or at <= standing.at)


def judge(
    standing: Standing, wanted: Wanted, fact: InstanceFact, *, sequence: int, at: datetime
) -> Applied | Stale | Refused:
    """What an instance fact of the instance's own node makes of it.

    An instance is dropped when its node says `absent` of the very revision that wants it. One that waits goes on
    waiting, whatever its node says of an older revision, until `requested` ends it.
    """
    if (message := _wrong(wanted, fact)) is not None:
        return Refused(message)
    if is_stale(standing, sequence, at):
        return Stale()
    behind = fact.revision < wanted.revision
    revision = fact.revision if fact.state in _CONVERGED else standing.revision
    waits = behind and standing.state == "waiting"
    put = standing if waits else _put(standing, fact.state, fact.message, at)
    after = replace(put, revision=revision, sequence=sequence, at=at)
    return Applied(after, drop=fact.state == "absent" and wanted.state == "absent" and not behind)


def of_vm(standing: Standing, *, joined: bool, silent_since: str | None, now: datetime) -> Standing:
    """A vm instance as it is shown: when its host calls it started, the agent inside must say so too, and go on.

    `joined`: its agent has reported since it was built or started; `silent_since`: when it was last heard of, when that
    is too long ago.
    """
    if standing.state != "started":
        return standing
    if not joined:
        return _put(standing, "converging", VM_JOINS, now)
    if silent_since is not None:
        said = f"the VM's agent: last heard of at {silent_since}, expected a VM that runs and reaches the controller"
        return _put(standing, "failing", said, now)
    return standing


def promises(
    before: Mapping[str, PromiseStanding], results: Mapping[str, PromiseResult], at: datetime
) -> dict[str, PromiseStanding]:
    """The complete set of results; `since` is when `ok` last changed."""
    return {name: _promise(before.get(name), result, at) for name, result in results.items()}


def children(
    existing: Mapping[str, WantedState], declared: Mapping[str, Declaration], *, parent: WantedState
) -> ChildChanges:
    """What the complete set of requests of a parent changes: missing is wanted absent; an absent parent has none."""
    declare = {} if parent == "absent" else dict(declared)
    gone = (name for name, wanted in existing.items() if name not in declare and wanted != "absent")
    return ChildChanges(declare, tuple(sorted(gone)))


def outage_event(path: str, fact: OutageFact) -> EventDraft:
    """Kind `outage` when it began, `recovery` when it ended: an outage is one event of each."""
    what = f"{path}: promise {', '.join(sorted(fact.promises)) or 'unknown'}"
    data = {"began": fact.began, "ended": fact.ended, "promises": sorted(fact.promises)}
    if fact.phase == "began":
        said = f": {fact.message}" if fact.message else ""
        return EventDraft("outage", f"{what} fails since {fact.began}{said}", data)
    return EventDraft("recovery", f"{what} passes again since {fact.ended}, failed since {fact.began}", data)


def _put(standing: Standing, state: ObservedState, message: str, now: datetime) -> Standing:
    since = standing.since if standing.state == state else now
    return replace(standing, state=state, message=message, since=since)


def _wrong(wanted: Wanted, fact: InstanceFact) -> str | None:
    what = f"fact of instance {fact.instance}"
    if not 1 <= fact.revision <= wanted.revision:
        return f"{what}: revision {fact.revision}, expected 1 to {wanted.revision}"
    if fact.state in _CONTROLLERS:
        return f"{what}: state {fact.state}, expected one that its node can know"
    allowed = _REPORTED[wanted.state]
    if fact.revision == wanted.revision and fact.state not in allowed:
        return f"{what}: state {fact.state}, expected one of {', '.join(sorted(allowed))}: it is wanted {wanted.state}"
    return None


def _promise(before: PromiseStanding | None, result: PromiseResult, at: datetime) -> PromiseStanding:
    since = before.since if before is not None and before.ok == result.ok else at
    return PromiseStanding(result.ok, result.message, since)
