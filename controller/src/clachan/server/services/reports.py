"""What nodes report: each fact of a batch is judged on its own, all in one transaction.

The id decides first: the same id with the same content is known and changes nothing, with other content it is a
conflict and an event. What is malformed or not this node's to say is refused. None of these holds up the rest.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import insert, select

from clachan.contract.facts import Batch, Content, RawFact, UsageFact, Verdict, Verdicts, canonical
from clachan.server import clock
from clachan.server.db.models import Fact, Former, Instance, Node
from clachan.server.services.controller import Change, Controller
from clachan.server.services.refusals import Invalid, Refusal, Unauthenticated

log = logging.getLogger(__name__)
CONTENT: TypeAdapter[Any] = TypeAdapter(Content)


@dataclass
class Report:
    """A fact on its way: what every handler gets."""

    controller: Controller
    change: Change
    node: Node
    fact: RawFact
    at: str
    """When it was made, by the node's clock, in our form."""

    def instance(self, identifier: str) -> Instance | None:
        """The instance of this node; None when it was removed meanwhile: then the fact changes nothing.

        Raises Invalid when it is not this node's.
        """
        instance = self.change.session.get(Instance, identifier)
        if instance is not None and instance.node_id == self.node.id:
            return instance
        former = self.former(identifier)
        if former is None:
            raise Invalid(f"instance {identifier}: not on node {self.node.name}, expected one that it hosts")
        return None

    def former(self, identifier: str) -> Former | None:
        former = self.change.session.get(Former, identifier)
        return former if former is not None and former.node_id == self.node.id else None


Handler = Callable[[Report, Any], None]


def take(controller: Controller, node_id: str, batch: Batch) -> Verdicts:
    """Judge a batch; every verdict stands for what is committed when this returns."""
    from clachan.server.services.facts import HANDLERS

    digests = [hashlib.sha256(canonical(fact.content)).hexdigest() for fact in batch.facts]
    with controller.change() as change:
        node = change.session.get(Node, node_id)
        if node is None or node.state == "revoked":
            raise Unauthenticated("certificate: unknown or revoked, expected that of a node")
        known = _known(change, [fact.id for fact in batch.facts])
        verdicts = []
        for fact, digest in zip(batch.facts, digests, strict=True):
            if fact.id in known:
                verdicts.append(_repeated(change, node, fact, known[fact.id] == digest))
                continue
            verdict = _judge(controller, change, node, fact, HANDLERS)
            if verdict.verdict == "accepted":
                known[fact.id] = digest
                _remember(change, node, fact, digest)
            verdicts.append(verdict)
    return Verdicts(verdicts=verdicts)


def _known(change: Change, ids: list[str]) -> dict[str, str]:
    return dict(change.session.execute(select(Fact.id, Fact.digest).where(Fact.id.in_(ids))).all())


def _remember(change: Change, node: Node, fact: RawFact, digest: str) -> None:
    row = {"id": fact.id, "node_id": node.id, "kind": fact.content["kind"], "digest": digest, "received": change.now}
    change.session.execute(insert(Fact).values(row))


def _repeated(change: Change, node: Node, fact: RawFact, same: bool) -> Verdict:
    if same:
        return Verdict(id=fact.id, verdict="known")
    text = f"node {node.name} sent fact {fact.id} again with other content; the first is kept"
    log.warning("fact conflict node=%s id=%s", node.name, fact.id)
    owner = node.owner.name if node.owner is not None else None
    change.event("fact_conflict", text, tenant=owner, node=node.name, data={"id": fact.id, "kind": _kind(fact)})
    return Verdict(id=fact.id, verdict="conflict", message="known with other content")


def _kind(fact: RawFact) -> str:
    return str(fact.content.get("kind"))[:31]


def _judge(controller: Controller, change: Change, node: Node, fact: RawFact, handlers: dict[type, Handler]) -> Verdict:
    try:
        content = CONTENT.validate_python(fact.content)
        report = Report(controller, change, node, fact, clock.normal(fact.at))
        if isinstance(content, UsageFact):
            # checked before it writes anything: no savepoint for the most frequent kind
            handlers[UsageFact](report, content)
        else:
            with change.session.begin_nested():
                handlers[type(content)](report, content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return Verdict(id=fact.id, verdict="refused", message=f"{where}: {first['msg']}"[:500])
    except (Refusal, ValueError) as error:
        return Verdict(id=fact.id, verdict="refused", message=str(error)[:500])
    return Verdict(id=fact.id, verdict="accepted")
