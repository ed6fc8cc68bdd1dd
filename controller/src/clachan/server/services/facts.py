"""What each kind of fact changes. A handler raises a Refusal when the fact is not this node's to say."""

from sqlalchemy import delete, select

from clachan.contract.api import Declaration
from clachan.contract.facts import (
    InstanceFact,
    NodeFact,
    OutageFact,
    PromisesFact,
    RequestsFact,
    RunFact,
    SupplyFact,
    UsageFact,
)
from clachan.contract.inventory import SECRET
from clachan.contract.software import SoftwareMeta
from clachan.server import clock
from clachan.server.db.models import Instance, Promise, Secret, Supply, Usage
from clachan.server.decisions import states, usage
from clachan.server.services import removal, requests, standings
from clachan.server.services.refusals import Invalid, Refusal
from clachan.server.services.reports import Handler, Report
from clachan.server.services.requests import add_secret
from clachan.server.services.values import load_secrets


def node_fact(report: Report, fact: NodeFact) -> None:
    """The node itself; its labels and owner are never its own to say."""
    node = report.node
    if _stale(node.applied, report):
        return
    if fact.mode == "root" and len(fact.users) < fact.slots:
        raise Invalid(f"users: {len(fact.users)} of {fact.slots} slots, expected one for each slot")
    node.applied = {**node.applied, "node": [report.fact.sequence, report.at]}
    node.mode, node.version, node.system, node.python = fact.mode, fact.version, fact.system, fact.python
    node.slots, node.slots_directory, node.users = fact.slots, fact.slots_directory, fact.users
    node.memory_mib, node.cpu_milli, node.disk_mib = fact.memory_mib, fact.cpu_milli, fact.disk_mib
    vm = report.change.session.get(Instance, node.vm_id) if node.vm_id is not None else None
    if vm is not None:
        # a VM has what it was given, whatever it says
        node.memory_mib, node.cpu_milli = min(fact.memory_mib, vm.memory_mib), min(fact.cpu_milli, vm.cpu_milli)
    node.platform_digest = fact.platform_digest
    if node.state == "joining":
        node.state = "active"
        owner = node.owner.name if node.owner is not None else None
        report.change.event("node_active", f"node {node.name} is active", tenant=owner, node=node.name)
    if vm is not None:
        standings.heard_of_vm(report.controller, report.change, vm.id)
    report.change.touch_node(node.id)
    report.change.capacity = True


def instance_fact(report: Report, fact: InstanceFact) -> None:
    instance = report.instance(fact.instance)
    if instance is None:
        return
    wanted = states.Wanted(instance.number, instance.revision.state)
    at = clock.parse(report.at)
    before = standings.standing(instance)
    answer = states.judge(before, wanted, fact, sequence=report.fact.sequence, at=at)
    if isinstance(answer, states.Refused):
        raise Invalid(answer.message)
    if isinstance(answer, states.Stale):
        return
    if answer.drop:
        removal.remove(report.change, instance)
        return
    standings.mark_applied(instance, "instance", report.fact.sequence, report.at)
    if fact.state == "started" and instance.reported not in {None, "started"}:
        standings.ask_vm(report.controller, report.change, instance)
    instance.reported = answer.standing.state
    shown = standings.as_vm(report.controller, report.change, instance, answer.standing)
    standings.keep(report.change, instance, shown)
    if before.state != shown.state:
        standings.state_event(report.change, instance)
    if fact.published is not None:
        publish(report, instance, dict(fact.published))
    if fact.revision != instance.number:
        # it runs what was wanted before; that its new revision waits stays what is shown
        standings.refresh(report.controller, report.change, [instance])


def publish(report: Report, instance: Instance, values: dict[str, str | int | float | bool]) -> None:
    """Keep published values; a key that the software does not declare, or declares secret, is kept as a secret."""
    session = report.change.session
    declared = SoftwareMeta.model_validate(instance.revision.software.meta).published
    hidden = {key for key in values if key not in declared or declared[key].secret}
    own = load_secrets(session, [instance.id])[instance.id]
    former = {name: row.value for (kind, name), row in own.items() if kind == "published"}
    shown = {key: SECRET if key in hidden else value for key, value in values.items()}
    secret = {key: values[key] for key in sorted(hidden)}
    if shown == instance.published and secret == former:
        return
    session.execute(delete(Secret).where(Secret.instance_id == instance.id, Secret.kind == "published"))
    for key, value in secret.items():
        add_secret(report.change, instance, "published", key, value)
    instance.published = shown
    report.change.topics.add(f"instance:{instance.path}")
    standings.touch_parent(report.change, instance)
    if users := standings.consumers(report.change, instance.path):
        standings.refresh(report.controller, report.change, users)


def promises_fact(report: Report, fact: PromisesFact) -> None:
    instance = report.instance(fact.instance)
    if instance is None or _is_stale(instance, report):
        return
    session = report.change.session
    kept = {row.name: row for row in session.scalars(select(Promise).where(Promise.instance_id == instance.id))}
    before = {name: states.PromiseStanding(row.ok, row.message, clock.parse(row.since)) for name, row in kept.items()}
    after = states.promises(before, fact.results, clock.parse(report.at))
    for name in kept.keys() - after.keys():
        session.delete(kept[name])
    for name, result in after.items():
        row = kept.get(name) or Promise(instance_id=instance.id, name=name)
        row.ok, row.message, row.since = result.ok, result.message, clock.text(result.since)
        session.add(row)
    report.change.topics.add(f"instance:{instance.path}")


def outage_fact(report: Report, fact: OutageFact) -> None:
    instance = report.instance(fact.instance)
    if instance is not None:
        event = states.outage_event(instance.path, fact)
        tenant, node = instance.tenant.name, report.node.name
        report.change.event(event.kind, event.message, tenant=tenant, node=node, path=instance.path, data=event.data)


def requests_fact(report: Report, fact: RequestsFact) -> None:
    """The children of an instance: each is declared on its own, what is missing is wanted absent."""
    parent = report.instance(fact.instance)
    if parent is None or _is_stale(parent, report):
        return
    change = report.change
    rows = change.session.scalars(select(Instance).where(Instance.parent_id == parent.id)).unique()
    existing = {row.path.rpartition(".")[2]: row for row in rows}
    wanted = {name: row.revision.state for name, row in existing.items()}
    changes = states.children(wanted, fact.children, parent=parent.revision.state)
    author = f"instance:{parent.path}"
    for name, declaration in changes.declare.items():
        _declare_child(report, parent, existing.get(name), f"{parent.path}.{name}", declaration)
    for name in changes.remove:
        requests.want_absent(report.controller, change, existing[name], author)


def _declare_child(
    report: Report, parent: Instance, child: Instance | None, path: str, declaration: Declaration
) -> None:
    author, change = f"instance:{parent.path}", report.change
    try:
        with change.session.begin_nested():
            if declaration.state != "absent":
                requests.declare(report.controller, change, path, declaration, author)
            elif child is not None:
                requests.want_absent(report.controller, change, child, author)
    except Refusal as refusal:
        text = f"{parent.path} requests {path}: {refusal.message}"
        tenant, node = parent.tenant.name, report.node.name
        change.event("request_refused", text, tenant=tenant, node=node, path=parent.path)


def supply_fact(report: Report, fact: SupplyFact) -> None:
    supply = report.change.session.get(Supply, fact.supply)
    if supply is None:
        return
    if supply.node_id != report.node.id:
        raise Invalid(f"supply {fact.supply}: not of node {report.node.name}, expected one of its own")
    if _stale(supply.applied, report) or supply.software.digest != fact.digest:
        return
    supply.applied = {"supply": [report.fact.sequence, report.at]}
    changed = (supply.observed, supply.message) != (fact.state, fact.message)
    supply.observed, supply.message = fact.state, fact.message
    if changed:
        report.change.capacity = True
        said = f": {fact.message}" if fact.message else ""
        text = f"{supply.fqcn} is {fact.state} on node {report.node.name}{said}"
        report.change.event("supply_state", text, node=report.node.name)
    if fact.state == "absent" and supply.state == "absent":
        report.change.session.delete(supply)
        report.change.touch_node(report.node.id)


def run_fact(report: Report, fact: RunFact) -> None:
    """A run is one event; one of a single tenant's instances is that tenant's."""
    tenants = {host.partition(".")[0] for host in fact.hosts}
    what = ", ".join(fact.hosts) or fact.software
    text = f"run {fact.purpose} of {what} on node {report.node.name}: {fact.status}"
    owner = report.node.owner.name if report.node.owner is not None else None
    if owner is not None and tenants - {owner}:
        raise Invalid(f"run {fact.run}: hosts of other tenants, expected those of {owner}")
    tenant = tenants.pop() if len(tenants) == 1 else None
    data = fact.model_dump(mode="json", exclude={"kind"})
    path = fact.hosts[0] if len(fact.hosts) == 1 else None
    report.change.event("run", text[:4000], tenant=tenant, node=report.node.name, path=path, data=data)


def usage_fact(report: Report, fact: UsageFact) -> None:
    instance = report.change.session.get(Instance, fact.instance)
    former = None if instance is not None else report.former(fact.instance)
    if instance is not None:
        path, tenant, account = instance.path, instance.tenant.name, instance.tenant.account.name
        nodes = frozenset({instance.node_id or ""})
    elif former is not None:
        path, tenant, account, nodes = former.path, former.tenant, former.account, frozenset({report.node.id})
    else:
        raise Invalid(f"usage of instance {fact.instance}: unknown, expected one that the node hosts or hosted")
    node = report.node
    reporter = usage.Reporter(node.id, node.name, node.owner.name if node.owner is not None else None)
    metered = usage.Metered(fact.instance, path, tenant, nodes)
    if (wrong := usage.problem(report.fact.id, fact, reporter, metered, clock.parse(report.change.now))) is not None:
        raise Invalid(wrong)
    row = Usage(id=report.fact.id, node=node.name, instance=fact.instance, path=path, tenant=tenant, account=account)
    row.meter, row.epoch, row.quantity, row.billable = fact.meter, fact.epoch, fact.quantity, node.owner_id is None
    row.window_start, row.window_end = clock.normal(fact.window_start), clock.normal(fact.window_end)
    report.change.session.add(row)


def _stale(applied: dict[str, list[object]], report: Report) -> bool:
    """For what is not an instance: older by sequence and by time than what was applied."""
    sequence, at = next(iter(applied.values()), (-1, ""))
    return report.fact.sequence <= int(str(sequence)) and report.at <= str(at)


def _is_stale(instance: Instance, report: Report) -> bool:
    """For facts of an instance; one that is not is noted as the newest of its kind."""
    kind = str(report.fact.content["kind"])
    standing = standings.standing(instance, kind)
    if states.is_stale(standing, report.fact.sequence, clock.parse(report.at)):
        return True
    standings.mark_applied(instance, kind, report.fact.sequence, report.at)
    return False


HANDLERS: dict[type, Handler] = {
    NodeFact: node_fact,
    InstanceFact: instance_fact,
    PromisesFact: promises_fact,
    OutageFact: outage_fact,
    RequestsFact: requests_fact,
    SupplyFact: supply_fact,
    RunFact: run_fact,
    UsageFact: usage_fact,
}
