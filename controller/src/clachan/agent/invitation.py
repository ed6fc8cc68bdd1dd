"""Joining by a file: node/join.json says the controller, the node's name and its one-time token.

Whoever makes the machine leaves it there (the seed of a VM); node/config.json then need not know the controller. It is
removed when the node has joined. A machine joins and says what it is before it imports the rest of the agent, which
takes an emulated processor ten seconds; so what is imported here stands on the standard library and `cryptography`.
"""

import json
import logging
import os
import random
import threading
from datetime import UTC, datetime

from clachan.agent import certificate
from clachan.agent.about import about
from clachan.agent.layout import AgentError, Layout
from clachan.client.errors import BadAnswerError, ClientError, UnreachableError, UntrustedError
from clachan.client.streams import Streams

log = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
LOOK_SECONDS = 2.0
PASSING = UnreachableError, UntrustedError, BadAnswerError, OSError
PASSING_CODES = {"unavailable", "timeout"}
"""What may be otherwise later, without another invitation."""


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
        url, node, token = _read(layout)
        layout.complete_config(url, node)
        # a machine that lost its power, and the key with it, when the token is used could never join
        certificate.signing_request(layout, node)
        os.sync()
        certificate.join(layout, url, node, token)
        log.info("node %s: joined %s", node, url)
    layout.invitation.unlink()
    try:
        _report(layout)
    except (ClientError, OSError, KeyError) as error:
        log.warning("first report: %s; the agent makes another", error)


def _read(layout: Layout) -> tuple[str, str, str]:
    try:
        found = json.loads(layout.invitation.read_bytes())
        if set(found) != {"url", "node", "token"} or not all(isinstance(value, str) for value in found.values()):
            raise ValueError(f"has {', '.join(sorted(found))}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise AgentError(f"file {layout.invitation}: {error}, expected url, node and token, each a text") from error
    return found["url"], found["node"], found["token"]


def _report(layout: Layout) -> None:
    """What this machine is. The spool's first fact says it once more, and is the later one by its number."""
    config = json.loads(layout.config.read_bytes())
    fact = {"id": os.urandom(32).hex(), "sequence": 0, "at": datetime.now(UTC).isoformat(), "content": about(config)}
    streams = Streams(config["controller_url"], ca_file=layout.ca, cert=(layout.certificate, layout.key))
    streams.document("/nodes/self/reports", {"facts": [fact]})
