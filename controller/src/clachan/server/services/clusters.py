"""Clusters over several nodes: whom of its cluster on other nodes a VM's host must know, and who hears of a change.

A member is a VM that has a place. What a host is told of its own node's members does not depend on others, so a
cluster that grows or shrinks changes nothing there where it does not.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from clachan.contract.inventory import RemoteMember
from clachan.server.db.models import Instance, Node, Revision, Software
from clachan.server.decisions import addresses
from clachan.server.services.refusals import Invalid

if TYPE_CHECKING:
    from clachan.server.services.controller import Change, Controller


def remote_members(
    controller: "Controller", session: Session, instances: Sequence[Instance]
) -> dict[str, list[RemoteMember]]:
    """Instance id -> its cluster's members on other nodes; without a query when none of the instances is a VM."""
    mine = [one for one in instances if one.node is not None and one.revision.software.meta.get("makes_node")]
    if not mine:
        return {}
    found: dict[str, list[tuple[Any, RemoteMember]]] = defaultdict(list)
    platform, wanted = controller.platform, {_cluster(one.path) for one in mine}
    for row in session.execute(_members({one.tenant_id for one in mine}).where(Node.state != "revoked")):
        if _cluster(row.path) in wanted:
            node = addresses.node_addresses(platform.prefix, "private", platform.offset, row.number)
            own = addresses.slot_addresses(node, row.slot_index)
            member = RemoteMember(path=row.path, node=row.name, ipv4=own.ipv4, ipv6=own.ipv6, links=row.links)
            found[_cluster(row.path)].append((row.node_id, member))
    return {
        one.id: [_seen_from(one.node, member) for node, member in found[_cluster(one.path)] if node != one.node_id]
        for one in mine
    }


def _seen_from(node: Node | None, member: RemoteMember) -> RemoteMember:
    """The way leads there and back, so it is of a family of which both nodes have an address."""
    own = {":" in link for link in node.links} if node is not None else set()
    return member.model_copy(update={"links": [link for link in member.links if (":" in link) in own]})


def reaches(node: Node, other: Node) -> bool:
    """Whether VMs on the two reach each other, by IPv4 and by IPv6."""
    return node is other or all(len({":" in link for link in one.links}) == 2 for one in (node, other))


def touch_elsewhere(change: "Change", members: Sequence[Instance]) -> None:
    """These came, went or are reached elsewhere: their clusters' members on other nodes show it."""
    nodes: dict[str, set[str | None]] = defaultdict(set)
    for one in members:
        if one.revision.software.meta.get("makes_node"):
            nodes[_cluster(one.path)].add(one.node_id)
    if nodes:
        change.session.flush()
        for row in change.session.execute(_members({one.tenant_id for one in members})):
            if nodes.get(_cluster(row.path), set()) - {row.node_id}:
                change.hosts.add((row.node_id, row.id))


def touch_other_ends(change: "Change", node: Node) -> None:
    """The node is reached by another way, or no longer: those hear of it that have fellows there."""
    touch_elsewhere(change, list(change.session.scalars(select(Instance).where(Instance.node_id == node.id)).unique()))


def _members(tenants: Iterable[int]) -> Select[str, str, int | None, str | None, str, int, list[str]]:
    current = (Revision.instance_id == Instance.id) & (Revision.number == Instance.number)
    return (
        select(Instance.id, Instance.path, Instance.slot_index, Instance.node_id, Node.name, Node.number, Node.links)
        .join(Node, Node.id == Instance.node_id)
        .join(Revision, current)
        .join(Software, Software.id == Revision.software_id)
        .where(Instance.tenant_id.in_(tenants), Software.meta["makes_node"].as_boolean())
        .order_by(Instance.path)
    )


def _cluster(path: str) -> str:
    return ".".join(path.split(".", 2)[:2])


def check_links(controller: "Controller", session: Session, node: str, owned: bool, links: list[str]) -> None:
    """Raises Invalid when other nodes cannot reach the node there; `owned`: by a tenant."""
    if links and owned:
        raise Invalid(f"links of node {node}: belongs to a tenant, expected a machine of the operator", "links")
    platform, rows = controller.platform, session.execute(select(Node.name, Node.number, Node.links)).all()
    numbers = {row.number for row in rows} if links else set()
    for link in links:
        address = ip_address(link)
        own = address in IPv6Network(platform.prefix)
        own |= isinstance(address, IPv4Address) and addresses.number_at(platform.offset, address) in numbers
        if own or any(link in row.links and row.name != node for row in rows):
            message = f"links of node {node}: {link}, expected an address outside the platform that no other node has"
            raise Invalid(message, "links")
