"""Requests and answers of `/api/v1` that are not the inventory or facts."""

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field, JsonValue, StringConstraints

from clachan.contract import Document
from clachan.contract.inventory import NodeAddresses, ObservedState, Slot, WantedState
from clachan.contract.names import Fqcn, Links, Name, Path, Sha256

Text = Annotated[str, StringConstraints(max_length=4000)]
Role = Literal["admin", "operator", "member"]
Port = Annotated[int, Field(ge=1, le=65535)]
StreamPort = Port | Literal["console", "vnc"]
"""Where a stream leads: a TCP port, or the serial console or the screen of a VM."""
T = TypeVar("T")


class ErrorBody(Document):
    code: str
    message: str
    field: str | None = None
    hint: str | None = None


class ErrorEnvelope(Document):
    error: ErrorBody


class Page(Document, Generic[T]):
    """Every list: `?limit=` (1-500, default 100) and `?cursor=` from the page before."""

    items: list[T]
    cursor: str | None = None


class Reference(Document):
    """A parameter's value that another instance of the tenant publishes."""

    source: Annotated[Path, Field(alias="from")]
    key: Name


class Placement(Document):
    labels: dict[Name, str] = {}
    node: Name | None = None
    spread: bool = False
    """Prefer the nodes that have the fewest instances of the same parent (of the tenant, for a root)."""
    inside: Path | None = None
    """The path of a vm instance: on the node that this VM is."""


class Declaration(Document):
    """`PUT /instances/{path}`: what a tenant declares. Parameters are validated by the software's schema."""

    software: Fqcn
    digest: Sha256 | None = None
    """Which build; default: what the instance has, else the newest registered."""
    type: str = "main"
    parameters: dict[str, JsonValue] = {}
    placement: Placement = Placement()
    state: WantedState = "started"
    title: Text = ""
    """Free text; not part of a revision."""


class RevisionView(Document):
    number: int
    software: Fqcn
    digest: Sha256
    type: str
    parameters: dict[str, JsonValue]
    placement: Placement
    state: WantedState
    author: str
    created: str


class Observed(Document):
    state: ObservedState
    message: str
    revision: int | None
    """The last revision that the node converged to."""
    since: str
    promises: dict[str, "PromiseView"]


class PromiseView(Document):
    ok: bool
    message: str
    since: str


class InstanceView(Document):
    id: str
    path: Path
    title: str
    tenant: Name
    parent: Path | None
    software: Fqcn
    digest: Sha256
    type: str
    revision: int
    parameters: dict[str, JsonValue]
    """References as they were declared; secrets as <secret>."""
    placement: Placement
    wanted: WantedState
    observed: Observed
    node: Name | None
    slot: Slot | None
    children: list[Path]
    published: dict[str, JsonValue]
    created: str


class AccountDeclaration(Document):
    name: Name
    title: Text = ""


class AccountView(Document):
    name: Name
    title: str
    created: str


class TenantDeclaration(Document):
    name: Name
    account: Name
    title: Text = ""


class TenantView(Document):
    name: Name
    account: Name
    title: str
    created: str


class UserDeclaration(Document):
    name: Name
    role: Role
    tenants: list[Name] = []
    reveal: bool = False
    """May see secrets; every use is an event."""


class UserView(Document):
    name: Name
    role: Role
    tenants: list[Name]
    reveal: bool
    created: str


class TokenDeclaration(Document):
    user: Name | None = None
    instance: Path | None = None
    """A token of an instance, instead of a user's."""
    title: Text = ""
    seconds: Annotated[int, Field(ge=60)] | None = None


class TokenView(Document):
    id: str
    user: Name | None
    instance: Path | None
    title: str
    created: str
    expires: str | None
    token: str | None = None
    """Shown once, in the answer that made it; only its hash is kept."""


class JoinTokenDeclaration(Document):
    node: Name
    owner: Name | None = None
    labels: dict[Name, str] = {}
    links: Links = []
    """Where other nodes reach the machine."""
    seconds: Annotated[int, Field(ge=60, le=7 * 86400)] = 3600


class JoinTokenView(Document):
    id: str
    node: Name
    owner: Name | None
    created: str
    expires: str
    used: bool
    token: str | None = None
    """`<32 hex of the CA's sha256 fingerprint>.<random>`: the joining machine trusts only that CA."""


class VmTokenDeclaration(Document):
    """`POST /nodes/self/join-tokens`: the hosting node asks for the vm instance that is placed on it.

    Asked again for a generation that has not joined, it is a fresh token, and the former ones are worthless. Another
    generation ends the identity of the former one at once.
    """

    instance: Path
    generation: Annotated[str, Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")]
    """Of the system disk: another one when the VM is built anew."""


class VmToken(Document):
    node: Name
    """`vm_` and the first 12 hex digits of the instance's id."""
    joined: bool
    """This generation has joined: there is no token."""
    token: str | None = None
    expires: str | None = None


class JoinRequest(Document):
    token: str
    node: Name
    csr: str
    """PEM, CN = the node's name, EC P-256."""


class Joined(Document):
    node: Name
    id: str
    certificate: str
    ca: str
    platform: str


class CertificateRequest(Document):
    csr: str


class NodeView(Document):
    id: str
    name: Name
    owner: Name | None
    vm: Path | None
    """The vm instance that the node is."""
    state: Literal["joining", "active", "drained", "revoked"]
    labels: dict[Name, str]
    addresses: NodeAddresses
    mode: Literal["root", "user"] | None
    version: str | None
    system: str | None
    slots: int
    slots_used: int
    memory_mib: int
    cpu_milli: int
    seen: str | None
    online: bool
    certificate_expires: str | None


class NodeChange(Document):
    labels: dict[Name, str] | None = None
    state: Literal["active", "drained"] | None = None
    reach: str | None = None
    links: Links | None = None


class SupplyDeclaration(Document):
    digest: Sha256 | None = None
    state: Literal["present", "absent"] = "present"


class SupplyView(Document):
    id: str
    node: Name
    software: Fqcn
    digest: Sha256
    state: Literal["present", "absent"]
    observed: Literal["waiting", "present", "absent", "failed"]
    message: str


class UsageView(Document):
    id: Sha256
    node: Name
    instance: str
    path: Path
    tenant: Name
    account: Name
    meter: Name
    window_start: str
    window_end: str
    quantity: int
    billable: bool
    """False when the tenant's own node counted it: then it is for charts only."""


class EventView(Document):
    id: int
    at: str
    kind: str
    tenant: Name | None
    node: Name | None
    path: str | None
    message: str
    data: dict[str, JsonValue]


class PrincipalView(Document):
    kind: Literal["user", "node", "instance"]
    name: str
    role: str
    tenants: list[Name]
    reveal: bool


class RevealRequest(Document):
    hosts: Annotated[list[Path], Field(max_length=1000)]


class Revealed(Document):
    """Host -> the sealed host variables with their values."""

    variables: dict[str, dict[str, JsonValue]]


class LogsQuestion(Document):
    """Something a user asks of a node; the node fetches it over its own outgoing connection."""

    id: str
    kind: Literal["logs"]
    instance: str
    service: Name | None = None
    lines: Annotated[int, Field(ge=1, le=10000)] = 100


class ConnectQuestion(Document):
    """A user wants a stream: the node connects and takes it up by this id, or answers with an error."""

    id: str
    kind: Literal["connect"]
    instance: str
    port: StreamPort
    any_port: bool
    """The port need not be one of the slot's: its address belongs to the instance alone."""


class DoctorQuestion(Document):
    """How is what is on the node?"""

    id: str
    kind: Literal["doctor"]


Question = Annotated[LogsQuestion | ConnectQuestion | DoctorQuestion, Field(discriminator="kind")]


class Questions(Document):
    questions: list[Question]


class Finding(Document):
    """One thing on a node: `found` is what is there, `expected` what should be, when it is not `ok`."""

    kind: str
    name: str
    ok: bool
    found: str
    expected: str = ""


class Findings(Document):
    findings: list[Finding]


class Answer(Document):
    """`logs`: service -> text."""

    logs: dict[str, str] = {}
    findings: list[Finding] = []
    error: str | None = None


class LogsView(Document):
    logs: dict[str, str]


class StreamDeclaration(Document):
    """`POST /instances/{path}/streams`: a connection to a port of the instance."""

    port: StreamPort | None = None
    """Default: 22 of a VM, else the slot's first."""


class StreamView(Document):
    """GET on `streams/{id}` takes the instance's bytes and POST brings it bytes: each once, at the same time, on a
    connection of its own."""

    id: str
    port: StreamPort


class Health(Document):
    status: Literal["ok", "failing"]
    version: str
    checks: dict[str, str]
