"""The end of an instance: its row goes, its slot is free, its past stays (events, usage, `Former`)."""

from sqlalchemy import delete, select

from clachan.server.db.models import Former, Instance
from clachan.server.decisions import states
from clachan.server.services import standings
from clachan.server.services.controller import Change


def remove(change: Change, instance: Instance) -> None:
    """Drop an instance without children. A parent that only waited for it goes too, when nobody holds it."""
    session, tenant = change.session, instance.tenant
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
    standings.touch_parent(change, instance)
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
