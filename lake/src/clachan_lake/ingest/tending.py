"""What is done beside the requests, by one thread: learning of changes of policies and tokens, retention, counting.

Each second it looks whether other processes have changed policies or tokens, and goes a step further through all
sources: forgetting what a policy keeps no longer, and counting what each policy with a quota holds. Once an hour it
forgets tokens that have not held for long.
"""

import logging
import threading
import time
from collections.abc import Iterator
from itertools import islice

from ZODB.POSException import ConflictError

from clachan_lake.format import ArrayRecord, StreamRecord
from clachan_lake.ingest.registry import Registry
from clachan_lake.ingest.storing import DEAD
from clachan_lake.ingest.usage import Source
from clachan_lake.local import LocalLake
from clachan_lake.policies.dead import INGEST, LocalDead
from clachan_lake.policies.policy import Policy
from clachan_lake.streams import stream as streams

log = logging.getLogger(__name__)
SECOND = 1.0
STEP = 200
"""Sources that are looked at in a second."""
PURGE_SECONDS = 3600.0
KEPT_SECONDS = 30 * 86400
"""A token that holds no more is listed for so long."""
CHUNKS = 1000
"""Chunks and ids that are forgotten at most in one transaction."""


class Tending(threading.Thread):
    def __init__(self, lake: LocalLake, registry: Registry) -> None:
        """`lake` is a session of its own, which the thread closes."""
        super().__init__(name="tending", daemon=True)
        self._lake = lake
        self._registry = registry
        self._stopping = threading.Event()
        self._purged = float("-inf")
        self._round = self._sources()
        self._seen: dict[str, set[Source]] = {}

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        while not self._stopping.wait(SECOND):
            try:
                self._registry.refresh()
                self.step()
                if time.monotonic() - self._purged > PURGE_SECONDS:
                    self._purged = time.monotonic()
                    self.purge()
            except Exception as error:
                # the lake's own trouble, of which the service's watch decides
                log.warning("not tended: %r", error)
                self._round = self._sources()
        self._lake.close()

    def count(self) -> None:
        """A whole round, before the first request."""
        if self._ruled():
            self._lake.refresh()
            for kind, name in self._sources():
                self._look(kind, name)
            self._finish()
        self._count_dead()

    def step(self) -> None:
        self._lake.refresh()
        if not self._ruled():
            self._round, self._seen = self._sources(), {}
            return
        for _ in range(STEP):
            source = next(self._round, None)
            if source is None:
                self._finish()
                self._count_dead()
                return
            self._look(*source)

    def purge(self) -> None:
        """Forget the tokens that have not held for long."""
        before = _now() - 1000 * KEPT_SECONDS
        if self._lake.tokens.old(before):
            with self._lake.transaction("old tokens"):
                self._lake.tokens.purge(before)

    def _ruled(self) -> dict[str, Policy]:
        """The policies for which sources must be looked at."""
        return {
            name: policy
            for name, policy in self._registry.policies.items()
            if policy.quota_bytes or policy.keep_bytes or policy.keep_seconds or policy.ids_seconds
        }

    def _sources(self) -> Iterator[Source]:
        """All, in the order of their names; what comes or goes meanwhile is met or not."""
        for kind in ("streams", "arrays"):
            last = ""
            while names := list(islice(self._lake.root()[kind].keys(min=last), STEP + 1)):
                if last == names[-1]:
                    break
                yield from ((kind.removesuffix("s"), name) for name in names if name != last)
                last = names[-1]

    def _finish(self) -> None:
        """After a round: what was not met is no more."""
        usage = self._registry.usage
        limited = [name for name, policy in self._registry.policies.items() if policy.quota_bytes is not None]
        for name in limited:
            usage.keep(name, self._seen.get(name, set()))
        usage.keep_policies([DEAD, *limited])
        self._round, self._seen = self._sources(), {}

    def _look(self, kind: str, name: str) -> None:
        record = self._lake.root()[f"{kind}s"].get(name)
        policy = self._registry.policies.get(record.policy) if record is not None and record.policy else None
        if policy is None:
            return
        if isinstance(record, StreamRecord) and (expired(record, policy) or _has_old_ids(record, policy)):
            self._forget(name, policy)
        if policy.quota_bytes is not None:
            self._seen.setdefault(record.policy, set()).add((kind, name))
            self._registry.usage.count(record.policy, (kind, name), self._held(record))

    def _held(self, record: StreamRecord | ArrayRecord) -> int:
        if isinstance(record, StreamRecord):
            return int(record.size - record.start)
        return int(self._lake.arrays[record.name].nbytes)

    def _forget(self, name: str, policy: Policy) -> None:
        try:
            with self._lake.transaction("retention"):
                stream = self._lake.streams.find(name)
                if stream is None:
                    return
                before = expired(stream.record, policy)
                if before:
                    streams.truncate(stream.record, before, CHUNKS)
                if policy.ids_seconds is not None:
                    streams.forget(stream.record.ids, _now() - 1000 * policy.ids_seconds, CHUNKS)
        except ConflictError:
            # somebody appends; the next round tries again
            log.debug("stream %r: not truncated, expected a quieter moment", name)

    def _count_dead(self) -> None:
        dead, usage, met = LocalDead(self._lake), self._registry.usage, set()
        for number, letter in dead.items():
            if letter["kind"] == INGEST:
                met.add(("dead", str(number)))
                usage.count(DEAD, ("dead", str(number)), letter["length"])
        usage.keep(DEAD, met)


def expired(record: StreamRecord, policy: Policy) -> int:
    """The position up to which the policy keeps a stream no longer; 0 for nothing."""
    limit, by_time = 0, policy.keep_seconds is not None
    oldest = _now() - 1000 * (policy.keep_seconds or 0)
    excess = 0 if policy.keep_bytes is None else record.size - policy.keep_bytes
    for number, (start, entry) in enumerate(record.chunks.items()):
        stop = start + entry[0]
        if number == CHUNKS or not (stop <= excess or (by_time and entry[3] < oldest)):
            break
        limit = stop
    return limit


def _has_old_ids(record: StreamRecord, policy: Policy) -> bool:
    if policy.ids_seconds is None or not record.ids.order:
        return False
    first = record.ids.known[record.ids.order[record.ids.order.minKey()]]
    return bool(first[3] < _now() - 1000 * policy.ids_seconds)


def _now() -> int:
    return time.time_ns() // 10**6
