"""Records that stand in no file, on disk until the lake has them: SQLite.

A line is kept under a tag. What is due is sealed into a chunk, whose bytes and id never change, so one that is sent
again after a kill is known to the lake. A full spool keeps what is oldest: a line that does not fit is counted as lost.
"""

import hashlib
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clachan_lake.forward.database import open_alone

FORMAT = 1
CHUNK_BYTES = 256 << 10
LINES = 4096
"""At most in one chunk."""
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS lines (number INTEGER PRIMARY KEY AUTOINCREMENT, tag TEXT NOT NULL, at REAL NOT NULL, "
    "data BLOB NOT NULL, chunk INTEGER)",
    "CREATE INDEX IF NOT EXISTS by_tag ON lines (tag, chunk, number)",
    "CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, moment TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value NOT NULL)",
)


@dataclass(frozen=True)
class Chunk:
    """`number` is its first line's."""

    number: int
    tag: str
    id: str
    data: bytes


@dataclass(frozen=True)
class Filling:
    """`oldest`: when the oldest waiting line came, seconds since 1970; `lost` counts lines since the spool is."""

    lines: int
    bytes: int
    oldest: float | None
    lost: int
    lost_at: float | None


class Spool:
    """May be used by several threads. Raises BlockingIOError when another forwarder uses the file."""

    def __init__(self, path: Path, maximum_bytes: int) -> None:
        self._lock = threading.Lock()
        self._maximum = maximum_bytes
        self._missed = 0  # lost, and not yet noted: the disk was full
        self._missed_at = 0.0
        self._db = open_alone(path, "spool", FORMAT, _prepare, threads=True)
        self._identity = str(self._fact("identity"))
        self._bytes = int(self._db.execute("SELECT coalesce(sum(length(data)), 0) FROM lines").fetchone()[0])

    @property
    def full(self) -> bool:
        """Whether it may have no room for what is not there yet."""
        return self._bytes >= self._maximum

    def add(self, tag: str, line: bytes) -> bool:
        """Keep a line (with its newline); False when it is lost. A full disk loses it like a full spool."""
        with self._lock:
            if self._bytes + len(line) <= self._maximum:
                try:
                    self._insert(tag, [line])
                    self._note_missed()
                    return True
                except sqlite3.OperationalError:
                    pass
            self._missed += 1
            self._missed_at = time.time()
            return False

    def add_seen(self, tag: str, records: Iterable[tuple[str, str, bytes]], forget_before: str) -> int:
        """Keep the lines of records that were not seen yet, each given with its id and a text that orders it in time;
        how many. One transaction; with room or not, as whoever has them keeps what is not asked for. What was seen
        before `forget_before` is forgotten. Raises OSError."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                new = []
                for key, moment, line in records:
                    if self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", [key, moment]).rowcount:
                        new.append(line)
                        self._raise_fact("latest", moment)
                self._db.execute("DELETE FROM seen WHERE moment < ?", [forget_before])
                self._insert(tag, new)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._measure()
                raise OSError(f"spool: {error}, expected to write it") from error
            return len(new)

    def latest(self) -> str | None:
        """The last moment of `add_seen`; None before the first."""
        with self._lock:
            found = self._fact("latest")
        return None if found is None else str(found)

    def tags(self) -> list[str]:
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT DISTINCT tag FROM lines ORDER BY tag")]

    def due(self, tag: str, seconds: float) -> Chunk | None:
        """The oldest chunk of a tag, if one was sealed before, or a line has waited so long, or there are many."""
        with self._lock:
            first = self._db.execute("SELECT min(chunk) FROM lines WHERE tag = ?", [tag]).fetchone()[0]
            if first is None:
                first = self._seal(tag, seconds)
            if first is None:
                return None
            rows = self._db.execute("SELECT data FROM lines WHERE tag = ? AND chunk = ? ORDER BY number", [tag, first])
            data = b"".join(row[0] for row in rows)
        digest = hashlib.sha256(data).hexdigest()
        name = hashlib.sha256(f"{self._identity}\0{tag}\0{first}\0{digest}".encode()).hexdigest()
        return Chunk(first, tag, name, data)

    def _seal(self, tag: str, seconds: float) -> int | None:
        rows = self._db.execute(
            "SELECT number, at, length(data) FROM lines WHERE tag = ? ORDER BY number LIMIT ?", [tag, LINES]
        ).fetchall()
        last, size = None, 0
        for number, _, length in rows:
            if last is not None and size + length > CHUNK_BYTES:
                break
            last, size = number, size + length
        much = len(rows) == LINES or (rows and last != rows[-1][0])
        if not rows or not (much or time.time() - rows[0][1] >= seconds):
            return None
        first = int(rows[0][0])
        self._db.execute(
            "UPDATE lines SET chunk = ? WHERE tag = ? AND number BETWEEN ? AND ?", [first, tag, first, last]
        )
        return first

    def done(self, chunk: Chunk) -> None:
        """The lake has it."""
        with self._lock:
            self._db.execute("DELETE FROM lines WHERE tag = ? AND chunk = ?", [chunk.tag, chunk.number])
            self._bytes -= len(chunk.data)

    def filling(self) -> Filling:
        with self._lock:
            lines, oldest = self._db.execute("SELECT count(*), min(at) FROM lines").fetchone()
            lost, lost_at = self._lost()
            return Filling(lines, self._bytes, oldest, lost + self._missed, self._missed_at or lost_at)

    def close(self) -> None:
        with self._lock:
            with suppress(sqlite3.Error):  # a full disk: then that loss is not known later
                self._note_missed()
            self._db.close()

    def _insert(self, tag: str, lines: list[bytes]) -> None:
        now = time.time()
        self._db.executemany("INSERT INTO lines (tag, at, data) VALUES (?, ?, ?)", [(tag, now, line) for line in lines])
        self._bytes += sum(map(len, lines))

    def _measure(self) -> None:
        self._bytes = int(self._db.execute("SELECT coalesce(sum(length(data)), 0) FROM lines").fetchone()[0])

    def _note_missed(self) -> None:
        if self._missed:
            lost = self._lost()[0] + self._missed
            for key, value in (("lost", lost), ("lost_at", self._missed_at)):
                self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", [key, value])
            self._missed, self._missed_at = 0, 0.0

    def _lost(self) -> tuple[int, float | None]:
        """How many lines, and when the last."""
        count, at = self._fact("lost"), self._fact("lost_at")
        return (int(count), float(at)) if count is not None and at is not None else (0, None)

    def _fact(self, key: str) -> int | float | str | None:
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", [key]).fetchone()
        found: int | float | str | None = row[0] if row else None
        return found

    def _raise_fact(self, key: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
            [key, value],
        )


def _prepare(db: sqlite3.Connection) -> None:
    for statement in SCHEMA:
        db.execute(statement)
    db.execute("INSERT OR IGNORE INTO facts VALUES ('identity', ?)", [uuid.uuid4().hex])
