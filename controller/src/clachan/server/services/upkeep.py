"""What is done now and then: nodes' sightings written down, old events and fact ids pruned, leftovers removed."""

import logging
import time

from sqlalchemy import delete, update

from clachan.server import clock
from clachan.server.db.models import Event, Fact, Former, JoinToken, Node, Token
from clachan.server.services import images
from clachan.server.services.controller import Controller

log = logging.getLogger(__name__)
LEFTOVER_SECONDS = 86400


def write_sightings(controller: Controller) -> None:
    fresh = controller.sightings.take()
    if fresh:
        with controller.change() as change:
            for node, moment in fresh.items():
                change.session.execute(update(Node).where(Node.id == node).values(seen=moment))


def prune(controller: Controller) -> int:
    """Delete what is older than its retention; usage records are never deleted. Gives the number of events gone."""
    settings = controller.settings
    events, facts = clock.after(-86400 * settings.event_days), clock.after(-86400 * settings.fact_days)
    with controller.change() as change:
        gone = change.session.execute(delete(Event).where(Event.at < events)).rowcount  # type: ignore[attr-defined]
        change.session.execute(delete(Fact).where(Fact.received < facts, Fact.kind != "usage"))
        change.session.execute(delete(Former).where(Former.removed < facts))
        change.session.execute(delete(JoinToken).where(JoinToken.expires < events))
        change.session.execute(delete(Token).where(Token.expires.is_not(None), Token.expires < events))
    for leftover in controller.artifacts.glob(".upload-*"):
        if leftover.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
            leftover.unlink(missing_ok=True)
    images.prune(controller)
    if gone:
        log.info("pruned events=%d before=%s", gone, events)
    return int(gone)
