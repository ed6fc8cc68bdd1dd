"""Build the inventory: a cached fragment of JSON for each host, and documents assembled from them without parsing.

What Ansible's own parsers make of the file is part of the design: everything stands below one top-level key that has
no `hosts`, `vars` or `children` directly under it (the YAML plugin reads those), the key is followed by a blank (so the
INI plugin sees a host name that ends in a colon, which it refuses) and all is ASCII on one line (so no text of a tenant
ends a line for a parser that knows more line ends than JSON does).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import JsonValue

from clachan.contract.inventory import (
    FORMAT,
    SECRET,
    WRAPPER,
    NodeVariables,
    RemoteMember,
    Slot,
    SoftwareArtifact,
    SupplyLine,
)
from clachan.contract.names import parent_of, root_of, tenant_of

_GROUP_NAMES = frozenset({"all", "ungrouped", "localhost", "self", "nodes", "instances", "unrevealed", WRAPPER})
_GROUP_PREFIXES = ("software_", "tenant_", "cluster_", "members_", "label_", "node_")


@dataclass(frozen=True)
class ChildRecord:
    state: str
    published: Mapping[str, JsonValue]
    secret: frozenset[str] = frozenset()
    """The published keys that are secret."""


@dataclass(frozen=True)
class InstanceRecord:
    """An instance as it stands in an inventory; `state` is the effective one (`states.effective_state`)."""

    id: str
    revision: int
    path: str
    software: str
    digest: str
    type: str
    state: Literal["started", "stopped", "absent", "waiting"]
    node: str
    slot: Slot
    parameters: Mapping[str, JsonValue]
    """`references.Resolved.parameters`; left out of the fragment while the state is waiting."""
    redacted: Mapping[str, JsonValue]
    """`references.Resolved.redacted`"""
    sealed: tuple[str, ...] = ()
    children: Mapping[str, ChildRecord] = field(default_factory=dict)
    remote: Sequence[RemoteMember] = ()


@dataclass(frozen=True)
class Fragment:
    """A host: its name, its member of `records` as JSON, its groups. Cache it until the host changes."""

    name: str
    record: bytes
    groups: tuple[str, ...]


class Groupings:
    """The groups of some hosts as JSON, made again only when a host came, went or changed its groups."""

    def __init__(self) -> None:
        self._members: list[tuple[str, tuple[str, ...]]] = []
        self._json = b"{}"

    def json_bytes(self, fragments: Iterable[Fragment]) -> bytes:
        members = [(fragment.name, fragment.groups) for fragment in fragments]
        if members != self._members:
            found: dict[str, list[str]] = {}
            for name, groups in members:
                for group in groups:
                    found.setdefault(group, []).append(name)
            self._members, self._json = members, _json(found)
        return self._json


def instance_fragment(record: InstanceRecord, *, redacted: bool) -> Fragment:
    """The host of an instance: `redacted=False` for the slice of its own node, `True` for everything else."""
    waits = record.state == "waiting"
    parameters = record.redacted if redacted else record.parameters
    variables = {
        **({} if waits else parameters),
        "clachan_instance": {
            "id": record.id,
            "revision": record.revision,
            "path": record.path,
            "tenant": tenant_of(record.path),
            "software": record.software,
            "digest": record.digest,
            "type": record.type,
            "state": record.state,
            "node": record.node,
            "slot": record.slot.model_dump(),
            "parent": parent_of(record.path),
            "children": {name: _child(child, redacted=redacted) for name, child in record.children.items()},
            "sealed": [] if waits else list(record.sealed),
            **({"remote": [one.model_dump() for one in record.remote]} if record.remote else {}),
        },
    }
    return _fragment(record.path, variables, instance_groups(record.path, record.software, record.node))


def node_fragment(node: NodeVariables) -> Fragment:
    """The host of a node; a VM is a member of the cluster that its instance is in."""
    groups = ("nodes", *(label_group(key, value) for key, value in sorted(node.labels.items())))
    if node.vm is not None:
        groups += (f"members_{_left(tenant_of(node.vm))}_{root_of(node.vm)}",)
    return _fragment(node.name, {"clachan_node": node.model_dump()}, groups)


def instance_groups(path: str, software: str, node: str) -> tuple[str, ...]:
    tenant = tenant_of(path)
    return (
        "instances",
        f"software_{software.rpartition('.')[2]}",
        f"tenant_{tenant}",
        f"cluster_{_left(tenant)}_{root_of(path)}",
        f"node_{node}",
    )


def label_group(key: str, value: str) -> str:
    """`label_<key>_<value>`; a value that is no word for a group name gets a hash, so that two values never meet."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", value):
        value = f"{re.sub('[^A-Za-z0-9]+', '_', value)}_{hashlib.sha256(value.encode()).hexdigest()[:8]}".lstrip("_")
    return f"label_{_left(key)}_{value}"


def assemble(
    platform: str,
    node: str | None,
    fragments: Sequence[Fragment],
    software: Mapping[str, SoftwareArtifact],
    supplies: Iterable[SupplyLine],
    *,
    groupings: Groupings | None = None,
) -> bytes:
    """The document `{"clachan_inventory": ...}`. The same hosts in the same order give the same bytes.

    `groupings`: kept by who assembles the same hosts again and again.
    """
    parts = {
        "format": _json(FORMAT),
        "platform": _json(platform),
        "node": _json(node),
        "records": b"{%b}" % b",".join([fragment.record for fragment in fragments]),
        "groupings": (groupings or Groupings()).json_bytes(fragments),
        "software": _json({digest: artifact.model_dump() for digest, artifact in software.items()}),
        "supplies": _json([supply.model_dump() for supply in supplies]),
    }
    body = b",".join(b'"%b":%b' % (key.encode(), value) for key, value in parts.items())
    return b'{"%b": {%b}}\n' % (WRAPPER.encode(), body)


def etag(document: bytes) -> str:
    """A strong ETag, with its quotes."""
    return f'"{hashlib.sha256(document).hexdigest()}"'


def host_name_problem(node: str) -> str | None:
    """Why a node cannot have this name (it is a group's or Ansible's), or None."""
    if node in _GROUP_NAMES or node.startswith(_GROUP_PREFIXES):
        return f"node name: {node}, expected one that no group of the inventory has"
    return None


def _fragment(name: str, variables: Mapping[str, object], groups: tuple[str, ...]) -> Fragment:
    return Fragment(name, b"%b:%b" % (_json(name), _json(variables)), groups)


def _child(child: ChildRecord, *, redacted: bool) -> dict[str, Any]:
    published = {key: SECRET if redacted and key in child.secret else value for key, value in child.published.items()}
    return {"state": child.state, "published": published}


def _left(name: str) -> str:
    # cluster_a_b_c would else be both root c of tenant a_b and root b_c of tenant a
    return name.replace("_", "__")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
