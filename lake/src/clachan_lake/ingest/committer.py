"""The one writer of ingested chunks: requests that wait together share a commit.

A thread takes what is queued, appends it in one transaction, and answers each request when the commit is synced. It
also ends the streams that got nothing for `idle_seconds`.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from ZEO.Exceptions import ServerException
from ZODB.POSException import ConflictError

from clachan_lake.errors import ChunkError, LakeError
from clachan_lake.ingest.config import Policy
from clachan_lake.local import LocalLake
from clachan_lake.names import check_chunk_id, check_name
from clachan_lake.streams.chunk import Chunk

log = logging.getLogger(__name__)
BATCH = 64
ATTEMPTS = 10
T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """`new` is False for a repeat; `size` is the stream's after it."""

    new: bool
    size: int


@dataclass
class Job:
    policy: str
    reference: str
    chunk: Chunk
    chunk_id: str | None
    offset: int | None
    final: bool
    done: "Future[Stored]" = field(default_factory=Future)


class Committer(threading.Thread):
    def __init__(
        self, lake: LocalLake, policies: dict[str, Policy], idle_seconds: float, due: Callable[[], None]
    ) -> None:
        super().__init__(name="committer", daemon=True)
        self._lake = lake
        self._policies = policies
        self._idle_seconds = idle_seconds
        self._due = due
        """Called when a transformation became due."""
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open: dict[str, float] = {}

    def submit(self, job: Job) -> "Future[Stored]":
        """The result comes when the chunk is synced; LakeError when it contradicts, OSError when the disk is full."""
        self._jobs.put(job)
        return job.done

    def stop(self) -> None:
        """Finish what is queued, then end."""
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        self._find_open()
        tick = min(1.0, max(0.05, self._idle_seconds / 4))
        running = True
        while running:
            batch = self._take(tick)
            if None in batch:
                running = False
            self._commit([job for job in batch if job is not None])
            self._end_idle()
            if not batch:
                # what this session could still read no pack may take away
                self._lake.refresh()

    def _take(self, wait: float) -> list[Job | None]:
        batch: list[Job | None] = []
        try:
            batch.append(self._jobs.get(timeout=wait))
            while len(batch) < BATCH and batch[-1] is not None:
                batch.append(self._jobs.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _commit(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            results = self._attempt(lambda: [self._apply(job) for job in jobs])
        except Exception as error:
            # one request's trouble must not be the others': when they shared a commit, each gets its own
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
                return
            log.warning("stream %r: chunk not stored: %r", jobs[0].reference, error)
            jobs[0].done.set_exception(cause(error))
            return
        for job, result in zip(jobs, results, strict=True):
            self._answer(job, result)
        if any(job.final for job in jobs):
            self._due()

    def _answer(self, job: Job, result: Stored | LakeError) -> None:
        if isinstance(result, LakeError):
            job.done.set_exception(result)
            return
        if job.final:
            self._open.pop(job.reference, None)
        elif result.new:
            self._open[job.reference] = time.monotonic()
        job.done.set_result(result)

    def _attempt(self, change: Callable[[], T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                with self._lake.transaction():
                    return change()
            except ConflictError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.01 * attempt)
        raise AssertionError("unreachable")

    def _apply(self, job: Job) -> Stored | LakeError:
        try:
            check_name("stream", job.reference)
            check_chunk_id(job.chunk_id)
            streams = self._lake.streams
            stream = streams.find(job.reference)
            if stream is None:
                if job.offset:
                    raise ChunkError(f"stream {job.reference}, offset: {job.offset}, expected its size 0", 0)
                stream = streams.create(job.reference, job.policy, self._policies[job.policy].transformation)
            elif stream.describe()["policy"] != job.policy:
                raise ChunkError(
                    f"stream {job.reference}, policy: {job.policy}, expected {stream.describe()['policy']}, "
                    "which made it",
                    stream.size,
                )
            new = stream.append_chunk(job.chunk, job.chunk_id, job.final, job.offset)
            return Stored(new, stream.size)
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
        idle = [name for name, last in self._open.items() if last < limit][:BATCH]
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
