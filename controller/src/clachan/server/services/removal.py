"""The end of an instance: its row goes, its slot is free, its past stays (events, usage, `Former`)."""

from sqlalchemy import delete, select

from clachan.server.db.models import Former, Instance, JoinToken, Node, Secret
from clachan.server.decisions import states
from clachan.server.services import clusters, standings
from clachan.server.services.controller import Change


def remove(change: Change, instance: Instance) -> None:
    """Drop an instance without children. A parent that only waited for it goes too, when nobody holds it."""
    session, tenant = change.session, instance.tenant
    if (own := session.scalar(select(Node).where(Node.vm_id == instance.id))) is not None:
        _remove_node(change, own)
    node = instance.node.name if instance.node is not None else None
    session.add(
        Former(
            id=instance.id,
            path=instance.path,
            tenant=tenant.name,
            account=tenant.account.name,
            node_id=instance.node_id,
            removed=change.now,
        )
    )
    text = f"{instance.path} is removed"
    change.event("instance_removed", text, tenant=tenant.name, node=node, path=instance.path)
    change.touch(instance)
    clusters.touch_elsewhere(change, [instance])
    _touch_above(change, instance)
    parent_id = instance.parent_id
    users = standings.consumers(change, instance.path)
    session.flush()
    session.expunge(instance)
    session.execute(delete(Instance).where(Instance.id == instance.id))
    change.capacity, change.principals = True, True
    for user in users:
        change.touch(user)
    parent = session.get(Instance, parent_id) if parent_id is not None else None
    if parent is not None:
        remove_if_unheld(change, parent)


def _touch_above(change: Change, instance: Instance) -> None:
    """All above it: a VM waits for whatever is below it and outside."""
    parent = change.session.get(Instance, instance.parent_id) if instance.parent_id is not None else None
    if parent is not None:
        change.touch(parent)
        _touch_above(change, parent)


def _remove_node(change: Change, node: Node) -> None:
    """The node that a VM was, with its certificates and supplies. What was wanted absent goes too, deepest first; the
    rest waits for another place, and publishes nothing."""
    session = change.session
    inside = select(Instance).where(Instance.node_id == node.id).order_by(Instance.path.desc())
    for instance in session.scalars(inside).unique().all():
        if instance not in session:
            continue
        standings.begin_again(change, instance)
        instance.node, instance.slot_index, instance.memory_mib, instance.cpu_milli = None, None, 0, 0
        instance.published = {}
        session.execute(delete(Secret).where(Secret.instance_id == instance.id, Secret.kind == "published"))
        session.flush()
        for user in standings.consumers(change, instance.path):
            change.touch(user)
        remove_if_unheld(change, instance)
    session.execute(delete(JoinToken).where(JoinToken.node == node.name))
    session.flush()
    session.expunge(node)
    session.execute(delete(Node).where(Node.id == node.id))
    change.topics |= {f"node:{node.id}", f"questions:{node.id}"}
    change.touch_node(node.id)
    change.event("node_removed", f"node {node.name} is removed with its VM", node=node.name)


def remove_if_unheld(change: Change, instance: Instance) -> None:
    """Drop it when it is wanted absent and no node has it."""
    left = list(change.session.scalars(select(Instance.path).where(Instance.parent_id == instance.id)))
    if states.drops_at_once(instance.revision.state, placed=instance.node_id is not None, children=left):
        remove(change, instance)


def remove_tree(change: Change, instance: Instance) -> None:
    """Drop it with all below it: its node will never report again."""
    for child in change.session.scalars(select(Instance).where(Instance.parent_id == instance.id)).unique().all():
        remove_tree(change, child)
    if instance in change.session:
        remove(change, instance)
