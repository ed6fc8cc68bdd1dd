"""Nodes as operators see them."""

from collections import defaultdict

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from clachan.contract.api import NodeChange, NodeView, Page
from clachan.server import clock
from clachan.server.db.models import Certificate, Instance, Node
from clachan.server.services import clusters
from clachan.server.services.controller import Controller
from clachan.server.services.pages import Wanted
from clachan.server.services.principals import Principal
from clachan.server.services.refusals import Conflict, NotFound
from clachan.server.services.values import node_addresses


def search(controller: Controller, wanted: Wanted) -> Page[NodeView]:
    with controller.read() as session:
        rows, cursor = wanted.rows(session, select(Node), Node.name)
        return Page[NodeView].model_construct(items=_views(controller, session, rows), cursor=cursor)


def get(controller: Controller, name: str) -> NodeView:
    with controller.read() as session:
        return _views(controller, session, [_find(session, name)])[0]


def put(controller: Controller, name: str, wanted: NodeChange) -> NodeView:
    """Change labels, state, reach or links; what is not given stays."""
    with controller.change() as change:
        node = _find(change.session, name)
        if wanted.state is not None and node.state in {"revoked", "joining"}:
            raise Conflict(f"node {name}: is {node.state}, expected active or drained", "state")
        before = (node.labels, node.state, node.reach, node.links)
        node.labels = dict(wanted.labels) if wanted.labels is not None else node.labels
        node.state = wanted.state or node.state
        node.reach = wanted.reach if "reach" in wanted.model_fields_set else node.reach
        if wanted.links is not None and wanted.links != node.links:
            clusters.check_links(controller, change.session, name, node.owner_id is not None, wanted.links)
            node.links = wanted.links
            clusters.touch_other_ends(change, node)
        if before != (node.labels, node.state, node.reach, node.links):
            change.touch_node(node.id)
            change.capacity = True
            change.event("node_changed", f"node {name} changed", node=name)
        return _views(controller, change.session, [node])[0]


def located(controller: Controller, principal: Principal, name: str) -> str:
    """Id of a node that the caller sees: an operator each, a member those of its tenants."""
    with controller.read() as session:
        node = _find(session, name)
        if not principal.sees(node.owner.name if node.owner is not None else None):
            raise _unknown(name)
        return node.id


def _find(session: Session, name: str) -> Node:
    node = session.scalar(select(Node).where(Node.name == name))
    if node is None:
        raise _unknown(name)
    return node


def _unknown(name: str) -> NotFound:
    return NotFound(f"node {name}: unknown, expected one that joined", "node")


def _views(controller: Controller, session: Session, rows: list[Node]) -> list[NodeView]:
    ids = [row.id for row in rows]
    used: dict[str | None, int] = defaultdict(int)
    counted = select(Instance.node_id, func.count()).where(Instance.node_id.in_(ids)).group_by(Instance.node_id)
    for node, count in session.execute(counted):
        used[node] = count
    valid = select(Certificate.node_id, func.max(Certificate.expires))
    valid = valid.where(Certificate.node_id.in_(ids), Certificate.revoked.is_(None)).group_by(Certificate.node_id)
    expires: dict[str, str] = dict(session.execute(valid).all())
    named = select(Node.id, Instance.path).join(Instance, Instance.id == Node.vm_id).where(Node.id.in_(ids))
    vms: dict[str, str] = dict(session.execute(named).all())
    return [_view(controller, row, used[row.id], expires.get(row.id), vms.get(row.id)) for row in rows]


def _view(controller: Controller, row: Node, used: int, expires: str | None, vm: str | None) -> NodeView:
    seen = controller.sightings.seen(row.id, row.seen)
    horizon = clock.after(-controller.settings.online_seconds)
    return NodeView(
        id=row.id,
        name=row.name,
        owner=row.owner.name if row.owner is not None else None,
        vm=vm,
        state=row.state,
        labels=row.labels,
        addresses=node_addresses(controller, row),
        mode=row.mode,
        version=row.version,
        system=row.system,
        slots=row.slots,
        slots_used=used,
        memory_mib=row.memory_mib,
        cpu_milli=row.cpu_milli,
        seen=seen,
        online=row.state != "revoked" and seen is not None and seen > horizon,
        certificate_expires=expires,
    )
