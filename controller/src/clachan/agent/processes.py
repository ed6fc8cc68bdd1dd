"""Processes as /proc shows them: identity (pid and start), parents, counters; and ending all of one user.

Reading one small file a process costs some 15 µs, so looking after fifty services is next to nothing.
"""

import os
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clachan.agent.layout import AgentError

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
ROUNDS = 50
ROUND_SECONDS = 0.05


@dataclass(frozen=True)
class Process:
    """One line of /proc/PID/stat; `pid` and `started` together name a process for good."""

    pid: int
    parent: int
    state: str
    started: int
    """Clock ticks after boot."""
    cpu: int
    """Clock ticks, own and of the children that it waited for."""
    resident: int
    """Bytes."""

    @property
    def age(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / TICKS


def process(pid: int) -> Process | None:
    """None when there is none, or it has ended and only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name is in parentheses and may hold anything: fields count from behind its last one
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    cpu = sum(int(field) for field in fields[11:15])
    return Process(pid, int(fields[1]), fields[0], int(fields[19]), cpu, int(fields[21]) * PAGE)


def processes() -> dict[int, Process]:
    found = (process(pid) for pid in _pids())
    return {one.pid: one for one in found if one}


def _pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


def _owner(pid: int, among: Collection[int]) -> int | None:
    """Its user id, when it is one of these.

    None for one that has ended, and for one in a container, where the same number is another user's.
    """
    with suppress(OSError):
        uid = Path(f"/proc/{pid}").stat().st_uid
        if uid in among and Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink():
            return uid
    return None


def trees(every: dict[int, Process], roots: list[int]) -> dict[int, list[Process]]:
    """Root's pid -> the process and all below it, each process under one root only."""
    children: dict[int, list[Process]] = {}
    for one in every.values():
        children.setdefault(one.parent, []).append(one)
    found: dict[int, list[Process]] = {}
    for root in roots:
        tree = [every[root]] if root in every else []
        for one in tree:  # grows while it is walked
            tree.extend(child for child in children.get(one.pid, []) if child.pid not in roots)
        found[root] = tree
    return found


def owned(every: dict[int, Process], uids: Collection[int]) -> dict[int, list[Process]]:
    """User id -> the processes of that user whose parents are not."""
    owners = {pid: uid for pid in every if (uid := _owner(pid, uids)) is not None}
    found: dict[int, list[Process]] = {uid: [] for uid in uids}
    for pid, uid in owners.items():
        if owners.get(every[pid].parent) != uid:
            found[uid].append(every[pid])
    return found


def end_all_of(uid: int) -> None:
    """SIGKILL every process of a slot's user, until there is none; raises AgentError when some will not go."""
    if uid in {0, os.geteuid()}:
        raise AgentError(f"user id {uid}: the agent's own, expected a slot's")
    for _ in range(ROUNDS):
        left = [pid for pid in _pids() if _ends(pid, uid)]
        if not left:
            return
        time.sleep(ROUND_SECONDS)
    raise AgentError(f"processes of user id {uid}: {left} do not end, expected none")


def _ends(pid: int, uid: int) -> bool:
    """Kill the process if it is this user's; the descriptor keeps a reused pid from being hit."""
    try:
        if _owner(pid, {uid}) is None or process(pid) is None:
            return False
        descriptor = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:
        if _owner(pid, {uid}) is None:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except (FileNotFoundError, ProcessLookupError):
        return False
    finally:
        os.close(descriptor)


def end_marked(variable: str, values: Iterable[str]) -> list[int]:
    """End the processes that have this environment variable with such a value, and all below; gives their pids."""
    marks = {f"{variable}={value}".encode() for value in values}
    every = processes() if marks else {}
    roots = [pid for pid in every if pid != os.getpid() and marks & _environment(pid)]
    ended = sorted({one.pid for tree in trees(every, roots).values() for one in tree} | set(roots))
    for pid in ended:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for _ in range(ROUNDS):
        if not any(process(pid) for pid in ended):
            break
        time.sleep(ROUND_SECONDS)
    return ended


def _environment(pid: int) -> set[bytes]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()
