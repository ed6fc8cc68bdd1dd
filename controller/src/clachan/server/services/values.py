"""The values of instances: parameters with their secrets, what others publish, what the inventory says.

`Values` reads all that is needed for any number of instances with a constant number of queries.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue
from sqlalchemy import or_, select
from sqlalchemy.orm import Session, object_session

from clachan.contract.inventory import NodeAddresses, NodeVariables, RemoteMember, Slot, SoftwareArtifact
from clachan.contract.software import Capacity, SoftwareMeta
from clachan.server.db.models import Instance, Link, Node, Secret, Software
from clachan.server.decisions import addresses, capacity, references, states
from clachan.server.decisions.inventory import ChildRecord, InstanceRecord
from clachan.server.services import clusters

if TYPE_CHECKING:
    from clachan.server.services.controller import Controller

CHUNK = 5000
"""Most values in one IN: databases limit the variables of a statement."""

NOTHING = references.Resolved({}, {}, ())

SecretMap = dict[str, dict[tuple[str, str], Secret]]


class Values:
    def __init__(self, controller: "Controller", session: Session, instances: Sequence[Instance]) -> None:
        ids = [instance.id for instance in instances]
        self._controller, self._session = controller, session
        self._links: dict[str, set[str]] = defaultdict(set)
        for owner, source in session.execute(
            select(Link.instance_id, Link.source).where(Link.instance_id.in_(ids)).distinct()
        ):
            self._links[owner].add(source)
        paths = {source for found in self._links.values() for source in found}
        self._sources = {row.path: row for row in _instances(session, Instance.path, paths)}
        self._children: dict[str, list[Instance]] = defaultdict(list)
        # most have none, and to read whole instances costs four times as much as to ask whose they are
        parents = set(_parents(session, ids))
        for child in _instances(session, Instance.parent_id, parents):
            self._children[str(child.parent_id)].append(child)
        near = [*ids, *(row.id for row in self._sources.values())]
        near += [child.id for found in self._children.values() for child in found]
        self._secrets = load_secrets(session, near)
        self._instances = instances

    @cached_property
    def _remote(self) -> dict[str, list[RemoteMember]]:
        return clusters.remote_members(self._controller, self._session, self._instances)

    def children(self, instance: Instance) -> list[Instance]:
        return self._children.get(instance.id, [])

    def parameters(self, instance: Instance) -> dict[str, JsonValue]:
        """What the role gets: generated, overridden by declared, secrets with their values, references unresolved."""
        own = self._secrets.get(instance.id, {})
        generated = {name: row.value for (kind, name), row in own.items() if kind == "generated"}
        return generated | with_secrets(instance, own)

    def published(self, instance: Instance) -> references.Published:
        own = self._secrets.get(instance.id, {})
        secret = {name: row.value for (kind, name), row in own.items() if kind == "published"}
        return references.Published({**instance.published, **secret}, frozenset(secret))

    def resolve(self, instance: Instance) -> references.Resolved | references.Unresolved:
        """The parameters with the values that others publish, or why they wait."""
        sources = self._links.get(instance.id, ())
        published = {path: self.published(self._sources[path]) for path in sources if path in self._sources}
        schema = self._controller.schema(instance.revision.software, instance.revision.type)
        return references.resolve(self.parameters(instance), published, schema)

    def reason(self, instance: Instance) -> str | None:
        """Why it waits: for what others publish, or for the removal of its children."""
        return self._effective(instance, self.resolve(instance))[1] or None

    def _effective(
        self, instance: Instance, resolved: references.Resolved | references.Unresolved
    ) -> tuple[states.EffectiveState, str]:
        reason = resolved.reason if isinstance(resolved, references.Unresolved) else None
        return states.effective_state(instance.revision.state, self._holders(instance), reason)

    def _holders(self, instance: Instance) -> list[str]:
        """The children that its removal waits for; what is inside the VM that it is goes with it, and needs no wait."""
        names = [child.path.rpartition(".")[2] for child in self.children(instance)]
        if not names or instance.revision.state != "absent":
            return names
        inside = self._session.scalar(select(Node.id).where(Node.vm_id == instance.id))
        if inside is None:
            return names
        below = Instance.path.startswith(f"{instance.path}.", autoescape=True)
        outside = or_(Instance.node_id.is_(None), Instance.node_id != inside)
        paths = self._session.scalars(select(Instance.path).where(below, outside))
        return [path.removeprefix(f"{instance.path}.") for path in paths]

    def record(self, instance: Instance, *, remote: bool = True) -> InstanceRecord:
        """A placed instance as the inventory has it; `remote`: with where other nodes are."""
        assert instance.node is not None
        resolved, revision = self.resolve(instance), instance.revision
        state, _ = self._effective(instance, resolved)
        if isinstance(resolved, references.Unresolved):
            resolved = NOTHING
        return InstanceRecord(
            id=instance.id,
            revision=instance.number,
            path=instance.path,
            software=revision.software.fqcn,
            digest=revision.software.digest,
            type=revision.type,
            state=state,
            node=instance.node.name,
            slot=slot(self._controller, instance),
            parameters=resolved.parameters,
            redacted=resolved.redacted,
            sealed=resolved.sealed,
            children={child.path.rpartition(".")[2]: self._child(child) for child in self.children(instance)},
            remote=self._remote.get(instance.id, ()) if remote else (),
        )

    def _child(self, child: Instance) -> ChildRecord:
        published = self.published(child)
        return ChildRecord(child.observed, published.values, published.secret)


def _parents(session: Session, ids: Sequence[str]) -> Iterable[str]:
    for begin in range(0, len(ids), CHUNK):
        found = select(Instance.parent_id).where(Instance.parent_id.in_(ids[begin : begin + CHUNK])).distinct()
        yield from (str(parent) for parent in session.scalars(found))


def _instances(session: Session, column: Any, values: Iterable[str]) -> list[Instance]:
    wanted = sorted(values)
    found: list[Instance] = []
    for begin in range(0, len(wanted), CHUNK):
        query = select(Instance).where(column.in_(wanted[begin : begin + CHUNK])).order_by(Instance.path)
        found += session.scalars(query).unique()
    return found


def load_secrets(session: Session, ids: Iterable[str]) -> SecretMap:
    """instance id -> (kind, name or id) -> secret. Those of parameters are found by their id: revisions share them."""
    wanted = sorted(set(ids))
    found: SecretMap = defaultdict(dict)
    for begin in range(0, len(wanted), CHUNK):
        for row in session.scalars(select(Secret).where(Secret.instance_id.in_(wanted[begin : begin + CHUNK]))):
            found[row.instance_id][(row.kind, row.id if row.kind == "parameter" else row.name)] = row
    return found


def with_secrets(instance: Instance, secrets: dict[tuple[str, str], Secret]) -> dict[str, JsonValue]:
    """The declared parameters of the current revision, secrets with their values."""
    revision = instance.revision
    hidden = {name: secrets["parameter", key].value for name, key in revision.secrets.items()}
    return {name: hidden.get(name, value) for name, value in revision.parameters.items()}


def node_addresses(controller: "Controller", node: Node, *, routed: bool = False) -> NodeAddresses:
    """`routed`: as a VM on it has them, reachable from other machines also where the slots are on loopback."""
    platform = controller.platform
    plan: addresses.Plan = "loopback" if controller.settings.loopback and not routed else "private"
    found = addresses.node_addresses(platform.prefix, plan, platform.offset, node.number, node.reach)
    return found.model_copy(update={"links": node.links})


def node_variables(controller: "Controller", node: Node) -> NodeVariables:
    """Without a query when the vm instance that it is was read before."""
    session = object_session(node)
    vm = session.get(Instance, node.vm_id) if session is not None and node.vm_id is not None else None
    return NodeVariables.model_validate(
        {
            "id": node.id,
            "name": node.name,
            "labels": node.labels,
            "addresses": node_addresses(controller, node).model_dump(),
            "owner": node.owner.name if node.owner is not None else None,
            "vm": vm.path if vm is not None else None,
            "state": node.state,
        }
    )


def slot(controller: "Controller", instance: Instance) -> Slot:
    """The slot of a placed instance."""
    node, index = instance.node, instance.slot_index
    assert node is not None
    assert index is not None
    users = node.users or [addresses.slot_user(index)]
    user = users[index] if index < len(users) else users[0]
    meta = SoftwareMeta.model_validate(instance.revision.software.meta)
    networks = node_addresses(controller, node, routed=meta.makes_node)
    return addresses.slot(networks, index, user, node.slots_directory, taken(instance, meta))


def taken(instance: Instance, meta: SoftwareMeta) -> Capacity:
    """What it takes of its node."""
    revision = instance.revision
    return capacity.capacity(meta, revision.software.types[revision.type], revision.parameters)


def artifact(software: Software) -> SoftwareArtifact:
    return SoftwareArtifact(
        collection=software.collection,
        version=software.version,
        artifact_sha256=software.artifact_sha256,
        size=software.size,
        platform=software.platform,
    )
