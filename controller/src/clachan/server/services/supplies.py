"""Supplies: this software on that node."""

import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from clachan.contract.api import Page, SupplyDeclaration, SupplyView
from clachan.server.db.models import Instance, Node, Revision, Software, Supply
from clachan.server.services.controller import Change, Controller
from clachan.server.services.pages import Wanted
from clachan.server.services.refusals import Conflict, Invalid, NotFound


def search(controller: Controller, wanted: Wanted, node: str | None) -> Page[SupplyView]:
    query = select(Supply)
    if node is not None:
        query = query.where(Supply.node_id.in_(select(Node.id).where(Node.name == node)))
    with controller.read() as session:
        return wanted.page(session, query, Supply.id, view)


def get(controller: Controller, node: str, fqcn: str) -> SupplyView:
    with controller.read() as session:
        supply = _find(session, _node(session, node), fqcn)
        if supply is None:
            raise NotFound(f"supply of {fqcn} on {node}: unknown, expected one that exists")
        return view(supply)


def put(controller: Controller, node_name: str, fqcn: str, declaration: SupplyDeclaration) -> tuple[SupplyView, bool]:
    """Declare a supply; says whether it is new. The same again changes nothing."""
    with controller.change() as change:
        node = _node(change.session, node_name)
        if node.state == "revoked":
            raise Conflict(f"node {node_name}: revoked, expected one that is not", "node")
        supply = _find(change.session, node, fqcn)
        created = supply is None
        if supply is None:
            if declaration.state == "absent":
                raise NotFound(f"supply of {fqcn} on {node_name}: unknown, expected one that exists")
            supply = _new(node, build(change.session, fqcn, declaration.digest))
            change.session.add(supply)
        elif not _update(change.session, supply, declaration):
            return view(supply), False
        change.touch_node(node.id)
        change.capacity = True
        change.event("supply_declared", f"{fqcn} on node {node_name}: {declaration.state}", node=node_name)
        change.session.flush()
        return view(supply), created


def imply(change: Change, node: Node, software: Software) -> None:
    """Inside a VM a supply is not declared: what was asked for last is present."""
    supply = _find(change.session, node, software.fqcn)
    if supply is None:
        change.session.add(_new(node, software))
    elif (supply.software_id, supply.state) != (software.id, "present"):
        supply.software, supply.state, supply.observed, supply.message = software, "present", "waiting", ""
    else:
        return
    change.touch_node(node.id)
    change.event("supply_declared", f"{software.fqcn} on node {node.name}: present", node=node.name)


def _new(node: Node, software: Software) -> Supply:
    supply = Supply(id=str(uuid.uuid4()), node=node, fqcn=software.fqcn, software=software, state="present")
    supply.observed, supply.message, supply.applied = "waiting", "", {}
    return supply


def _update(session: Session, supply: Supply, declaration: SupplyDeclaration) -> bool:
    """A changed supply waits for its node again; says whether it changed."""
    software = build(session, supply.fqcn, declaration.digest) if declaration.digest is not None else supply.software
    if (software.id, declaration.state) == (supply.software_id, supply.state):
        return False
    if declaration.state == "absent" and (user := _user(session, supply)) is not None:
        raise Conflict(
            f"supply of {supply.fqcn} on {supply.node.name}: used by {user}, expected no instance of it", "state"
        )
    supply.software, supply.state = software, declaration.state
    supply.observed, supply.message = "waiting", ""
    return True


def _user(session: Session, supply: Supply) -> str | None:
    """An instance on the node that has this software."""
    current = (Revision.instance_id == Instance.id) & (Revision.number == Instance.number)
    query = select(Instance.path).join(Revision, current).join(Software, Software.id == Revision.software_id)
    query = query.where(Instance.node_id == supply.node_id, Software.fqcn == supply.fqcn)
    return session.scalar(query.order_by(Instance.path).limit(1))


def build(session: Session, fqcn: str, digest: str | None) -> Software:
    """The build with the digest, or the newest registered. Raises Invalid."""
    query = select(Software).where(Software.fqcn == fqcn)
    query = query.where(Software.current) if digest is None else query.where(Software.digest == digest)
    found = session.scalar(query)
    if found is None:
        which = f"software {fqcn}: unknown" if digest is None else f"software {fqcn}: digest {digest}"
        raise Invalid(f"{which}, expected a registered one", "software" if digest is None else "digest")
    return found


def view(row: Supply) -> SupplyView:
    return SupplyView(
        id=row.id,
        node=row.node.name,
        software=row.fqcn,
        digest=row.software.digest,
        state=row.state,
        observed=row.observed,
        message=row.message,
    )


def _node(session: Session, name: str) -> Node:
    node = session.scalar(select(Node).where(Node.name == name))
    if node is None:
        raise NotFound(f"node {name}: unknown, expected one that joined", "node")
    return node


def _find(session: Session, node: Node, fqcn: str) -> Supply | None:
    return session.scalar(select(Supply).where(Supply.node_id == node.id, Supply.fqcn == fqcn))
