"""The promises of settled instances, each on its own clock.

A new watch asks often until all promises pass; then each every `every_seconds`; a failing one every second. Quick
checks are done at once by the loop's thread, those that may have to wait by a few threads.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from clachan.agent.processes import Process, process
from clachan.agent.promises import Place, check, is_quick
from clachan.agent.redaction import Redactor
from clachan.agent.supervisor import Key, Supervisor, SupervisorError
from clachan.contract.facts import PromiseResult
from clachan.contract.slot import ChildrenPromise, ProcessPromise, Promise

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
SETTLED_AGE = 0.25
"""Seconds that a process must live to count as running: most that cannot run end sooner."""
COALESCED = 0.1
"""Checks due within so many seconds are done together, so an idle agent wakes seldom."""
ASKED_SECONDS = 0.15

Submit = Callable[[Callable[[], None]], object]


class ServiceProcesses:
    """The process of each service; asks the supervisor only when the one it knows has ended. Threads may share it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._lock = threading.Lock()
        self._known: dict[Key, Process] = {}
        self._asked = float("-inf")

    def find(self, key: Key) -> Process | None:
        """Raises SupervisorError when the supervisor must be asked and does not answer."""
        with self._lock:
            return self._living(key) or (self._living(key) if self._ask() else None)

    def _living(self, key: Key) -> Process | None:
        known = self._known.get(key)
        found = process(known.pid) if known else None
        return found if found and known and found.started == known.started else None

    def _ask(self) -> bool:
        now = time.monotonic()
        if now - self._asked < ASKED_SECONDS:
            return False
        self._asked = now
        found = {key: process(pid) for key, pid in self._supervisor.pids().items()}
        self._known = {key: one for key, one in found.items() if one}
        return True


@dataclass
class Watched:
    """An instance under watch."""

    instance: str
    slot: str
    place: Place
    promises: dict[str, Promise]
    redactor: Redactor
    began: float
    generation: int
    children: Mapping[str, str]
    """Child -> why it is not as it is wanted; empty when all are."""
    told: float
    """When the results were told last."""
    settled: bool = False
    """Whether all have passed once since this watch began."""
    results: dict[str, PromiseResult] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Promise -> pid and start of the process at the last check."""

    @property
    def failing(self) -> dict[str, str]:
        """Name -> message of the promises that do not pass; one that was not checked yet does not."""
        unchecked = PromiseResult(ok=False, message="not checked yet")
        results = {name: self.results.get(name, unchecked) for name in self.promises}
        return {name: result.message for name, result in results.items() if not result.ok}

    @property
    def waits_for_children(self) -> bool:
        """Whether only children keep it from being converged: they take the time that they take."""
        return all(isinstance(self.promises[name], ChildrenPromise) for name in self.failing)


class Watch:
    """All watched instances. Only the loop's thread uses it."""

    def __init__(self, services: ServiceProcesses, submit: Submit, deliver: Callable[..., None]) -> None:
        """`submit` runs a function in another thread; `deliver(instance, generation, promise, result)` brings its
        result to the loop, which calls `deliver` of this class."""
        self._services = services
        self._submit = submit
        self._hand_over = deliver
        self._queue: list[tuple[float, int, str, int, str]] = []
        self._ticket = itertools.count()
        self.watched: dict[str, Watched] = {}

    def begin(
        self,
        instance: str,
        slot: str,
        place: Place,
        promises: dict[str, Promise],
        redactor: Redactor,
        *,
        children: Mapping[str, str],
    ) -> Watched:
        """Watch an instance from now on, in place of what was watched of it before."""
        now = time.monotonic()
        one = Watched(instance, slot, place, promises, redactor, now, next(self._ticket), children, told=now)
        self.watched[instance] = one
        for name in promises:
            self._schedule(one, name, now)
        return one

    def end(self, instance: str) -> None:
        self.watched.pop(instance, None)

    def next_due(self) -> float | None:
        """On the monotonic clock."""
        return self._queue[0][0] if self._queue else None

    def run_due(self) -> set[str]:
        """Do or start the checks that are due; gives the instances that have new results."""
        changed = set()
        until = time.monotonic() + COALESCED
        while self._queue and self._queue[0][0] <= until:
            _, _, instance, generation, name = heapq.heappop(self._queue)
            one = self.watched.get(instance)
            if one is None or one.generation != generation:
                continue
            promise = one.promises[name]
            if is_quick(promise):
                self._record(one, name, self._check_here(one, name, promise))
                changed.add(instance)
            else:
                self._submit(partial(self._check_there, one, name, promise))
        return changed

    def _check_there(self, one: Watched, name: str, promise: Promise) -> None:
        self._hand_over(one.instance, one.generation, name, check(promise, one.place))

    def deliver(self, instance: str, generation: int, name: str, result: PromiseResult) -> bool:
        """A result from another thread; False when the watch that asked for it is over."""
        one = self.watched.get(instance)
        if one is None or one.generation != generation:
            return False
        self._record(one, name, result)
        return True

    def _record(self, one: Watched, name: str, result: PromiseResult) -> None:
        one.results[name] = PromiseResult(ok=result.ok, message=one.redactor.text(result.message))
        one.tries[name] = one.tries.get(name, 0) + 1
        if not one.failing:
            one.settled = True
        self._schedule(one, name, time.monotonic() + self._pause(one, name, result.ok))

    def _pause(self, one: Watched, name: str, ok: bool) -> float:
        every = one.promises[name].every_seconds
        if ok:
            return every
        if one.settled:
            return min(LONGEST_PAUSE, every)
        return min(LONGEST_PAUSE, every, FIRST_PAUSE * 1.5 ** min(one.tries[name], 20))

    def _schedule(self, one: Watched, name: str, at: float) -> None:
        heapq.heappush(self._queue, (at, next(self._ticket), one.instance, one.generation, name))

    def _check_here(self, one: Watched, name: str, promise: Promise) -> PromiseResult:
        if isinstance(promise, ProcessPromise):
            return self._process(one, name, promise.service)
        if isinstance(promise, ChildrenPromise):
            return _children(one.children)
        return check(promise, one.place)

    def _process(self, one: Watched, name: str, service: str) -> PromiseResult:
        try:
            found = self._services.find((one.slot, service))
        except SupervisorError as error:
            return PromiseResult(ok=False, message=str(error))
        if found is None:
            return PromiseResult(ok=False, message=f"service {service}: no process, expected one")
        now, before = (found.pid, found.started), one.seen.get(name)
        one.seen[name] = now
        if before not in {None, now}:
            return PromiseResult(ok=False, message=f"service {service}: ended and was started again")
        if found.age < SETTLED_AGE:
            return PromiseResult(ok=False, message=f"service {service}: has just started")
        return PromiseResult(ok=True, message=f"service {service} runs")


def _children(lacking: Mapping[str, str]) -> PromiseResult:
    named = ", ".join(f"{name} {state}" for name, state in sorted(lacking.items()))
    return PromiseResult(ok=not lacking, message=f"children: {named}" if lacking else "all children are as wanted")
