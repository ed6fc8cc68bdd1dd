"""The act of declaring an instance: idempotent by its path, a revision when the content is another.

`declare` works inside a transaction, for users (`PUT /instances/{path}`) and for parents (the facts of their nodes).
"""

import secrets
import uuid
from dataclasses import dataclass

from pydantic import JsonValue
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from clachan.contract.api import Declaration, Placement
from clachan.contract.inventory import SECRET, WantedState
from clachan.contract.names import is_path, parent_of, tenant_of
from clachan.contract.software import SoftwareMeta
from clachan.server.db.models import Instance, Link, Revision, Secret, Software, Tenant
from clachan.server.decisions import Problem, capacity, references, revision
from clachan.server.services import clusters, placing, removal, standings, supplies
from clachan.server.services.controller import Change, Controller
from clachan.server.services.refusals import Conflict, Invalid, NotFound
from clachan.server.services.values import load_secrets, with_secrets

Parameters = dict[str, JsonValue]


@dataclass(frozen=True)
class Outcome:
    instance: Instance
    created: bool
    made: bool
    """A revision was made."""


@dataclass(frozen=True)
class Content:
    """What a revision will hold; `hidden` are the parameters that have a secret, with their whole values."""

    software: Software
    type: str
    parameters: Parameters
    placement: Placement
    state: WantedState
    generated: Parameters

    @property
    def digest(self) -> str:
        parts = (self.software.fqcn, self.software.digest, self.type, self.parameters, self.placement, self.state)
        return revision.content_digest(revision.content(*parts))


def declare(controller: Controller, change: Change, path: str, declaration: Declaration, author: str) -> Outcome:
    """Declare the instance at `path`, started or stopped.

    Raises Invalid, Conflict or NotFound; the caller then undoes the transaction or its savepoint.
    """
    instance = change.session.scalar(select(Instance).where(Instance.path == path))
    content = _content(controller, change.session, path, instance, declaration)
    created = instance is None
    if instance is None:
        instance = _create(change, path, declaration)
    elif not _differs(controller, change.session, instance, content):
        _retitle(change, instance, declaration.title)
        return Outcome(instance, created=False, made=False)
    _check_move(change.session, instance, content)
    _retitle(change, instance, declaration.title)
    # another software may make a member of what was none, or the reverse
    other = [] if created or instance.revision.software is content.software else [instance]
    clusters.touch_elsewhere(change, other)
    _revise(controller, change, instance, content, author)
    clusters.touch_elsewhere(change, other)
    if instance.node_id is None:
        placing.place(controller, change, [instance])
    else:
        placing.redeclared(change, instance)
        standings.refresh(controller, change, [instance])
    return Outcome(instance, created, made=True)


def want_absent(controller: Controller, change: Change, instance: Instance, author: str) -> bool:
    """The instance and all below it shall go; what no node has goes at once. Says whether that is new."""
    if instance.revision.state == "absent":
        return False
    copy_revision(controller, change, instance, author, state="absent")
    for child in list(change.session.scalars(select(Instance).where(Instance.parent_id == instance.id)).unique()):
        want_absent(controller, change, child, author)
    if instance in change.session:
        removal.remove_if_unheld(change, instance)
    if instance in change.session:
        standings.refresh(controller, change, [instance])
    return True


def copy_revision(
    controller: Controller,
    change: Change,
    instance: Instance,
    author: str,
    *,
    state: WantedState | None = None,
    software: Software | None = None,
) -> None:
    """A new revision with the same content but another state or another build."""
    old = instance.revision
    own = load_secrets(change.session, [instance.id])[instance.id]
    content = Content(
        software=software or old.software,
        type=old.type,
        parameters=with_secrets(instance, own),
        placement=Placement.model_validate(old.placement),
        state=state or old.state,
        generated={},
    )
    _revise(controller, change, instance, content, author)


def _content(
    controller: Controller, session: Session, path: str, instance: Instance | None, declaration: Declaration
) -> Content:
    software = _build(session, instance, declaration)
    if declaration.type not in software.types:
        known = ", ".join(sorted(software.types))
        raise Invalid(f"type of {software.fqcn}: {declaration.type}, expected one of {known}", "type")
    own = load_secrets(session, [instance.id])[instance.id] if instance is not None else {}
    parameters = _unhidden(controller, software, instance, own, declaration)
    schema = controller.schema(software, declaration.type)
    kept = {name: row.value for (kind, name), row in own.items() if kind == "generated"}
    generated: Parameters = {}
    meta = SoftwareMeta.model_validate(software.meta)
    for name in meta.generate:
        if name in software.types[declaration.type].get("properties", {}):
            generated[name] = kept.get(name) or secrets.token_urlsafe(32)
    found = schema.problems({**generated, **parameters}) + references.problems(parameters, path)
    _refuse(found + capacity.problems(meta, parameters))
    return Content(software, declaration.type, parameters, declaration.placement, declaration.state, generated)


def _build(session: Session, instance: Instance | None, declaration: Declaration) -> Software:
    """The build that is asked for; by default the one that the instance has, else the newest registered."""
    if declaration.digest is None and instance is not None:
        kept = instance.revision.software
        if kept.fqcn == declaration.software:
            return kept
    return supplies.build(session, declaration.software, declaration.digest)


def _unhidden(
    controller: Controller,
    software: Software,
    instance: Instance | None,
    own: dict[tuple[str, str], Secret],
    declaration: Declaration,
) -> Parameters:
    """The declared parameters; a secret that is given as it is shown stays what it was."""
    parameters = dict(declaration.parameters)
    shown = instance.revision.parameters if instance is not None else {}
    former = with_secrets(instance, own) if instance is not None else {}
    generated = SoftwareMeta.model_validate(software.meta).generate
    for name in controller.schema(software, declaration.type).sealed & parameters.keys():
        if name in former and parameters[name] == shown[name]:
            parameters[name] = former[name]
        elif parameters[name] == SECRET and name in generated:
            del parameters[name]
        elif parameters[name] == SECRET:
            raise Invalid(f"parameter {name}: {SECRET} stands for no value yet, expected one", f"parameters.{name}")
    return parameters


def _refuse(problems: list[Problem]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Invalid(problems[0].message + more, problems[0].field, "; ".join(p.message for p in problems[1:]) or None)


def _create(change: Change, path: str, declaration: Declaration) -> Instance:
    if not is_path(path):
        raise Invalid(f"path {path!r}, expected at most 8 names and 255 characters", "path")
    tenant = change.session.scalar(select(Tenant).where(Tenant.name == tenant_of(path)))
    if tenant is None:
        raise NotFound(f"tenant {tenant_of(path)}: unknown, expected one that exists", "path")
    parent = None
    if (above := parent_of(path)) is not None:
        parent = change.session.scalar(select(Instance).where(Instance.path == above))
        if parent is None:
            raise Invalid(f"instance {path}: its parent {above} is unknown, expected one that exists", "path")
    instance = Instance(
        id=str(uuid.uuid4()),
        path=path,
        tenant=tenant,
        parent_id=parent.id if parent is not None else None,
        title=declaration.title,
        number=0,
        observed="waiting",
        message="",
        since=change.now,
        published={},
        applied={},
        created=change.now,
    )
    change.session.add(instance)
    standings.touch_parent(change, instance)
    return instance


def _differs(controller: Controller, session: Session, instance: Instance, content: Content) -> bool:
    old = instance.revision
    own = load_secrets(session, [instance.id])[instance.id]
    placement = Placement.model_validate(old.placement)
    kept = Content(old.software, old.type, with_secrets(instance, own), placement, old.state, {})
    return kept.digest != content.digest


def _check_move(session: Session, instance: Instance, content: Content) -> None:
    if (node := instance.node) is None:
        return
    wanted, inside = content.placement.node, content.placement.inside
    stays = "an instance does not move yet: remove it and request it again"
    if wanted is not None and wanted != node.name:
        message = f"placement of {instance.path}: node {wanted}, expected {node.name}, where it is"
        raise Conflict(message, "placement.node", stays)
    vm = session.get(Instance, node.vm_id) if node.vm_id is not None else None
    here = vm.path if vm is not None else None
    if inside != here and (inside is not None or wanted is None):
        message = f"placement of {instance.path}: inside {inside or 'none'}, expected {here or 'none'}, where it is"
        raise Conflict(message, "placement.inside", stays)


def _retitle(change: Change, instance: Instance, title: str) -> None:
    if instance.title != title:
        instance.title = title
        change.topics.add(f"instance:{instance.path}")


def _revise(controller: Controller, change: Change, instance: Instance, content: Content, author: str) -> None:
    """Append the revision and make it the current one."""
    change.session.flush()
    schema = controller.schema(content.software, content.type)
    own = load_secrets(change.session, [instance.id])[instance.id]
    hidden = {name: value for name, value in content.parameters.items() if _is_hidden(name, value, schema.sealed)}
    instance.number += 1
    row = Revision(
        instance_id=instance.id,
        number=instance.number,
        software_id=content.software.id,
        type=content.type,
        parameters=schema.redact(content.parameters),
        secrets={name: _secret(change, instance, own, name, value) for name, value in hidden.items()},
        placement=content.placement.model_dump(mode="json", by_alias=True),
        state=content.state,
        author=author,
        created=change.now,
    )
    change.session.add(row)
    for name, value in content.generated.items():
        if ("generated", name) not in own:
            add_secret(change, instance, "generated", name, value)
    _link(change, instance, content)
    change.session.flush()
    change.session.expire(instance, ["revision"])
    change.topics.add(f"instance:{instance.path}")
    text = f"{instance.path} revision {row.number}: {content.software.fqcn} {content.state}, by {author}"
    change.event("instance_requested", text, tenant=instance.tenant.name, path=instance.path)


def _is_hidden(name: str, value: JsonValue, sealed: frozenset[str]) -> bool:
    return name in sealed and not (isinstance(value, dict) and value.keys() == {"from", "key"})


def _secret(change: Change, instance: Instance, own: dict[tuple[str, str], Secret], name: str, value: JsonValue) -> str:
    """The id of the secret with this value; a value that was given before keeps its row."""
    for (kind, _), row in own.items():
        if kind == "parameter" and row.name == name and row.value == value:
            return row.id
    return add_secret(change, instance, "parameter", name, value)


def add_secret(change: Change, instance: Instance, kind: str, name: str, value: JsonValue) -> str:
    row = Secret(id=str(uuid.uuid4()), instance_id=instance.id, kind=kind, name=name, value=value)
    change.session.add(row)
    return row.id


def _link(change: Change, instance: Instance, content: Content) -> None:
    """The references of the current revision, so that it is known whom a published value concerns."""
    change.session.execute(delete(Link).where(Link.instance_id == instance.id))
    for found in references.find(content.parameters):
        change.session.add(Link(instance_id=instance.id, option=found.where, source=found.source, key=found.key))
