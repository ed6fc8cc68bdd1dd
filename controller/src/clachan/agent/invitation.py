"""Joining by a file: node/join.json says the controller, the node's name and its one-time token.

Whoever makes the machine leaves it there (the seed of a VM); node/config.json then need not know the controller. It is
removed when the node has joined.
"""

import logging
import random
import threading

from clachan.agent import certificate
from clachan.agent.layout import AgentError, Layout, load
from clachan.client.errors import BadAnswerError, ClientError, UnreachableError, UntrustedError
from clachan.contract import Document
from clachan.contract.names import Name

log = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
LOOK_SECONDS = 2.0
PASSING = UnreachableError, UntrustedError, BadAnswerError, OSError
PASSING_CODES = {"unavailable", "timeout"}
"""What may be otherwise later, without another invitation."""


class Invitation(Document):
    """node/join.json."""

    url: str
    node: Name
    token: str


def accept(layout: Layout, stop: threading.Event) -> bool:
    """Join when there is an invitation; False when `stop` came first.

    While the controller cannot be reached it tries again, after longer and longer pauses. What the controller refused
    is not tried again: it waits for another invitation.
    """
    failures, refused = 0, 0
    while not stop.is_set():
        try:
            stamp = layout.invitation.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        if stamp == refused:
            stop.wait(LOOK_SECONDS)
            continue
        try:
            _join(layout)
            return True
        except (AgentError, ClientError, OSError) as error:
            if not (isinstance(error, PASSING) or getattr(error, "code", None) in PASSING_CODES):
                log.error("%s: %s; waiting for another one", layout.invitation, error)
                failures, refused = 0, stamp
                continue
            failures += 1
            if failures == 1:
                log.warning("join: %s; trying again", error)
            pause = min(LONGEST_PAUSE, 0.25 * 2.0 ** min(failures, 10))
            stop.wait(pause * random.uniform(0.75, 1.25))  # noqa: S311 - so that nodes do not all come at once
    return False


def _join(layout: Layout) -> None:
    # who has a certificate has joined, and was killed before it could remove the file
    if not layout.certificate.exists():
        invitation = load(layout.invitation, Invitation, "url, node and token")
        layout.complete_config(invitation.url, invitation.node)
        identity = certificate.join(layout, invitation.url, invitation.node, invitation.token)
        log.info("node %s: joined %s", identity.name, invitation.url)
    layout.invitation.unlink()
