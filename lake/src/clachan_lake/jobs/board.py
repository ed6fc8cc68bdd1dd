"""What the service remembers of workers, and does when one vanishes. Nothing of it is kept: after a start of the
service every attempt has the time of a lease to be heard of.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool

from clachan_lake.errors import LateError, MissingError
from clachan_lake.jobs import document as form
from clachan_lake.jobs.ledger import Ledger, commit
from clachan_lake.local import LocalLake

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
"""How late a job is noticed that was submitted through the socket."""
SLOT_SECONDS = 90.0
"""How long a worker is known that does not ask any more."""
CLEAN_SECONDS = 3600.0
PART_MILLISECONDS = 2 * 86_400_000


class Slot(NamedTuple):
    worker: str
    seen: float


class Board:
    def __init__(self, lake: LocalLake, lease_seconds: float, keep_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._lake = lake
        self._keep_seconds = keep_seconds
        self._beats: dict[tuple[str, int], float] = {}
        self._slots: dict[str, Slot] = {}
        self._changed = asyncio.Event()
        self._looked = 0.0
        self.closing: Callable[[], bool] = lambda: False
        """Whether the service ends: then nobody waits any more."""

    def beat(self, job: str, attempt: int) -> None:
        self._beats[job, attempt] = time.monotonic()

    def silence(self, job: str, attempt: int) -> float:
        """Seconds since the attempt was heard of; one that was not yet has from now on."""
        now = time.monotonic()
        return now - self._beats.setdefault((job, attempt), now)

    def seen(self, worker: str, slot: str) -> None:
        now = time.monotonic()
        self._slots = {key: one for key, one in self._slots.items() if now - one.seen < SLOT_SECONDS}
        self._slots[slot] = Slot(worker, now)

    def workers(self, running: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """The slots that were heard of lately, and what they do."""
        jobs = {known["slot"]: (job, known["worker"]) for job, known in running.items()}
        now = time.monotonic()
        idle = {key: one.worker for key, one in self._slots.items() if now - one.seen < SLOT_SECONDS}
        names = idle | {slot: worker for slot, (_, worker) in jobs.items()}
        return [
            {"worker": worker, "slot": slot, "job": jobs.get(slot, (None,))[0]}
            for slot, worker in sorted(names.items())
        ]

    def tell(self) -> None:
        """A job is another now: who waits looks again. Called in the event loop."""
        self._changed.set()
        self._changed = asyncio.Event()
        self._looked = 0.0

    async def change(self, seconds: float) -> None:
        """Until something may have changed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), min(LOOK_SECONDS, max(0.01, seconds)))

    def worth_a_look(self) -> bool:
        """Whether a job may wait for a worker; of many that ask at the same time, one looks."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS * 0.8:
            return False
        with self._lake.session() as session:
            waiting = Ledger(session).waiting
        if not waiting:
            self._looked = now
        return waiting

    async def run(self) -> None:
        """A task of the event loop: gives away what nobody is heard of any more."""
        cleaned = -CLEAN_SECONDS
        while True:
            await asyncio.sleep(min(2.0, self.lease_seconds / 4))
            try:
                if await run_in_threadpool(self.reap):
                    self.tell()
                if time.monotonic() - cleaned > CLEAN_SECONDS:
                    cleaned = time.monotonic()
                    await run_in_threadpool(self.clean)
            except Exception as error:
                # the disk may be full now: later it is not
                log.warning("jobs not looked after: %r", error)

    def reap(self) -> int:
        """How many attempts were given up."""
        with self._lake.session() as session:
            ledger, done = Ledger(session), 0
            running = ledger.running()
            self._beats = {
                (job, attempt): beat
                for (job, attempt), beat in self._beats.items()
                if running.get(job, {}).get("attempt") == attempt
            }
            for job, known in running.items():
                if self.silence(job, known["attempt"]) > self.lease_seconds:
                    done += self._give_up(session, job, known)
            return done

    def _give_up(self, session: LocalLake, job: str, known: dict[str, Any]) -> int:
        message = f"worker {known['worker']} not heard of for {self.lease_seconds:g} s"
        try:
            state = commit(session, lambda: Ledger(session).give_back(job, known["attempt"], message))
        except (LateError, MissingError):
            return 0
        log.warning("job %s: %s; it is %s", job, message, state)
        return 1

    def clean(self) -> None:
        """Forget what ended long ago."""
        before = form.now() - round(1000 * self._keep_seconds)
        with self._lake.session() as session:
            ledger = Ledger(session)
            for job in list(ledger.ids()):
                ended = ledger[job]["ended"]
                if ended is not None and ended < before:
                    commit(session, lambda job=job: ledger.delete(job))  # type: ignore[misc]
            for part in ledger.forgotten_parts(form.now() - PART_MILLISECONDS):
                commit(session, lambda part=part: ledger.delete_part(part))  # type: ignore[misc]
