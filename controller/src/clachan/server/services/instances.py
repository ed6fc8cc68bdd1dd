"""Instances as users see them: requests, views, revisions."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from clachan.contract.api import Declaration, InstanceView, Observed, Page, PromiseView, RevisionView
from clachan.contract.names import is_path, parent_of, tenant_of
from clachan.server.db.models import Instance, Promise, Revision, Software, Tenant
from clachan.server.services import requests
from clachan.server.services.controller import Change, Controller
from clachan.server.services.pages import Wanted
from clachan.server.services.principals import Principal
from clachan.server.services.refusals import Conflict, Forbidden, Invalid, NotFound
from clachan.server.services.values import Values, slot


@dataclass(frozen=True)
class Requested:
    view: InstanceView
    created: bool
    made: bool


class _Dry(Exception):  # noqa: N818 - not an error: it undoes the transaction of a dry run
    def __init__(self, requested: Requested) -> None:
        self.requested = requested


def put(controller: Controller, principal: Principal, path: str, declaration: Declaration, dry: bool) -> Requested:
    """Declare a root instance; `dry`: only say what would be. State absent is a wish to remove what is there."""
    check_seen(principal, path)
    try:
        with controller.change() as change:
            _check_root(path)
            if declaration.state == "absent":
                requested = _remove(controller, change, find(change.session, principal, path), principal.author)
            else:
                outcome = requests.declare(controller, change, path, declaration, principal.author)
                shown = view(controller, change.session, outcome.instance)
                requested = Requested(shown, outcome.created, outcome.made)
            if dry:
                raise _Dry(requested)
            return requested
    except _Dry as done:
        return done.requested


def delete(controller: Controller, principal: Principal, path: str) -> InstanceView:
    """Want it absent. What no node has is gone at once: then the answer is its last state."""
    with controller.change() as change:
        instance = find(change.session, principal, path)
        _check_root(path)
        return _remove(controller, change, instance, principal.author).view


def _remove(controller: Controller, change: Change, instance: Instance, author: str) -> Requested:
    last = view(controller, change.session, instance)
    made = requests.want_absent(controller, change, instance, author)
    if instance in change.session:
        return Requested(view(controller, change.session, instance), created=False, made=made)
    gone = last.observed.model_copy(update={"state": "absent", "message": "", "since": change.now})
    return Requested(last.model_copy(update={"wanted": "absent", "observed": gone}), created=False, made=made)


def find(session: Session, principal: Principal, path: str) -> Instance:
    """The instance; what the caller may not see is not there."""
    check_seen(principal, path)
    instance = session.scalar(select(Instance).where(Instance.path == path))
    if instance is None or (principal.kind == "instance" and instance.id != principal.id):
        raise NotFound(f"instance {path}: unknown, expected one that exists", "path")
    return instance


def get(controller: Controller, principal: Principal, path: str, reveal: bool = False) -> InstanceView:
    if not reveal:
        with controller.read() as session:
            return view(controller, session, find(session, principal, path))
    if not principal.reveal:
        raise Forbidden(f"instance {path}: its secrets, expected the permission reveal", "reveal")
    with controller.change() as change:
        instance = find(change.session, principal, path)
        revealed(change, principal, instance)
        return view(controller, change.session, instance, reveal=True)


def revealed(change: Change, principal: Principal, instance: Instance) -> None:
    """Secrets were shown: say so."""
    text = f"secrets of {instance.path} shown to {principal.name}"
    tenant, who = instance.tenant.name, {"user": principal.name}
    change.event("secret_revealed", text, tenant=tenant, path=instance.path, data=dict[str, JsonValue](who))


def search(
    controller: Controller, principal: Principal, wanted: Wanted, filters: dict[str, str | None]
) -> Page[InstanceView]:
    """A page of instances by path; `filters`: tenant, state (observed), software."""
    query = select(Instance)
    if principal.tenants is not None:
        query = query.where(Instance.tenant_id.in_(select(Tenant.id).where(Tenant.name.in_(principal.tenants))))
    if (tenant := filters.get("tenant")) is not None:
        query = query.where(Instance.tenant_id.in_(select(Tenant.id).where(Tenant.name == tenant)))
    if (state := filters.get("state")) is not None:
        query = query.where(Instance.observed == state)
    if (software := filters.get("software")) is not None:
        current = (Revision.instance_id == Instance.id) & (Revision.number == Instance.number)
        builds = select(Software.id).where(Software.fqcn == software)
        query = query.where(select(Revision).where(current, Revision.software_id.in_(builds)).exists())
    with controller.read() as session:
        rows, cursor = wanted.rows(session, query, Instance.path)
        shown = views(controller, session, rows)
    return Page[InstanceView].model_construct(items=shown, cursor=cursor)


def revisions(controller: Controller, principal: Principal, path: str, wanted: Wanted) -> Page[RevisionView]:
    with controller.read() as session:
        instance = find(session, principal, path)
        query = select(Revision).where(Revision.instance_id == instance.id)
        return wanted.page(session, query, Revision.number, revision_view)


def revision_view(row: Revision) -> RevisionView:
    return RevisionView.model_validate(
        {
            "number": row.number,
            "software": row.software.fqcn,
            "digest": row.software.digest,
            "type": row.type,
            "parameters": row.parameters,
            "placement": row.placement,
            "state": row.state,
            "author": row.author,
            "created": row.created,
        }
    )


def view(controller: Controller, session: Session, instance: Instance, *, reveal: bool = False) -> InstanceView:
    return views(controller, session, [instance], reveal=reveal)[0]


def views(
    controller: Controller, session: Session, instances: list[Instance], *, reveal: bool = False
) -> list[InstanceView]:
    """The instances as they are shown, with a constant number of queries."""
    ids = [instance.id for instance in instances]
    promises: dict[str, dict[str, PromiseView]] = defaultdict(dict)
    query = select(Promise).where(Promise.instance_id.in_(ids)).order_by(Promise.name)
    for row in session.scalars(query):
        promises[row.instance_id][row.name] = PromiseView(ok=row.ok, message=row.message, since=row.since)
    children: dict[str, list[str]] = defaultdict(list)
    below = select(Instance.parent_id, Instance.path).where(Instance.parent_id.in_(ids)).order_by(Instance.path)
    for parent, path in session.execute(below):
        children[str(parent)].append(path)
    values = Values(controller, session, instances) if reveal else None
    return [_view(controller, row, promises[row.id], children[row.id], values) for row in instances]


def _view(
    controller: Controller,
    row: Instance,
    promises: dict[str, PromiseView],
    children: list[str],
    values: Values | None,
) -> InstanceView:
    revision = row.revision
    content: dict[str, Any] = {
        "id": row.id,
        "path": row.path,
        "title": row.title,
        "tenant": row.tenant.name,
        "parent": parent_of(row.path),
        "software": revision.software.fqcn,
        "digest": revision.software.digest,
        "type": revision.type,
        "revision": row.number,
        "parameters": values.parameters(row) if values is not None else revision.parameters,
        "placement": revision.placement,
        "wanted": revision.state,
        "observed": Observed(
            state=row.observed,
            message=row.message,
            revision=row.observed_revision,
            since=row.since,
            promises=promises,
        ),
        "node": row.node.name if row.node is not None else None,
        "slot": slot(controller, row) if row.node is not None else None,
        "children": children,
        "published": dict(values.published(row).values) if values is not None else row.published,
        "created": row.created,
    }
    return InstanceView.model_validate(content)


def check_seen(principal: Principal, path: str) -> None:
    if not principal.sees(tenant_of(path)):
        raise NotFound(f"instance {path}: unknown, expected one that exists", "path")


def _check_root(path: str) -> None:
    if not is_path(path):
        raise Invalid(f"path {path!r}, expected tenant.name, both of [a-z][a-z0-9_]{{0,30}}", "path")
    parent = parent_of(path)
    if parent is not None:
        raise Conflict(f"instance {path}: is requested by its parent {parent}, expected a root instance", "path")


def located(controller: Controller, principal: Principal, path: str) -> tuple[str, str]:
    """Id of the instance and of the node that it is on; raises Conflict when it is on none."""
    with controller.read() as session:
        instance = find(session, principal, path)
        if instance.node_id is None:
            raise Conflict(f"instance {path}: on no node yet, expected a placed one", "path")
        return instance.id, instance.node_id
