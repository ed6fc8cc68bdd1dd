"""Allocation: which node and which slot an instance gets, from one summary of each node.

The nodes pass one filter after another; where none is left, the reason is of that filter, about the nodes that came
so far.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clachan.contract.api import Placement
from clachan.contract.names import tenant_of

_NAMED = 5  # nodes that a reason names before it says how many more there are


@dataclass(frozen=True)
class Demand:
    """What an instance needs."""

    path: str
    software: str
    digest: str
    placement: Placement
    memory_mib: int
    cpu_milli: int
    needs_root: bool = False
    makes_node: bool = False
    exclusive: bool = False

    @property
    def tenant(self) -> str:
        return tenant_of(self.path)


@dataclass(frozen=True)
class NodeSummary:
    """A node as allocation sees it; the last three fields are seen from the demand."""

    name: str
    owner: str | None
    """The tenant that owns it; None: the operator's."""
    vm: str | None
    """Path of the vm instance that the node is."""
    state: Literal["joining", "active", "drained", "revoked"]
    mode: Literal["root", "user"] | None
    """None until the node has reported itself."""
    labels: Mapping[str, str]
    slots: int
    slots_used: int
    free_slot: int | None
    """The lowest free slot; None when all are taken."""
    memory_mib: int
    memory_used: int
    cpu_milli: int
    cpu_used: int
    tenants: frozenset[str]
    """Whose instances it has; only read for a node in the unprivileged mode."""
    online: bool = True
    supply: Literal["waiting", "present", "failed"] | None = None
    """Of the demand's software and digest, where it is declared present on the node."""
    siblings: int = 0
    """Its instances of the same parent; of the same tenant, for a root."""
    same_software: int = 0
    """Its instances of the demand's software, of any digest."""
    apart: bool = False
    """Whether the demand is a VM that would not reach its cluster's other members from here."""


@dataclass(frozen=True)
class Placed:
    node: str
    slot: int


@dataclass(frozen=True)
class Waiting:
    reason: str
    """Why there is no place, and what would help."""


def allocate(demand: Demand, nodes: Iterable[NodeSummary]) -> Placed | Waiting:
    """The best node that satisfies the demand and its lowest free slot; the same input gives the same place.

    Best: online first, then where a VM reaches its cluster, then (with `spread`) the fewest siblings, then the smallest
    share of slots taken, then by name.
    """
    left: Sequence[NodeSummary] = sorted(nodes, key=lambda node: node.name)
    for admits, reason in _FILTERS:
        passed = [node for node in left if admits(demand, node)]
        if not passed:
            return Waiting(reason(demand, left))
        left = passed
    best = min(left, key=lambda node: _rank(demand, node))
    assert best.free_slot is not None
    return Placed(best.name, best.free_slot)


def _rank(demand: Demand, node: NodeSummary) -> tuple[bool, bool, int, int, str]:
    siblings = node.siblings if demand.placement.spread else 0
    return not node.online, node.apart, siblings, node.slots_used * 1_000_000 // max(node.slots, 1), node.name


def _is_candidate(demand: Demand, node: NodeSummary) -> bool:
    return node.state != "revoked" and node.owner in {None, demand.tenant}


def _no_candidate(demand: Demand, _: Sequence[NodeSummary]) -> str:
    return f"no node serves tenant {demand.tenant}: join one with `clachan node join`"


def _is_inside(demand: Demand, node: NodeSummary) -> bool:
    if demand.placement.inside is not None:
        joined = node.vm == demand.placement.inside and node.state != "joining"
        return joined and node.owner == demand.tenant
    # a VM is its cluster's: what did not ask for it goes elsewhere
    return node.vm is None or node.name == demand.placement.node


def _not_inside(demand: Demand, _: Sequence[NodeSummary]) -> str:
    if demand.placement.inside is not None:
        return f"waiting for the VM {demand.placement.inside} to join as a node"
    return "no node but VMs: place it `inside` one, or join a node with `clachan node join`"


def _is_named(demand: Demand, node: NodeSummary) -> bool:
    return demand.placement.node in {None, node.name}


def _not_named(demand: Demand, _: Sequence[NodeSummary]) -> str:
    return f"no node is named {demand.placement.node}: join it with `clachan node join`, or place it on another"


def _has_labels(demand: Demand, node: NodeSummary) -> bool:
    return all(node.labels.get(key) == value for key, value in demand.placement.labels.items())


def _no_labels(demand: Demand, nodes: Sequence[NodeSummary]) -> str:
    wanted = ", ".join(f"{key}={value}" for key, value in sorted(demand.placement.labels.items()))
    return f"no node has the labels {wanted}: give them to a node ({_names(nodes)}) or ask for others"


def _is_active(_: Demand, node: NodeSummary) -> bool:
    return node.state == "active"


def _not_active(_: Demand, nodes: Sequence[NodeSummary]) -> str:
    return f"no node is active ({_names(nodes, lambda node: node.state)}): make one active or join another"


def _is_known(_: Demand, node: NodeSummary) -> bool:
    return node.mode is not None


def _not_known(_: Demand, nodes: Sequence[NodeSummary]) -> str:
    return f"waiting for the first report of {_names(nodes)}: see that the agent runs there"


def _has_mode(demand: Demand, node: NodeSummary) -> bool:
    return (node.mode == "root" or not demand.needs_root) and not (demand.makes_node and node.vm)


def _no_mode(demand: Demand, nodes: Sequence[NodeSummary]) -> str:
    if demand.makes_node and (vms := [node for node in nodes if node.vm is not None]):
        return f"{demand.software} makes a VM and {_names(vms)} is one: place it on a machine"
    return f"{demand.software} needs root and {_names(nodes)} runs without: join a node as root"


def _is_own(demand: Demand, node: NodeSummary) -> bool:
    # the unprivileged mode has no isolation between slots
    return node.mode == "root" or node.tenants <= {demand.tenant}


def _not_own(_: Demand, nodes: Sequence[NodeSummary]) -> str:
    return f"{_names(nodes)} runs without root and so serves one tenant only, another one: join a node as root"


def _has_supply(demand: Demand, node: NodeSummary) -> bool:
    return node.supply in {"waiting", "present"} or (demand.placement.inside is not None and node.supply is None)


def _no_supply(demand: Demand, nodes: Sequence[NodeSummary]) -> str:
    if failed := [node for node in nodes if node.supply == "failed"]:
        return f"the supply of {demand.software} on {_names(failed)} failed: see `clachan supply`"
    return f"no node has a supply of {demand.software}: supply it with `clachan supply`"


def _is_exclusive(demand: Demand, node: NodeSummary) -> bool:
    return not demand.exclusive or node.same_software == 0


def _not_exclusive(demand: Demand, nodes: Sequence[NodeSummary]) -> str:
    return f"{demand.software} has one instance per node, and {_names(nodes)} has one: supply it on another node"


def _has_slot(_: Demand, node: NodeSummary) -> bool:
    return node.free_slot is not None


def _no_slot(_: Demand, nodes: Sequence[NodeSummary]) -> str:
    total = sum(node.slots for node in nodes)
    return f"all {total} slots of {_names(nodes)} are taken: remove an instance or add a node"


def _has_capacity(demand: Demand, node: NodeSummary) -> bool:
    free_memory, free_cpu = node.memory_mib - node.memory_used, node.cpu_milli - node.cpu_used
    return demand.memory_mib <= free_memory and demand.cpu_milli <= free_cpu


def _no_capacity(demand: Demand, nodes: Sequence[NodeSummary]) -> str:
    def free(node: NodeSummary) -> str:
        return f"{node.memory_mib - node.memory_used} MiB and {node.cpu_milli - node.cpu_used} milli-CPU free"

    need = f"{demand.memory_mib} MiB of memory and {demand.cpu_milli} milli-CPU"
    return f"{demand.software} needs {need}: {_names(nodes, free)}: remove an instance or add a node"


_Filter = tuple[Callable[[Demand, NodeSummary], bool], Callable[[Demand, Sequence[NodeSummary]], str]]
_FILTERS: Sequence[_Filter] = (
    (_is_candidate, _no_candidate),
    (_is_named, _not_named),
    (_is_inside, _not_inside),
    (_has_labels, _no_labels),
    (_is_active, _not_active),
    (_is_known, _not_known),
    (_has_mode, _no_mode),
    (_is_own, _not_own),
    (_has_supply, _no_supply),
    (_is_exclusive, _not_exclusive),
    (_has_slot, _no_slot),
    (_has_capacity, _no_capacity),
)


def _names(nodes: Sequence[NodeSummary], note: Callable[[NodeSummary], str] | None = None) -> str:
    shown = [f"{node.name} ({note(node)})" if note else node.name for node in nodes[:_NAMED]]
    more = [f"{len(nodes) - _NAMED} more"] if len(nodes) > _NAMED else []
    return ", ".join(shown + more)
