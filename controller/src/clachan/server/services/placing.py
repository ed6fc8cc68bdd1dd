"""Give instances their nodes and slots, in the transaction that asked for it.

A `Board` is all nodes and what is taken on them, read once; the decision itself is `decisions.allocation`.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sqlalchemy import func, select

from clachan.contract.api import Placement
from clachan.contract.software import SoftwareMeta
from clachan.server import clock
from clachan.server.db.models import Instance, Node, Revision, Software, Supply, Tenant
from clachan.server.decisions import allocation
from clachan.server.services import clusters, standings, supplies
from clachan.server.services.controller import Change, Controller
from clachan.server.services.refusals import Conflict
from clachan.server.services.values import taken

SupplyState = Literal["waiting", "present", "absent", "failed"]


@dataclass
class Occupancy:
    """What is taken on a node."""

    slots: set[int] = field(default_factory=set)
    memory_mib: int = 0
    cpu_milli: int = 0
    tenants: Counter[str] = field(default_factory=Counter)
    parents: Counter[str] = field(default_factory=Counter)
    roots: Counter[str] = field(default_factory=Counter)
    """Root instances by tenant."""
    software: Counter[str] = field(default_factory=Counter)


class Line(NamedTuple):
    """What one instance takes of its node."""

    memory_mib: int
    cpu_milli: int
    tenant: str
    parent_id: str | None
    fqcn: str


class Board:
    def __init__(self, controller: Controller, change: Change) -> None:
        self.nodes = {row.id: row for row in change.session.scalars(select(Node)).unique()}
        self._vms: dict[str, str] = dict(change.session.execute(_VMS).all())
        self._change = change
        self._names = {row.name: row for row in self.nodes.values()}
        horizon = clock.after(-controller.settings.online_seconds)
        seen = controller.sightings.seen
        self._online = {row.id: (seen(row.id, row.seen) or "") > horizon for row in self.nodes.values()}
        self._taken: defaultdict[str, Occupancy] = defaultdict(Occupancy)
        for node, slot, memory, cpu, tenant, parent, fqcn in change.session.execute(_OCCUPIED):
            self._take(str(node), int(slot or 0), Line(memory, cpu, tenant, parent, fqcn))
        self._supplies: dict[tuple[str, str, str], SupplyState] = {
            (node, fqcn, digest): observed for node, fqcn, digest, observed in change.session.execute(_SUPPLIED)
        }

    def _take(self, node: str, slot: int, line: Line) -> None:
        taken = self._taken[node]
        taken.slots.add(slot)
        taken.memory_mib += line.memory_mib
        taken.cpu_milli += line.cpu_milli
        taken.tenants[line.tenant] += 1
        taken.software[line.fqcn] += 1
        if line.parent_id is None:
            taken.roots[line.tenant] += 1
        else:
            taken.parents[line.parent_id] += 1

    def place(self, instance: Instance) -> str | None:
        """Give it a node and a slot when there is one; else why not and what would help."""
        software = instance.revision.software
        meta = SoftwareMeta.model_validate(software.meta)
        need = taken(instance, meta)
        demand = allocation.Demand(
            path=instance.path,
            software=software.fqcn,
            digest=software.digest,
            placement=Placement.model_validate(instance.revision.placement),
            memory_mib=need.memory_mib,
            cpu_milli=need.cpu_milli,
            needs_root=meta.needs_root,
            makes_node=meta.makes_node,
            exclusive=meta.exclusive,
        )
        fellows = self._fellows(instance) if meta.makes_node else []
        answer = allocation.allocate(demand, [self._summary(node, instance, fellows) for node in self.nodes.values()])
        if isinstance(answer, allocation.Waiting):
            return answer.reason
        instance.node, instance.slot_index = self._names[answer.node], answer.slot
        instance.node_id = instance.node.id
        instance.memory_mib, instance.cpu_milli = demand.memory_mib, demand.cpu_milli
        line = Line(demand.memory_mib, demand.cpu_milli, instance.tenant.name, instance.parent_id, software.fqcn)
        self._take(instance.node.id, answer.slot, line)
        if instance.node.vm_id is not None:
            supplies.imply(self._change, instance.node, software)
        return None

    def _fellows(self, instance: Instance) -> list[Node]:
        """The machines that have other members of the VM's cluster."""
        parent = instance.parent_id
        return [
            node for node in self.nodes.values() if parent and self._taken[node.id].parents[parent] and not node.vm_id
        ]

    def _summary(self, node: Node, instance: Instance, fellows: list[Node]) -> allocation.NodeSummary:
        taken, software = self._taken[node.id], instance.revision.software
        parent = instance.parent_id
        supply = self._supplies.get((node.id, software.fqcn, software.digest))
        return allocation.NodeSummary(
            name=node.name,
            owner=node.owner.name if node.owner is not None else None,
            vm=self._vms.get(node.id),
            state=node.state,
            mode=node.mode,
            labels=node.labels,
            slots=node.slots,
            slots_used=len(taken.slots),
            free_slot=next((index for index in range(node.slots) if index not in taken.slots), None),
            memory_mib=node.memory_mib,
            memory_used=taken.memory_mib,
            cpu_milli=node.cpu_milli,
            cpu_used=taken.cpu_milli,
            tenants=frozenset(taken.tenants),
            online=self._online[node.id],
            supply="waiting" if supply == "absent" else supply,
            siblings=taken.roots[instance.tenant.name] if parent is None else taken.parents[parent],
            same_software=taken.software[software.fqcn],
            apart=not all(clusters.reaches(node, fellow) for fellow in fellows),
        )


_OCCUPIED = (
    select(
        Instance.node_id,
        Instance.slot_index,
        Instance.memory_mib,
        Instance.cpu_milli,
        Tenant.name,
        Instance.parent_id,
        Software.fqcn,
    )
    .join(Tenant, Tenant.id == Instance.tenant_id)
    .join(Revision, (Revision.instance_id == Instance.id) & (Revision.number == Instance.number))
    .join(Software, Software.id == Revision.software_id)
    .where(Instance.node_id.is_not(None))
)
_SUPPLIED = (
    select(Supply.node_id, Supply.fqcn, Software.digest, Supply.observed)
    .join(Software, Software.id == Supply.software_id)
    .where(Supply.state == "present")
)


_VMS = select(Node.id, Instance.path).join(Instance, Instance.id == Node.vm_id)


def redeclared(change: Change, instance: Instance) -> None:
    """A placed instance has a new revision: it takes what its parameters say now, and inside a VM brings its supply.

    Raises Conflict when its node has no more of it.
    """
    node = instance.node
    assert node is not None
    meta = SoftwareMeta.model_validate(instance.revision.software.meta)
    if meta.capacity_from:
        need = taken(instance, meta)
        others = (Instance.node_id == node.id) & (Instance.id != instance.id)
        sums = select(func.sum(Instance.memory_mib), func.sum(Instance.cpu_milli)).where(others)
        memory, cpu = (int(used or 0) for used in change.session.execute(sums).one())
        for part, wanted, had, free in (
            ("memory (MiB)", need.memory_mib, instance.memory_mib, node.memory_mib - memory),
            ("milli-CPU", need.cpu_milli, instance.cpu_milli, node.cpu_milli - cpu),
        ):
            if wanted > max(had, free):
                raise Conflict(f"{part} of {instance.path}: {wanted}, expected at most {free}, which {node.name} has")
        instance.memory_mib, instance.cpu_milli = need.memory_mib, need.cpu_milli
        change.capacity = True
    if node.vm_id is not None:
        supplies.imply(change, node, instance.revision.software)


def place(controller: Controller, change: Change, instances: list[Instance]) -> None:
    """Try to place each; those that got a place or another reason to wait show it."""
    board = Board(controller, change)
    placed = []
    for instance in instances:
        reason = board.place(instance)
        if reason is None:
            assert instance.node is not None
            placed.append(instance)
            where = f"{instance.path} placed on {instance.node.name}, slot {instance.slot_index}"
            tenant, node = instance.tenant.name, instance.node.name
            change.event("instance_placed", where, tenant=tenant, node=node, path=instance.path)
            standings.refresh(controller, change, [instance])
        elif reason != instance.message:
            standings.refresh(controller, change, [instance], unplaced=reason)
    clusters.touch_elsewhere(change, placed)


def place_waiting(controller: Controller, change: Change) -> None:
    """Try those again that wait for a place, in the order in which they came."""
    change.session.flush()
    query = select(Instance).where(Instance.node_id.is_(None)).order_by(Instance.created, Instance.path)
    waiting = [row for row in change.session.scalars(query).unique() if row.revision.state != "absent"]
    if waiting:
        place(controller, change, waiting)
