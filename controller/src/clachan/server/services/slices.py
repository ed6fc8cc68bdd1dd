"""Slices: what each node must run, as bytes with an ETag, kept until something in it changed.

A host's JSON is a fragment that is built once and kept; a change marks the hosts that it touched, and the next poll
rebuilds only those and joins the rest. An unchanged poll reads one dictionary.
"""

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from clachan.contract.inventory import SoftwareArtifact, SupplyLine
from clachan.server.db.models import Instance, Node, Supply
from clachan.server.decisions import inventory
from clachan.server.services.refusals import Unauthenticated
from clachan.server.services.values import CHUNK, Values, artifact, node_variables

if TYPE_CHECKING:
    from clachan.server.services.controller import Controller


@dataclass(frozen=True)
class Document:
    body: bytes
    etag: str


@dataclass(frozen=True)
class Host:
    fragment: inventory.Fragment
    digest: str
    artifact: SoftwareArtifact


@dataclass
class NodeSlice:
    """`document` is None when it must be built again; `all` when every host must."""

    building: threading.Lock = field(default_factory=threading.Lock)
    node: inventory.Fragment | None = None
    hosts: dict[str, Host] = field(default_factory=dict)
    """Instance id -> host, in the order of their names."""
    groupings: inventory.Groupings = field(default_factory=inventory.Groupings)
    supplies: list[tuple[SupplyLine, SoftwareArtifact]] = field(default_factory=list)
    stale: set[str] = field(default_factory=set)
    all: bool = True
    document: Document | None = None


class Slices:
    def __init__(self, controller: "Controller") -> None:
        self._controller = controller
        self._slices: dict[str, NodeSlice] = {}
        self._lock = threading.Lock()

    def mark(self, hosts: set[tuple[str, str]], nodes: set[str]) -> None:
        """After a commit: these (node, instance) changed, and everything of these nodes."""
        with self._lock:
            for node, instance in hosts:
                if node in self._slices:
                    self._slices[node].stale.add(instance)
                    self._slices[node].document = None
            for node in nodes:
                if node in self._slices:
                    self._slices[node].all = True
                    self._slices[node].document = None

    def ready(self, node_id: str) -> Document | None:
        """The document when it is there, without a query; else ask `get` in a thread."""
        kept = self._slices.get(node_id)
        return kept.document if kept is not None else None

    def get(self, node_id: str) -> Document:
        with self._lock:
            kept = self._slices.setdefault(node_id, NodeSlice())
        with kept.building:
            return kept.document or self._build(node_id, kept)

    def _build(self, node_id: str, kept: NodeSlice) -> Document:
        # what is marked from here on is not in this document: it is taken before the database is read
        with self._lock:
            stale, everything = kept.stale, kept.all
            kept.stale, kept.all = set(), False
        try:
            with self._controller.read() as session:
                if everything:
                    self._read_node(session, node_id, kept)
                    kept.hosts.clear()
                self._read_hosts(session, node_id, kept, None if everything else stale)
            document = self._assemble(kept)
        except BaseException:
            kept.all = True
            raise
        with self._lock:
            if not kept.stale and not kept.all:
                kept.document = document
        return document

    def _read_node(self, session: Session, node_id: str, kept: NodeSlice) -> None:
        node = session.get(Node, node_id)
        if node is None:
            # it was a VM that is gone
            with self._lock:
                self._slices.pop(node_id, None)
            raise Unauthenticated("certificate: unknown or revoked, expected that of a node")
        kept.node = inventory.node_fragment(node_variables(self._controller, node))
        rows = session.scalars(select(Supply).where(Supply.node_id == node_id).order_by(Supply.fqcn)).unique()
        kept.supplies = [(supply_line(row), artifact(row.software)) for row in rows]

    def _read_hosts(self, session: Session, node_id: str, kept: NodeSlice, stale: set[str] | None) -> None:
        query = select(Instance).where(Instance.node_id == node_id).order_by(Instance.path)
        if stale is not None and len(stale) < CHUNK:
            query = query.where(Instance.id.in_(stale))
        rows = list(session.scalars(query).unique())
        values = Values(self._controller, session, rows)
        found = {}
        for row in rows:
            software = row.revision.software
            fragment = inventory.instance_fragment(values.record(row), redacted=False)
            found[row.id] = Host(fragment, software.digest, artifact(software))
        for gone in (stale or set()) - found.keys():
            kept.hosts.pop(gone, None)
        if found.keys() <= kept.hosts.keys():
            kept.hosts |= found
        else:
            kept.hosts = dict(sorted({**kept.hosts, **found}.items(), key=lambda item: item[1].fragment.name))

    def _assemble(self, kept: NodeSlice) -> Document:
        assert kept.node is not None
        software = {host.digest: host.artifact for host in kept.hosts.values()}
        software |= {line.digest: found for line, found in kept.supplies}
        body = inventory.assemble(
            self._controller.platform.id,
            kept.node.name,
            [kept.node, *(host.fragment for host in kept.hosts.values())],
            dict(sorted(software.items())),
            [line for line, _ in kept.supplies],
            groupings=kept.groupings,
        )
        return Document(body, inventory.etag(body))


def supply_line(row: Supply) -> SupplyLine:
    return SupplyLine(id=row.id, software=row.fqcn, digest=row.software.digest, state=row.state)
