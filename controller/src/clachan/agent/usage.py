"""What instances used: integer quantities in windows aligned to UTC, as facts.

    cpu_milliseconds    of the services' process trees, and of all else that runs as the slot's user (a virtual machine)
    memory_mib_seconds  resident memory of the same, sampled
    disk_mib_seconds    blocks of the slot's directory and of what the instance keeps beside it (data volumes, their
                        backups), measured once a window
    instance_seconds    how long the instance had its slot while started

A window's facts and the counters' new positions are written in one transaction (`spool`): killed before it, the agent
counts on from the old positions; after it, from the new ones. After a pause one longer window covers it.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clachan.agent.layout import AgentError
from clachan.agent.processes import TICKS, Process, owned, processes, trees
from clachan.agent.slots import used_bytes
from clachan.agent.spool import Spool, timestamp
from clachan.contract.facts import UsageFact

MIB = 1024 * 1024
COUNTER = "usage:"
SAMPLES = 12
"""In a window."""
LONGEST_WINDOW = 30 * 86400
"""Seconds; the controller takes no longer one."""


@dataclass(frozen=True)
class Metered:
    """A started instance and its services' processes."""

    instance: str
    directory: Path
    services: tuple[tuple[str, str], ...]
    """Keys of the supervisor."""
    uid: int | None = None
    """Of the slot's own user; None where it has none."""
    kept: tuple[Path, ...] = ()
    """Directories of its own that outlive the slot."""


@dataclass
class _Account:
    """What was counted of one instance in the open window."""

    directories: tuple[Path, ...]
    since: int
    """Unix time: up to there all was reported."""
    reserved_from: float
    roots: dict[str, int]
    """Root process (pid.start) -> ticks of its tree when last looked at."""
    ticks: int = 0
    memory: float = 0.0
    reserved: float = 0.0
    left: bool = False
    """The instance was stopped or is gone: report what was counted, then forget it."""
    spare: dict[str, float] = field(default_factory=dict)
    """What rounding left over of the window before."""


class Meter:
    """Samples and reports; one thread at a time calls it."""

    def __init__(self, spool: Spool, window: int, find: Callable[[tuple[str, str]], Process | None]) -> None:
        self._spool = spool
        self._window = window
        self._find = find
        self._accounts: dict[str, _Account] = {}
        self._kept = {
            name.removeprefix(COUNTER): value
            for name, value in spool.counters().items()
            if name.startswith(COUNTER) and isinstance(value, dict)
        }
        self._sampled: float | None = None
        self._boundary = self._next_boundary(time.time())

    def _next_boundary(self, now: float) -> int:
        return (int(now) // self._window + 1) * self._window

    def step(self, metered: Iterable[Metered]) -> None:
        """Take a sample, and report when a window is over."""
        now = time.time()
        if now < self._boundary:
            self._sample(list(metered), now)
            return
        # after a pause (a machine asleep) one longer window; no second is counted twice or beyond its window
        until = int(now) // self._window * self._window
        self._sample(list(metered), until)
        self._report(until)
        self._boundary = self._next_boundary(now)

    def _sample(self, metered: list[Metered], now: float) -> None:
        passed = min(max(now - self._sampled, 0.0), self._window) if self._sampled is not None else 0.0
        self._sampled = now
        roots = {one.instance: self._roots(one) for one in metered}
        uids = {one.uid for one in metered if one.uid is not None}
        every = processes() if uids or any(roots.values()) else {}
        others = owned(every, uids)
        for one in metered:
            if one.uid is not None:
                known = {root.pid for root in roots[one.instance]}
                roots[one.instance] += [root for root in others[one.uid] if root.pid not in known]
        found = trees(every, [root.pid for some in roots.values() for root in some])
        for one in metered:
            account = self._account(one, now)
            account.reserved += max(0.0, now - account.reserved_from)
            account.reserved_from = now
            self._count(account, {root: found.get(root.pid, []) for root in roots[one.instance]}, passed)
        present = {one.instance for one in metered}
        for identity, account in self._accounts.items():
            account.left = identity not in present

    def _roots(self, one: Metered) -> list[Process]:
        try:
            return [root for key in one.services if (root := self._find(key))]
        except AgentError:
            return []  # the supervisor does not answer; the promises say so

    def _account(self, one: Metered, now: float) -> _Account:
        account = self._accounts.get(one.instance)
        if account is None:
            kept: Any = self._kept.pop(one.instance, None) or {}
            since = int(kept.get("until", int(now) // self._window * self._window))
            reserved_from = min(now, float(kept.get("until", now)))
            account = _Account((one.directory, *one.kept), since, reserved_from, dict(kept.get("roots", {})))
            self._accounts[one.instance] = account
        elif account.left:
            account.reserved_from = now
        return account

    def _count(self, account: _Account, found: dict[Process, list[Process]], passed: float) -> None:
        roots = {f"{root.pid}.{root.started}": sum(one.cpu for one in tree) for root, tree in found.items()}
        account.ticks += sum(max(0, ticks - account.roots.get(root, 0)) for root, ticks in roots.items())
        account.roots = {root: max(ticks, account.roots.get(root, 0)) for root, ticks in roots.items()}
        account.memory += sum(one.resident for tree in found.values() for one in tree) / MIB * passed

    def _report(self, until: int) -> None:
        """Write what was counted up to `until` as facts, and begin anew there."""
        facts: list[UsageFact] = []
        counters: dict[str, object] = {}
        for identity, account in self._accounts.items():
            facts += self._facts(identity, account, until)
            counters[COUNTER + identity] = {"until": until, "roots": account.roots}
        gone = [identity for identity, account in self._accounts.items() if account.left]
        self._spool.add_with_counters(facts, counters)
        for account in self._accounts.values():
            account.since, account.ticks, account.memory, account.reserved = until, 0, 0.0, 0.0
        # what is counted from here on begins in the new window
        for identity in gone:
            del self._accounts[identity]
        self._spool.drop_counters([COUNTER + identity for identity in gone])

    def _facts(self, identity: str, account: _Account, until: int) -> list[UsageFact]:
        since = max(account.since, until - LONGEST_WINDOW)
        if until <= since:
            return []
        disk = sum(map(used_bytes, account.directories)) / MIB * min(account.reserved, until - since)
        exact = {
            "cpu_milliseconds": account.ticks * 1000 / TICKS,
            "memory_mib_seconds": account.memory,
            "disk_mib_seconds": disk,
            "instance_seconds": account.reserved,
        }
        return [
            UsageFact(
                instance=identity,
                meter=meter,
                window_start=timestamp(since),
                window_end=timestamp(until),
                epoch=self._spool.epoch,
                quantity=quantity,
            )
            for meter, amount in exact.items()
            if (quantity := self._whole(account, meter, amount)) > 0
        ]

    @staticmethod
    def _whole(account: _Account, meter: str, amount: float) -> int:
        """The integer part; the rest is counted in the next window, so nothing is lost by rounding."""
        total = amount + account.spare.get(meter, 0.0)
        account.spare[meter] = total - int(total)
        return int(total)


def meter_until(stop: threading.Event, meter: Meter, window: int, metered: Callable[[], Iterable[Metered]]) -> None:
    """The usage thread: samples some times a window."""
    while not stop.wait(max(0.2, window / SAMPLES)):
        meter.step(metered())
