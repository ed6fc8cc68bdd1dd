"""The one writer of ingested chunks: requests that wait together share a commit.

A thread takes what is queued, stores it in one transaction (`storing.store`), and answers each request when the commit
is synced. It also ends the streams that got nothing for `idle_seconds`. `is_full` says that so much waits that no more
should be received.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ZEO.Exceptions import ServerException

from clachan_lake.errors import LakeError
from clachan_lake.ingest.registry import Registry
from clachan_lake.ingest.storing import Arrival, Stored, store
from clachan_lake.local import LocalLake
from clachan_lake.repeating import repeated

log = logging.getLogger(__name__)
BATCH, BATCH_BYTES = 256, 16 << 20
"""A commit has no more chunks, and none after so many bytes: who sends a little does not wait for long ones."""
PATIENCE_SECONDS = 0.005
WAITING_BYTES = 256 << 20
ENDED = 64
"""So many idle streams are ended in one commit."""
REMEMBERED = 1000
"""After so many commits the session lets go of what it has loaded. Of a stream it needs the end only; ZODB, which
counts records, would keep what came before until those are thousands, each several KiB here."""
T = TypeVar("T")
Outcome = Stored | Exception


@dataclass(frozen=True, eq=False)
class Job:
    arrival: Arrival
    done: "asyncio.Future[Stored]"


class Committer(threading.Thread):
    def __init__(self, lake: LocalLake, registry: Registry, idle_seconds: float, due: Callable[[], None]) -> None:
        super().__init__(name="committer", daemon=True)
        self._lake = lake
        self._registry = registry
        self._idle_seconds = idle_seconds
        self._due = due
        """Called when a transformation became due."""
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open: dict[str, float] = {}
        self._tick = min(1.0, max(0.05, idle_seconds / 4))
        self._looked = 0.0
        self._expected = 1
        self._patience = 0.0
        self._commits = 0
        self.waiting = 0
        """Requests that have no answer yet. It and their bytes are changed by the event loop only."""
        self._waiting_bytes = 0

    @property
    def is_full(self) -> bool:
        return self._waiting_bytes >= WAITING_BYTES

    def submit(self, arrival: Arrival) -> "asyncio.Future[Stored]":
        """To be called by the event loop. The result comes when the chunk is synced; LakeError when it contradicts,
        OSError when the disk is full."""
        job = Job(arrival, asyncio.get_running_loop().create_future())
        self.waiting += 1
        self._waiting_bytes += arrival.chunk.length
        # the request may be cancelled while its chunk is being stored
        arrival.chunk.hold()
        self._jobs.put(job)
        return job.done

    def stop(self) -> None:
        """Finish what is queued, then end."""
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        self._attempt(self._settle)
        self._find_open()
        running = True
        while running:
            batch, running = self._take()
            began = time.monotonic()
            self._commit(batch)
            if batch:
                self._linger(len(batch), time.monotonic() - began)
                self._forget()
            if time.monotonic() - self._looked >= self._tick:
                self._looked = time.monotonic()
                self._end_idle()
            if not batch:
                # what this session could still read no pack may take away
                self._lake.refresh()

    def _settle(self) -> None:
        """Extents of a process before this one grow no more."""
        growing = self._lake.root()["growing"]
        if growing.extents:
            growing.extents = ()

    def _forget(self) -> None:
        self._commits += 1
        if self._commits % REMEMBERED == 0:
            self._lake.root()._p_jar.cacheMinimize()

    def _linger(self, count: int, spent: float) -> None:
        """Those that have their answers now and those that wait may be one commit, if it waits a little for the former:
        else they would take turns. One sender alone is never waited for."""
        self._expected = count + self._jobs.qsize()
        self._patience = min(spent / 3, PATIENCE_SECONDS) if self._expected > 1 else 0

    def _take(self) -> tuple[list[Job], bool]:
        """What waits, as far as it goes into one commit; False when it is the last."""
        batch: list[Job] = []
        length = 0
        try:
            job = self._jobs.get(timeout=self._tick)
            until = time.monotonic() + self._patience
            while job is not None:
                batch.append(job)
                length += job.arrival.chunk.length
                if len(batch) >= BATCH or length >= BATCH_BYTES:
                    return batch, True
                wait = until - time.monotonic() if len(batch) < self._expected else 0
                job = self._jobs.get(timeout=wait) if wait > 0 else self._jobs.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _commit(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        outcomes: list[Outcome]
        try:
            outcomes = self._attempt(lambda: [self._apply(job) for job in jobs])
        except Exception as error:
            # one request's trouble must not be the others': when they shared a commit, each gets its own
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
                return
            log.warning("%r: chunk not stored: %r", jobs[0].arrival.target.name, error)
            outcomes = [cause(error)]
        self._answer(list(zip(jobs, outcomes, strict=True)))

    def _answer(self, answers: list[tuple[Job, Outcome]]) -> None:
        for job, outcome in answers:
            if not isinstance(outcome, Stored) or outcome.kind != "stream":
                continue
            name = job.arrival.target.name
            if job.arrival.final:
                self._open.pop(name, None)
            elif outcome.new:
                self._open[name] = time.monotonic()
        try:
            # one loop's turn for all
            answers[0][0].done.get_loop().call_soon_threadsafe(self._tell, answers)
        except RuntimeError:
            log.warning("%d chunks stored without an answer: the service has ended", len(answers))
        if self._lake.root()["due"]:
            self._due()

    def _tell(self, answers: list[tuple[Job, Outcome]]) -> None:
        for job, outcome in answers:
            self.waiting -= 1
            self._waiting_bytes -= job.arrival.chunk.length
            job.arrival.chunk.let_go()
            if job.done.done():
                # the request was cancelled
                continue
            if isinstance(outcome, Stored):
                job.done.set_result(outcome)
            else:
                job.done.set_exception(outcome)

    def _attempt(self, change: Callable[[], T]) -> T:
        def alone() -> T:
            with self._lake.transaction():
                return change()

        return repeated(alone)

    def _apply(self, job: Job) -> Stored | LakeError:
        try:
            return store(self._lake, self._registry, job.arrival)
        except LakeError as error:
            return error

    def _end(self, names: list[str]) -> None:
        for name in names:
            self._lake.streams[name].end("idle")

    def _find_open(self) -> None:
        for name, stream in self._lake.streams.items():
            if not stream.final:
                self._open[name] = time.monotonic()

    def _end_idle(self) -> None:
        limit = time.monotonic() - self._idle_seconds
        idle = [name for name, last in self._open.items() if last < limit][:ENDED]
        if not idle:
            return
        try:
            self._attempt(lambda: self._end(idle))
        except Exception as error:
            log.warning("streams not ended: %r", error)
            return
        for name in idle:
            del self._open[name]
        self._due()


def cause(error: Exception) -> Exception:
    """The disk's error where the storage's side of the socket met it."""
    if isinstance(error, ServerException) and error.args[0] == "builtins.OSError":
        return OSError(*error.args[1])
    return error
