"""Between an instance's row and the `Standing` that the decisions speak of; who must hear when it changes."""

from dataclasses import replace

from sqlalchemy import select

from clachan.server import clock
from clachan.server.db.models import Instance, Link
from clachan.server.decisions import states
from clachan.server.services.controller import Change, Controller
from clachan.server.services.values import Values


def standing(instance: Instance, kind: str = "instance") -> states.Standing:
    """How it stands; sequence and time are those of the last applied fact of `kind`."""
    sequence, at = instance.applied.get(kind, (-1, None))
    return states.Standing(
        state=instance.observed,
        message=instance.message,
        revision=instance.observed_revision,
        since=clock.parse(instance.since),
        sequence=sequence,
        at=clock.parse(at) if at is not None else None,
    )


def keep(change: Change, instance: Instance, new: states.Standing) -> None:
    """Write it down, and tell the parent when the state that its children map shows is another."""
    shown = (instance.observed, instance.message, instance.observed_revision)
    told_parent = instance.observed != new.state
    instance.observed, instance.message, instance.observed_revision = new.state, new.message, new.revision
    instance.since = clock.text(new.since)
    if shown != (new.state, new.message, new.revision):
        change.topics.add(f"instance:{instance.path}")
    if told_parent:
        touch_parent(change, instance)


def mark_applied(instance: Instance, kind: str, sequence: int, at: str) -> None:
    # a new dictionary: a change inside the old one would not be seen
    instance.applied = {**instance.applied, kind: [sequence, at]}


def touch_parent(change: Change, instance: Instance) -> None:
    if instance.parent_id is not None:
        parent = change.session.get(Instance, instance.parent_id)
        if parent is not None:
            change.touch(parent)


def consumers(change: Change, path: str) -> list[Instance]:
    """The instances whose parameters refer to what `path` publishes."""
    users = select(Link.instance_id).where(Link.source == path)
    return list(change.session.scalars(select(Instance).where(Instance.id.in_(users))).unique())


def refresh(controller: Controller, change: Change, instances: list[Instance], unplaced: str | None = None) -> None:
    """After a request, a placing or a change of published values: whether each waits, and why.

    `unplaced`: why they got no place. An unplaced instance keeps its reason when none is given.
    """
    change.session.flush()
    values = Values(controller, change.session, instances)
    for instance in instances:
        reason = values.reason(instance)
        if instance.node_id is None:
            reason = unplaced or instance.message
        new = states.requested(standing(instance), reason, clock.parse(change.now))
        if new.state == "allocated" and instance.reported is not None and new.revision == instance.number:
            new = replace(new, state=instance.reported)
        keep(change, instance, new)
        change.touch(instance)
