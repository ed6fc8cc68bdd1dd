"""The inventory: the controller's one product, also a node's slice of it (its desired state).

`{"clachan_inventory": {...Inventory...}}`. The wrapping key, and the words `records` and `groupings` instead of
Ansible's, keep Ansible's own parsers from taking a host or a variable from the file: they would execute templates
that a tenant wrote. Only the plugin `clachan.platform.inventory` reads it, and it sets values untrusted.
"""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from clachan.contract import Document
from clachan.contract.names import Fqcn, Name, Path, Sha256

WRAPPER = "clachan_inventory"
FORMAT = 1
SECRET = "<secret>"  # noqa: S105 - what stands where a secret is not shown

WantedState = Literal["started", "stopped", "absent"]
ObservedState = Literal["waiting", "allocated", "converging", "started", "stopped", "failed", "failing", "absent"]
"""waiting: not placed or a reference is missing (the message says which); allocated: placed, its node has not begun;
failing: converged before, a promise fails now; failed: the last run or its promises failed, retried with back-off."""


class NodeAddresses(Document):
    ipv4: str
    """The /20 of the node's slots; of a VM its one address, which its slots share."""
    ipv6: str
    """The /64 of the node's slots; of a VM its one address."""
    reach: str | None = None
    """Where an operator's SSH reaches the node; set by an operator, never reported by the node."""
    links: list[str] = []
    """Where other nodes reach it directly, at most one IPv4 and one IPv6; set by an operator too."""


class NodeVariables(Document):
    """`clachan_node`: a node host."""

    id: str
    name: Name
    labels: dict[Name, str]
    addresses: NodeAddresses
    owner: Name | None
    vm: Path | None = None
    """The vm instance that the node is."""
    state: Literal["joining", "active", "drained", "revoked"]


class Ports(Document):
    first: int
    count: int


class SlotAddresses(Document):
    ipv4: str
    ipv6: str


class Limits(Document):
    memory_mib: int
    tasks: int
    cpu_milli: int


class Slot(Document):
    name: Annotated[str, Field(pattern=r"^s[0-9]{3,4}$")]
    index: int
    user: str
    directory: str
    addresses: SlotAddresses
    ports: Ports
    limits: Limits


class Child(Document):
    state: ObservedState
    published: dict[str, JsonValue]


class RemoteMember(Document):
    """A VM of the same cluster on another node."""

    path: Path
    node: Name
    ipv4: str
    ipv6: str
    links: list[str]
    """Where its node is reached from the instance's node: at most one address of each family, one that both have."""


class InstanceVariables(Document):
    """`clachan_instance`: an instance host; its parameters stand beside it as host variables."""

    id: str
    revision: int
    path: Path
    tenant: Name
    software: Fqcn
    digest: Sha256
    type: str
    state: Literal["started", "stopped", "absent", "waiting"]
    """Wanted; `waiting` when a reference is not yet published: leave it alone."""
    node: Name
    slot: Slot
    parent: Path | None
    children: dict[Name, Child]
    sealed: list[str]
    """Names of the host variables whose values are secrets. In a slice they are there, elsewhere they read <secret>."""
    remote: list[RemoteMember] = []
    """Of a VM; only what operators and nodes get has it."""


class SoftwareArtifact(Document):
    """Where the code of one digest comes from."""

    collection: str
    version: str
    artifact_sha256: Sha256 | None
    size: int
    platform: bool


class SupplyLine(Document):
    id: str
    software: Fqcn
    digest: Sha256
    state: Literal["present", "absent"]


class Inventory(Document):
    format: Literal[1] = 1
    platform: str
    """The platform's id (UUID)."""
    node: Name | None
    """The node whose slice this is; None for the inventory of all that the caller may see."""
    records: dict[str, dict[str, JsonValue]]
    """Host name -> host variables (`clachan_node` or `clachan_instance` and parameters)."""
    groupings: dict[str, list[str]]
    """Group name -> host names: nodes, instances, software_*, tenant_*, cluster_*_*, label_*_*, node_* (its
    instances), members_*_* (the nodes that are VMs of a cluster)."""
    software: dict[Sha256, SoftwareArtifact]
    supplies: list[SupplyLine]
