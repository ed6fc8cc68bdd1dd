"""The tables. Types are portable between SQLite and PostgreSQL: text, integers, booleans and JSON.

Times are `clock` texts, quantities integers, identifiers UUID or sha256 texts. A slot is held by the instance row
itself, `(node_id, slot_index)` is unique: two instances cannot share one. Revisions, usage and events are never
changed. Secrets stand only in `Secret`; a revision's parameters refer to them (`services.secrets`).
"""

from typing import Any, ClassVar, Literal

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from clachan.contract.inventory import ObservedState, WantedState

Json = JSON(none_as_null=True)
Moment = String(24)
Short = String(255)


NodeState = Literal["joining", "active", "drained", "revoked"]


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: Json, list[str]: Json, str: Text}


def _cascade(target: str, **options: Any) -> Mapped[Any]:
    return mapped_column(ForeignKey(target, ondelete="CASCADE"), **options)


class Meta(Base):
    """Facts of the platform as a whole: its id, its address prefix."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(Short, primary_key=True)
    value: Mapped[str]


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Short, unique=True)
    title: Mapped[str]
    created: Mapped[str] = mapped_column(Moment)


class Tenant(Base):
    __tablename__ = "tenant"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Short, unique=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), index=True)
    title: Mapped[str]
    created: Mapped[str] = mapped_column(Moment)
    account: Mapped[Account] = relationship(lazy="joined", innerjoin=True)


class Membership(Base):
    __tablename__ = "membership"
    user_id: Mapped[int] = _cascade("user_.id", primary_key=True)
    tenant_id: Mapped[int] = _cascade("tenant.id", primary_key=True, index=True)


class User(Base):
    __tablename__ = "user_"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Short, unique=True)
    role: Mapped[str] = mapped_column(Short)
    reveal: Mapped[bool]
    created: Mapped[str] = mapped_column(Moment)
    tenants: Mapped[list[Tenant]] = relationship(secondary="membership", order_by=Tenant.name, lazy="selectin")


class Token(Base):
    """A bearer token of a user or of an instance; only its hash is kept."""

    __tablename__ = "token"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[int | None] = _cascade("user_.id", index=True)
    instance_id: Mapped[str | None] = _cascade("instance.id", index=True)
    title: Mapped[str]
    created: Mapped[str] = mapped_column(Moment)
    expires: Mapped[str | None] = mapped_column(Moment)
    user: Mapped[User | None] = relationship(lazy="joined")
    instance: Mapped["Instance | None"] = relationship(lazy="joined")


class JoinToken(Base):
    __tablename__ = "join_token"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    node: Mapped[str] = mapped_column(Short)
    owner_id: Mapped[int | None] = _cascade("tenant.id", index=True)
    vm_id: Mapped[str | None] = _cascade("instance.id", index=True)
    generation: Mapped[str | None] = mapped_column(Short)
    """Which build of that VM it is for."""
    labels: Mapped[dict[str, Any]]
    links: Mapped[list[str]] = mapped_column(default=list)
    created: Mapped[str] = mapped_column(Moment)
    expires: Mapped[str] = mapped_column(Moment)
    fingerprint: Mapped[str | None] = mapped_column(ForeignKey("certificate.fingerprint"), index=True)
    """The certificate that it was used for."""
    owner: Mapped[Tenant | None] = relationship(lazy="joined")


class Node(Base):
    __tablename__ = "node"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(Short, unique=True)
    number: Mapped[int] = mapped_column(unique=True)
    """Its place in the address plan (`decisions.addresses`)."""
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"), index=True)
    vm_id: Mapped[str | None] = mapped_column(ForeignKey("instance.id", use_alter=True), unique=True, index=True)
    """The vm instance that it is."""
    generation: Mapped[str | None] = mapped_column(Short)
    """The build of the VM that joined; None while none has."""
    state: Mapped[NodeState] = mapped_column(Short)
    labels: Mapped[dict[str, Any]]
    reach: Mapped[str | None]
    links: Mapped[list[str]] = mapped_column(default=list)
    mode: Mapped[Literal["root", "user"] | None] = mapped_column(Short)
    version: Mapped[str | None]
    system: Mapped[str | None]
    python: Mapped[str | None]
    platform_digest: Mapped[str | None] = mapped_column(String(64))
    slots: Mapped[int] = mapped_column(default=0)
    slots_directory: Mapped[str] = mapped_column(default="")
    users: Mapped[list[str]] = mapped_column(default=list)
    memory_mib: Mapped[int] = mapped_column(default=0)
    cpu_milli: Mapped[int] = mapped_column(default=0)
    disk_mib: Mapped[int] = mapped_column(default=0)
    seen: Mapped[str | None] = mapped_column(Moment)
    created: Mapped[str] = mapped_column(Moment)
    applied: Mapped[dict[str, Any]] = mapped_column(default=dict)
    owner: Mapped[Tenant | None] = relationship(lazy="joined")


class Certificate(Base):
    """Every certificate that the CA gave to a node, by the sha256 of its DER form."""

    __tablename__ = "certificate"
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    node_id: Mapped[str] = _cascade("node.id", index=True)
    key: Mapped[str] = mapped_column(String(64))
    """sha256 of the public key."""
    pem: Mapped[str]
    issued: Mapped[str] = mapped_column(Moment)
    expires: Mapped[str] = mapped_column(Moment)
    revoked: Mapped[str | None] = mapped_column(Moment)
    node: Mapped[Node] = relationship(lazy="joined", innerjoin=True)


class Software(Base):
    """One build of one role."""

    __tablename__ = "software"
    __table_args__ = (UniqueConstraint("fqcn", "digest"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    fqcn: Mapped[str] = mapped_column(Short)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    collection: Mapped[str] = mapped_column(Short)
    version: Mapped[str]
    artifact_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    size: Mapped[int]
    platform: Mapped[bool]
    current: Mapped[bool]
    """The newest registered build of its role, which a request without a digest gets."""
    meta: Mapped[dict[str, Any]]
    types: Mapped[dict[str, Any]]
    registered: Mapped[str] = mapped_column(Moment)


class Image(Base):
    """A bootable disk; its file is `images/SHA256` when it is ready, before that what has come of it is beside."""

    __tablename__ = "image"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Short, index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    manifest: Mapped[dict[str, Any]]
    ready: Mapped[bool]
    declared: Mapped[str] = mapped_column(Moment)


class Supply(Base):
    __tablename__ = "supply"
    __table_args__ = (UniqueConstraint("node_id", "fqcn"),)
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    node_id: Mapped[str] = _cascade("node.id")
    fqcn: Mapped[str] = mapped_column(Short)
    software_id: Mapped[int] = mapped_column(ForeignKey("software.id"), index=True)
    state: Mapped[Literal["present", "absent"]] = mapped_column(Short)
    observed: Mapped[Literal["waiting", "present", "absent", "failed"]] = mapped_column(Short)
    message: Mapped[str] = mapped_column(default="")
    applied: Mapped[dict[str, Any]] = mapped_column(default=dict)
    node: Mapped[Node] = relationship(lazy="joined", innerjoin=True)
    software: Mapped[Software] = relationship(lazy="joined", innerjoin=True)


_UNPLACED = text("node_id IS NULL")


class Instance(Base):
    """A declared instance, where it was placed and how it is. Its content is in its current revision."""

    __tablename__ = "instance"
    __table_args__ = (
        UniqueConstraint("node_id", "slot_index"),
        Index(
            "ix_instance_unplaced",
            "path",
            sqlite_where=text("node_id IS NULL"),
            postgresql_where=text("node_id IS NULL"),
        ),
    )
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    path: Mapped[str] = mapped_column(Short, unique=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenant.id"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("instance.id"), index=True)
    title: Mapped[str]
    number: Mapped[int]
    """Of the current revision."""
    node_id: Mapped[str | None] = mapped_column(ForeignKey("node.id"))
    slot_index: Mapped[int | None]
    memory_mib: Mapped[int] = mapped_column(default=0)
    cpu_milli: Mapped[int] = mapped_column(default=0)
    """What it takes of its node."""
    observed: Mapped[ObservedState] = mapped_column(Short, default="allocated")
    message: Mapped[str] = mapped_column(default="")
    since: Mapped[str] = mapped_column(Moment)
    observed_revision: Mapped[int | None]
    reported: Mapped[ObservedState | None] = mapped_column(Short)
    """What its node said last; shown again when it no longer waits."""
    published: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Published values as they are shown; the secret ones are in `Secret`."""
    applied: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """fact kind -> [sequence, at] of the newest that was applied"""
    created: Mapped[str] = mapped_column(Moment)
    tenant: Mapped[Tenant] = relationship(lazy="joined", innerjoin=True)
    node: Mapped[Node | None] = relationship(lazy="joined", foreign_keys=[node_id])
    parent: Mapped["Instance | None"] = relationship(remote_side=[id])
    children: Mapped[list["Instance"]] = relationship(order_by=path, viewonly=True)
    revision: Mapped["Revision"] = relationship(
        primaryjoin="and_(Instance.id == foreign(Revision.instance_id), Instance.number == foreign(Revision.number))",
        viewonly=True,
        lazy="joined",
        innerjoin=True,
    )


class Revision(Base):
    """What was declared, once; never changed."""

    __tablename__ = "revision"
    instance_id: Mapped[str] = _cascade("instance.id", primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    software_id: Mapped[int] = mapped_column(ForeignKey("software.id"), index=True)
    type: Mapped[str] = mapped_column(Short)
    parameters: Mapped[dict[str, Any]]
    """As they are shown, references as they were declared."""
    secrets: Mapped[dict[str, Any]]
    """parameter -> id of the `Secret` that has its whole value"""
    placement: Mapped[dict[str, Any]]
    state: Mapped[WantedState] = mapped_column(Short)
    author: Mapped[str]
    created: Mapped[str] = mapped_column(Moment)
    software: Mapped[Software] = relationship(lazy="joined", innerjoin=True)


class Link(Base):
    """A reference of an instance's current revision to what another publishes."""

    __tablename__ = "link"
    instance_id: Mapped[str] = _cascade("instance.id", primary_key=True)
    option: Mapped[str] = mapped_column(Short, primary_key=True)
    source: Mapped[str] = mapped_column(Short, index=True)
    key: Mapped[str] = mapped_column(Short)


class Secret(Base):
    """A secret value: of a parameter, generated, or published."""

    __tablename__ = "secret"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    instance_id: Mapped[str] = _cascade("instance.id", index=True)
    kind: Mapped[str] = mapped_column(Short)
    """parameter, generated or published"""
    name: Mapped[str] = mapped_column(Short)
    value: Mapped[Any] = mapped_column(JSON)


class Promise(Base):
    """The last result of a promise."""

    __tablename__ = "promise"
    instance_id: Mapped[str] = _cascade("instance.id", primary_key=True)
    name: Mapped[str] = mapped_column(Short, primary_key=True)
    ok: Mapped[bool]
    message: Mapped[str]
    since: Mapped[str] = mapped_column(Moment)


class Former(Base):
    """An instance that was removed: late facts of it are still known and its usage is still its owner's."""

    __tablename__ = "former"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    path: Mapped[str] = mapped_column(Short)
    tenant: Mapped[str] = mapped_column(Short)
    account: Mapped[str] = mapped_column(Short)
    node_id: Mapped[str | None] = mapped_column(String(36))
    removed: Mapped[str] = mapped_column(Moment)


class Fact(Base):
    """The id of an accepted fact and the digest of its content, to tell a repeat from a conflict."""

    __tablename__ = "fact"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    node_id: Mapped[str] = mapped_column(String(36))
    kind: Mapped[str] = mapped_column(Short)
    digest: Mapped[str] = mapped_column(String(64))
    received: Mapped[str] = mapped_column(Moment, index=True)


class Usage(Base):
    """A usage record. Names are copied: it says who owned the instance at that time."""

    __tablename__ = "usage"
    __table_args__ = (
        Index("ix_usage_tenant", "tenant", "window_start"),
        Index("ix_usage_window", "window_start", "id"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    node: Mapped[str] = mapped_column(Short)
    instance: Mapped[str] = mapped_column(String(36))
    path: Mapped[str] = mapped_column(Short, index=True)
    tenant: Mapped[str] = mapped_column(Short)
    account: Mapped[str] = mapped_column(Short)
    meter: Mapped[str] = mapped_column(Short)
    window_start: Mapped[str] = mapped_column(Moment)
    window_end: Mapped[str] = mapped_column(Moment)
    epoch: Mapped[str]
    quantity: Mapped[int] = mapped_column(BigInteger)
    billable: Mapped[bool] = mapped_column(default=True)
    """False when the tenant's own node counted it."""


class Event(Base):
    __tablename__ = "event"
    __table_args__ = ({"sqlite_autoincrement": True},)
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str] = mapped_column(Moment, index=True)
    kind: Mapped[str] = mapped_column(Short, index=True)
    tenant: Mapped[str | None] = mapped_column(Short, index=True)
    node: Mapped[str | None] = mapped_column(Short, index=True)
    path: Mapped[str | None] = mapped_column(Short, index=True)
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
