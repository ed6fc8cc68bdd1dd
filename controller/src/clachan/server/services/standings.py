"""Between an instance's row and the `Standing` that the decisions speak of; who must hear when it changes."""

from dataclasses import replace

from sqlalchemy import delete, select

from clachan.server import clock
from clachan.server.db.models import Instance, Link, Node, Promise
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
    if told_parent:
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
        keep(change, instance, as_vm(controller, change, instance, new))
        change.touch(instance)


def as_vm(controller: Controller, change: Change, instance: Instance, new: states.Standing) -> states.Standing:
    """Of a VM that its host calls started, what the agent inside makes of that; any other as it stands."""
    if new.state != "started" or not instance.revision.software.meta.get("makes_node"):
        return new
    node = change.session.scalar(select(Node).where(Node.vm_id == instance.id))
    joined, silent, sightings = node is not None and node.state in {"active", "drained"}, None, controller.sightings
    if node is not None and joined:
        silent = sightings.silent_since(node.id, node.seen, controller.settings.online_seconds)
        # silent while it did not run: it boots
        joined = silent is None or instance.observed in {"started", "failing"}
        joined &= not sightings.doubted(node.id, instance.observed == "converging")
        joined |= silent is not None and sightings.given_up(node.id)
    return states.of_vm(new, joined=joined, silent_since=silent, now=clock.parse(change.now))


def ask_vm(controller: Controller, change: Change, instance: Instance) -> None:
    """Its host has converged it, perhaps by a restart: the agent inside must speak again, which it can do at once."""
    if not instance.revision.software.meta.get("makes_node"):
        return
    node = change.session.scalar(select(Node).where(Node.vm_id == instance.id, Node.state.in_(["active", "drained"])))
    if node is not None:
        controller.sightings.doubt(node.id)
        change.topics.add(f"questions:{node.id}")


def vm_spoke(controller: Controller, node_id: str) -> None:
    """The agent inside a VM was heard of again after a doubt."""
    with controller.change() as change:
        node = change.session.get(Node, node_id)
        if node is not None and node.vm_id is not None:
            heard_of_vm(controller, change, node.vm_id)


def heard_of_vm(controller: Controller, change: Change, identifier: str) -> None:
    """The agent inside a VM joined, reported, or fell silent: the vm instance shows it."""
    instance = change.session.get(Instance, identifier)
    if instance is None or instance.reported != "started" or instance.observed in {"waiting", "allocated"}:
        return
    said = replace(standing(instance), state="started", message="", since=clock.parse(change.now))
    before = instance.observed
    keep(change, instance, as_vm(controller, change, instance, said))
    if instance.observed != before:
        state_event(change, instance)


def watch_vms(controller: Controller) -> None:
    """Now and then: VMs whose agent fell silent, or is heard of again, show it."""
    rows = select(Instance.id, Instance.observed, Node.id, Node.seen).join(Node, Node.vm_id == Instance.id)
    rows = rows.where(Instance.reported == "started", Node.state.in_(["active", "drained"]))
    with controller.read() as session:
        found = session.execute(rows.where(Instance.observed.in_(["started", "failing", "converging"]))).all()
    sightings, seconds = controller.sightings, controller.settings.online_seconds

    def is_late(shown: str, node: str, seen: str | None) -> bool:
        silent = sightings.silent_since(node, seen, seconds) is not None
        if shown == "converging" and silent:
            return sightings.given_up(node)
        return (shown == "started") == silent and not sightings.doubted(node, shown == "converging")

    late = [vm for vm, shown, node, seen in found if is_late(shown, node, seen)]
    if late:
        with controller.change() as change:
            for identifier in late:
                heard_of_vm(controller, change, identifier)


def state_event(change: Change, instance: Instance) -> None:
    assert instance.node is not None
    said = f": {instance.message}" if instance.message else ""
    text = f"{instance.path} is {instance.observed}{said}"
    tenant, node = instance.tenant.name, instance.node.name
    change.event("instance_state", text, tenant=tenant, node=node, path=instance.path)


def begin_again(change: Change, instance: Instance) -> None:
    """What its node said no longer counts: the node is built anew, or gone."""
    change.session.execute(delete(Promise).where(Promise.instance_id == instance.id))
    instance.applied, instance.reported = {}, None
    keep(change, instance, states.moved(standing(instance), clock.parse(change.now)))
    change.touch(instance)
