"""The agent's side of the connection to the controller: threads that poll, report, answer and renew.

None of them stops at an error: it says so once, waits longer each time, and says when it works again. The agent
does all its other work without them.
"""

import json
import logging
import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from clachan.agent import certificate
from clachan.agent.layout import Layout, write_whole
from clachan.agent.planning import Host
from clachan.agent.settings import NodeConfig
from clachan.agent.slots import log_names, tail
from clachan.agent.spool import Spool
from clachan.client import Client, ClientError
from clachan.client.streams import Streams
from clachan.contract.api import Answer, ConnectQuestion, DoctorQuestion, LogsQuestion
from clachan.contract.inventory import WRAPPER, Inventory

log = logging.getLogger(__name__)

POLL_SECONDS = 30
LONGEST_PAUSE = 30.0
GATHER_SECONDS = 0.02
"""Facts that are written together are sent together."""
RENEWAL_SECONDS = 600.0
LOG_BYTES = 256 * 1024


class Link:
    """Makes the client; a new one when the node's certificate was replaced. Threads may share it."""

    def __init__(self, layout: Layout, config: NodeConfig) -> None:
        self._layout = layout
        self._url = config.controller_url
        self._lock = threading.Lock()
        self._made_of: tuple[int, ...] = ()
        self._client: Client | None = None

    def client(self) -> Client:
        """Raises OSError when the node has no certificate yet."""
        files = (self._layout.certificate, self._layout.ca)
        with self._lock:
            stamps = tuple(stamp for file in files for stamp in (file.stat().st_mtime_ns, file.stat().st_ino))
            if self._client is None or stamps != self._made_of:
                # the old one is left to those who are using it
                self._client = self.fresh()
                self._made_of = stamps
            return self._client

    def fresh(self) -> Client:
        return Client(self._url, ca_file=self._layout.ca, cert=(self._layout.certificate, self._layout.key))

    def streams(self) -> Streams:
        return Streams(self._url, ca_file=self._layout.ca, cert=(self._layout.certificate, self._layout.key))


def keep_doing(stop: threading.Event, what: str, step: Callable[[], None]) -> None:
    """Call `step` until `stop`; after an error wait 0.5, 1, 2 ... at most 30 s, each a little at random."""
    failures = 0
    while not stop.is_set():
        try:
            step()
        except (ClientError, OSError, sqlite3.Error) as error:
            failures += 1
            if failures == 1 and not stop.is_set():  # at the end the spool is closed
                log.warning("%s: %s", what, error)
            pause = min(LONGEST_PAUSE, 0.5 * 2.0 ** min(failures - 1, 10))
            stop.wait(pause * random.uniform(0.75, 1.25))  # noqa: S311 - so that nodes do not all come at once
        else:
            if failures:
                log.info("%s: works again after %d failures", what, failures)
            failures = 0


class Slices:
    """The last good slice: in node/slice.json with its ETag, and polled for a newer one."""

    def __init__(self, layout: Layout, link: Link, arrived: Callable[[Inventory], None]) -> None:
        self._path = layout.slice
        self._link = link
        self._arrived = arrived
        self._etag: str | None = None

    def load(self) -> Inventory | None:
        """What is on disk; None when there is nothing, or nothing that can be read."""
        try:
            kept = json.loads(self._path.read_bytes())
            inventory = Inventory.model_validate_json(json.dumps(kept[WRAPPER]))
            self._etag = kept.get("etag")
            return inventory
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            log.warning("slice %s: %s, expected the controller's last; waiting for a new one", self._path, error)
            return None

    def poll(self) -> None:
        """Wait for a newer slice, keep it, hand it on."""
        got = self._link.client().slice(self._etag, wait=POLL_SECONDS)
        if got is None:
            return
        content = {"etag": got.etag, WRAPPER: json.loads(got.body)[WRAPPER]}
        write_whole(self._path, json.dumps(content, ensure_ascii=False).encode())
        self._etag = got.etag
        log.info("slice: %d hosts", len(got.document.inventory.records))
        self._arrived(got.document.inventory)


class Reporter:
    """Sends what is in the spool, as soon as it is there."""

    def __init__(self, spool: Spool, link: Link, stop: threading.Event) -> None:
        self._spool = spool
        self._link = link
        self._stop = stop

    def step(self) -> None:
        if not self._spool.filled.wait(timeout=1):
            return
        self._stop.wait(GATHER_SECONDS)
        # before the look: a fact that comes after it sets it again
        self._spool.filled.clear()
        try:
            self.send_all()
        except BaseException:
            self._spool.filled.set()
            raise

    def send_all(self) -> None:
        """Send batch after batch until the spool is empty; raises ClientError."""
        while facts := (batch := self._spool.batch()).facts:
            verdicts = self._link.client().report(batch).verdicts
            for refused in self._spool.settle(verdicts):
                log.error("fact %s: %s: %s; set aside", refused.id[:12], refused.verdict, refused.message)
            if not {fact.id for fact in facts} & {verdict.id for verdict in verdicts}:
                raise ClientError(f"report of {len(facts)} facts: a verdict on none of them, expected one on each")


class Answers:
    """Answers what users ask of this node."""

    def __init__(
        self,
        link: Link,
        find: Callable[[str], Host | None],
        connect: Callable[[ConnectQuestion, Host], None],
        examine: Callable[[DoctorQuestion], None],
    ) -> None:
        """`find(instance)` gives it when it is on this node; `connect` and `examine` work in threads of their own."""
        self._link, self._find, self._connect, self._examine = link, find, connect, examine

    def step(self) -> None:
        client = self._link.client()
        for question in client.questions(wait=POLL_SECONDS):
            if isinstance(question, DoctorQuestion):
                self._examine(question)
                continue
            answer = self._answer(question)
            if answer is not None:
                client.answer(question.id, answer)
                log.info("question %s about %s: answered", question.kind, question.instance)

    def _answer(self, question: LogsQuestion | ConnectQuestion) -> Answer | None:
        host = self._find(question.instance)
        if host is None:
            return Answer(error=f"instance {question.instance}: not on this node")
        if isinstance(question, ConnectQuestion):
            self._connect(question, host)
            return None
        slot = Path(host.instance.slot.directory)
        names = [question.service] if question.service else log_names(slot)
        try:
            return Answer(logs={name: tail(slot, name, question.lines, LOG_BYTES) for name in names})
        except OSError as error:
            return Answer(error=f"log of {question.service or question.instance}: {error.strerror}")


class Renewal:
    """Renews the certificate at two thirds of its life."""

    def __init__(self, layout: Layout, link: Link, stop: threading.Event) -> None:
        self._layout = layout
        self._link = link
        self._stop = stop

    def step(self) -> None:
        if certificate.renewal_due(self._layout.certificate):
            end = certificate.renew(self._layout, self._link.client())
            log.info("certificate: renewed, valid until %s", f"{end:%Y-%m-%d}")
        self._stop.wait(RENEWAL_SECONDS)
