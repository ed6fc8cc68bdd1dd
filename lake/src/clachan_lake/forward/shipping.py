"""The forwarder's loop: look, ship what is due, say how it goes.

A file is shipped from its remembered position. Where memory and lake may disagree (a file that changed after its end,
another file under the same path, a chunk that the lake refuses), the digest of what the lake has is compared with the
file: equal, then the file goes on from there; otherwise it becomes a new stream, `path@2`.
"""

import hashlib
import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace

from clachan_lake.forward.config import Config
from clachan_lake.forward.connection import UnreachableError
from clachan_lake.forward.files import Seen, open_file, prefix_digest, scan, tag_of
from clachan_lake.forward.records import Records
from clachan_lake.forward.sender import HiddenError, RefusedError, Sender
from clachan_lake.forward.state import Shipped, State
from clachan_lake.forward.status import Status, write

log = logging.getLogger(__name__)
CHUNKS_A_TURN = 16
GENERATIONS = 1000
PAUSE_SECONDS = (0.5, 10.0)
REFUSED_SECONDS = 60.0
STATUS_SECONDS = 2.0
OF_ONE_POLICY = frozenset({403, 404})
"""What the lake answers when only the policy is not there, or not for this token: another one may be."""


class Forwarder:
    """`wait(seconds)` sleeps and says whether to go on."""

    def __init__(
        self,
        config: Config,
        state: State,
        sender: Sender,
        wait: Callable[[float], bool],
        records: Records | None = None,
    ) -> None:
        self._config = config
        self._directory = str(config.directory) if config.directory else ""
        self._records = records
        self._state = state
        self._sender = sender
        self._wait = wait
        self._shipped = state.load()
        self._unchanged: dict[str, tuple[tuple[int, int], float]] = {}
        self._waiting: dict[str, float] = {}
        self._later: dict[str, float] = {}
        self._status = Status(pid=os.getpid())
        self._written = 0.0

    def run(self) -> None:
        """Until `wait` says to stop."""
        backoff = 0.0
        going = True
        self._tell(force=True)
        while going:
            try:
                more = self.turn()
                self._status.failing_since = None
                backoff, pause = 0.0, 0.0 if more else self._config.scan_seconds
            except (UnreachableError, sqlite3.Error) as error:
                # what cannot be noted (a full disk) counts as not sent: the lake knows it when it comes again
                self._complain(str(error))
                self._status.failing_since = self._status.failing_since or time.time()
                low, high = PAUSE_SECONDS
                backoff = min(high, max(low, backoff * 2)) * random.uniform(0.8, 1.2)  # noqa: S311
                # as long as the lake said, and not all who wait at the same moment
                said = error.retry_after if isinstance(error, UnreachableError) else 0.0
                pause = max(backoff, said * random.uniform(1.0, 1.2))  # noqa: S311
            self._tell()
            going = self._wait(pause)
        self._tell(force=True)

    def turn(self) -> bool:
        """Look once and ship what is due; True when something was left for the next turn at once."""
        try:
            more = bool(self._directory) and self._ship_files()
        except UnreachableError as error:
            if self._records and error.status in OF_ONE_POLICY:
                self._records.ship()
            raise
        return bool(self._records and self._records.ship()) or more

    def _ship_files(self) -> bool:
        found, faults = scan(self._directory)
        for fault in faults:
            self._complain(fault)
        self._forget({seen.path for seen in found})
        more = False
        for seen in found:
            if self._later.get(seen.path, 0) <= time.monotonic():
                more |= self._ship(seen)
                self._tell()
        return more

    def _ship(self, seen: Seen) -> bool:
        one = self._shipped.get(seen.path)
        stable = self._is_stable(seen)
        if one and one.status == "done" and (one.identity, one.position, one.mtime_ns) == _marks(seen):
            self._waiting.pop(seen.path, None)
            return False
        since = self._waiting.setdefault(seen.path, time.monotonic())
        try:
            descriptor = open_file(self._directory, seen.path)
            try:
                if one is None or one.identity != seen.identity or seen.size < one.position or one.status == "done":
                    one = self._reconcile(seen, descriptor)
                return self._send_due(one, descriptor, stable, time.monotonic() - since)
            finally:
                os.close(descriptor)
        except OSError as error:
            if isinstance(error, UnreachableError):
                raise
            self._refused(seen, f"{error.strerror}, expected to read it")
        except RefusedError as error:
            self._refused(seen, str(error))
        return False

    def _send_due(self, one: Shipped, descriptor: int, stable: bool, waited: float) -> bool:
        """Send what is due of a file; True when more is due at once."""
        for _ in range(CHUNKS_A_TURN):
            left = os.fstat(descriptor).st_size - one.position
            whole = left >= self._config.chunk_bytes
            if not (whole or stable or (left > 0 and waited >= self._config.flush_seconds)):
                return False
            one = self._send(one, descriptor, stable)
            if one.status == "done":
                self._waiting.pop(one.path, None)
                return False
            if one.position >= os.fstat(descriptor).st_size and not stable:
                self._waiting.pop(one.path, None)
                return False
        return True

    def _send(self, one: Shipped, descriptor: int, stable: bool) -> Shipped:
        # the time of change before the content: a change in between must be seen at the next look
        stat = os.fstat(descriptor)
        data = os.pread(descriptor, self._config.chunk_bytes, one.position)
        final = stable and one.position + len(data) >= stat.st_size
        tag = tag_of(one.path, one.generation)
        try:
            self._sender.send(tag, data, chunk_id(tag, one.position, data), one.position, final)
        except RefusedError as error:
            if error.status != 409:
                raise
            # the lake has another position than was remembered: from there, once
            before = one
            one = self._reconcile(_seen(one, stat), descriptor)
            if (one.generation, one.position) == (before.generation, before.position):
                raise
            return one
        self._status.sent_chunks += 1
        self._status.sent_bytes += len(data)
        if one.path in self._waiting:
            self._waiting[one.path] = time.monotonic()
        moved = replace(one, position=one.position + len(data), mtime_ns=stat.st_mtime_ns, status="open", message="")
        return self._remember(replace(moved, status="done", changed=time.time()) if final else moved)

    def _reconcile(self, seen: Seen, descriptor: int) -> Shipped:
        """Find which stream is this file's, and how far the lake has it."""
        one = self._shipped.get(seen.path) or Shipped(seen.path, seen.identity)
        for generation in range(one.generation, GENERATIONS):
            try:
                known = self._sender.known(tag_of(seen.path, generation), seen.size)
            except HiddenError:
                return self._remember(_believed(one, seen))
            position = known.size if known else 0
            if known is None or (known.size <= seen.size and prefix_digest(descriptor, known.size) == known.sha256):
                return self._remember(
                    Shipped(seen.path, seen.identity, generation, position, seen.mtime_ns, changed=time.time())
                )
        raise RefusedError(409, f"file {seen.path}: {GENERATIONS} other contents before, expected fewer")

    def _is_stable(self, seen: Seen) -> bool:
        """Whether the file did not change for long, by its own time or by what was seen of it."""
        now = time.monotonic()
        mark, since = self._unchanged.get(seen.path, ((-1, -1), now))
        if mark != (seen.size, seen.mtime_ns):
            self._unchanged[seen.path] = ((seen.size, seen.mtime_ns), now)
            since = now
        age = time.time() - seen.mtime_ns / 1e9
        return max(now - since, age) >= self._config.stable_seconds

    def _forget(self, there: set[str]) -> None:
        """Files that are gone: what was not shipped of them is lost, and said."""
        for path in [path for path in self._unchanged if path not in there]:
            del self._unchanged[path]
            self._waiting.pop(path, None)
            self._later.pop(path, None)
        for path, one in self._shipped.items():
            if one.status in {"open", "refused"} and path not in there:
                message = f"file {path!r}: removed after {one.position} bytes, before its end was shipped"
                self._complain(message)
                self._remember(replace(one, status="lost", message=message, changed=time.time()))

    def _refused(self, seen: Seen, message: str) -> None:
        text = f"file {seen.path!r}: {message}"
        self._complain(text)
        self._later[seen.path] = time.monotonic() + REFUSED_SECONDS
        one = self._shipped.get(seen.path) or Shipped(seen.path, seen.identity)
        self._remember(replace(one, status="refused", message=text, changed=time.time()))

    def _remember(self, one: Shipped) -> Shipped:
        self._state.save(one)
        self._shipped[one.path] = one
        return one

    def _complain(self, message: str) -> None:
        log.warning("%s", message)
        self._status.last_error = message
        self._status.last_error_at = time.time()

    def _tell(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._written < STATUS_SECONDS:
            return
        self._written = now
        self._status.count(self._shipped.values())
        self._status.lag_seconds = round(max((now - since for since in self._waiting.values()), default=0.0), 1)
        self._status.dead_letters = self._sender.dead_letters
        if self._records:
            self._status.records = self._records.describe()
        try:
            write(self._config.status, self._status)
        except OSError as error:
            # then the file grows old, which is a fault that is told
            log.warning("status %s: %s, expected to write it", self._config.status, error.strerror)


def _believed(one: Shipped, seen: Seen) -> Shipped:
    """Where it is by what is remembered, when the lake's side cannot be seen: another file is another stream."""
    if one.identity != seen.identity or seen.size < one.position:
        generation = one.generation + (one.position > 0)
        return Shipped(seen.path, seen.identity, generation, 0, seen.mtime_ns, changed=time.time())
    return replace(one, mtime_ns=seen.mtime_ns, status="open", changed=time.time())


def chunk_id(tag: str, offset: int, data: bytes) -> str:
    """The same for the same bytes at the same place of the same stream."""
    digest = hashlib.sha256(data).hexdigest()
    return hashlib.sha256(f"{tag}\0{offset}\0{digest}".encode()).hexdigest()


def _marks(seen: Seen) -> tuple[str, int, int]:
    return seen.identity, seen.size, seen.mtime_ns


def _seen(one: Shipped, stat: os.stat_result) -> Seen:
    return Seen(one.path, one.identity, stat.st_size, stat.st_mtime_ns)
