"""What is read of the past and of the whole: inventory, usage, events."""

from pydantic import JsonValue
from sqlalchemy import Select, select

from clachan.contract.api import EventView, Page, Revealed, UsageView
from clachan.server import clock
from clachan.server.db.models import Event, Instance, Node, Supply, Tenant, Usage
from clachan.server.decisions import inventory, references
from clachan.server.services import instances
from clachan.server.services.controller import Controller
from clachan.server.services.pages import Wanted
from clachan.server.services.principals import Principal
from clachan.server.services.refusals import Forbidden, Invalid, NotFound
from clachan.server.services.slices import Document, supply_line
from clachan.server.services.values import Values, artifact, node_variables


def whole_inventory(controller: Controller, principal: Principal) -> Document:
    """All that the caller may see, secrets as <secret>: nodes (a member: the tenants' own) and placed instances."""
    operator, own = principal.tenants is None, select(Tenant.id).where(Tenant.name.in_(principal.tenants or ()))
    nodes = select(Node).where(Node.state != "revoked").order_by(Node.name)
    placed = select(Instance).where(Instance.node_id.is_not(None)).order_by(Instance.path)
    if not operator:
        nodes, placed = nodes.where(Node.owner_id.in_(own)), placed.where(Instance.tenant_id.in_(own))
    with controller.read() as session:
        machines = list(session.scalars(nodes).unique())
        rows = list(session.scalars(placed).unique())
        values = Values(controller, session, rows)
        fragments = [inventory.node_fragment(node_variables(controller, node)) for node in machines]
        records = (values.record(row, remote=operator) for row in rows)
        fragments += [inventory.instance_fragment(record, redacted=True) for record in records]
        software = {row.revision.software.digest: artifact(row.revision.software) for row in rows}
        query = (
            select(Supply).where(Supply.node_id.in_([node.id for node in machines])).order_by(Supply.fqcn, Supply.id)
        )
        supplies = list(session.scalars(query).unique())
    software |= {supply.software.digest: artifact(supply.software) for supply in supplies}
    lines = [supply_line(supply) for supply in supplies]
    body = inventory.assemble(controller.platform.id, None, fragments, dict(sorted(software.items())), lines)
    return Document(body, inventory.etag(body))


def reveal(controller: Controller, principal: Principal, hosts: list[str]) -> Revealed:
    """The sealed variables of the hosts with their values; each host is an event."""
    if not principal.reveal:
        raise Forbidden("secrets of instances: you may not see them, expected the permission reveal")
    with controller.change() as change:
        query = select(Instance).where(Instance.path.in_(hosts)).order_by(Instance.path)
        rows = [row for row in change.session.scalars(query).unique() if principal.sees(row.tenant.name)]
        if missing := sorted(set(hosts) - {row.path for row in rows}):
            raise NotFound(f"instance {missing[0]}: unknown, expected one that exists", "hosts")
        values = Values(controller, change.session, rows)
        found: dict[str, dict[str, JsonValue]] = {}
        for row in rows:
            instances.revealed(change, principal, row)
            resolved = values.resolve(row)
            if isinstance(resolved, references.Unresolved):
                found[row.path] = {}
            else:
                found[row.path] = {name: resolved.parameters[name] for name in resolved.sealed}
    return Revealed(variables=found)


def usage(
    controller: Controller, principal: Principal, wanted: Wanted, filters: dict[str, str | None]
) -> Page[UsageView]:
    """Usage records by window; `filters`: tenant, path, meter, since, until (a window that begins in between)."""
    query = select(Usage)
    if principal.tenants is not None:
        query = query.where(Usage.tenant.in_(principal.tenants))
    for name, column in (("tenant", Usage.tenant), ("path", Usage.path), ("meter", Usage.meter)):
        if (value := filters.get(name)) is not None:
            query = query.where(column == value)
    query = _between(query, filters)
    with controller.read() as session:
        return wanted.page(session, query, [Usage.window_start, Usage.id], _usage_view)


def _between(query: Select[Usage], filters: dict[str, str | None]) -> Select[Usage]:
    for name in ("since", "until"):
        if (value := filters.get(name)) is None:
            continue
        try:
            moment = clock.normal(value)
        except ValueError as error:
            raise Invalid(str(error), name) from error
        query = query.where(Usage.window_start >= moment if name == "since" else Usage.window_start < moment)
    return query


def _usage_view(row: Usage) -> UsageView:
    return UsageView.model_validate({name: getattr(row, name) for name in UsageView.model_fields})


def events(
    controller: Controller, principal: Principal, wanted: Wanted, filters: dict[str, str | None], after: int | None
) -> Page[EventView]:
    """Events in their order; `after`: those with a greater id; `filters`: kind, path, node."""
    query = select(Event)
    if principal.tenants is not None:
        query = query.where(Event.tenant.in_(principal.tenants))
    for name, column in (("kind", Event.kind), ("path", Event.path), ("node", Event.node)):
        if (value := filters.get(name)) is not None:
            query = query.where(column == value)
    if after is not None:
        query = query.where(Event.id > after)
    with controller.read() as session:
        return wanted.page(session, query, Event.id, _event_view)


def _event_view(row: Event) -> EventView:
    fields = ("id", "at", "kind", "tenant", "node", "path", "message", "data")
    return EventView.model_validate({name: getattr(row, name) for name in fields})
