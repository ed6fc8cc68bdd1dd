"""Facts on their way to the controller: spool.db.

A fact is written once, sent at least once, and deleted when the controller said that it has it (accepted, known).
One that it will not take (conflict, refused) is set aside, so it never holds up the rest. Also the counters that
usage facts are made of are here: a window's facts and the counter's new position are one transaction.
"""

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from clachan.contract.facts import BATCH, Batch, Content, RawFact, UsageFact, Verdict, fact_id, usage_id

ASIDE = 1000
"""How many facts set aside are kept for the operator to look at."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (spool TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS aside (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL, at TEXT NOT NULL, content TEXT NOT NULL, verdict TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def timestamp(at: float | None = None) -> str:
    """UTC, ISO 8601 with microseconds; now, or of a Unix time."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Spool:
    """Threads may share it; `filled` is set when there is something to send."""

    def __init__(self, path: Path, node: str) -> None:
        path.touch(mode=0o600)
        self._node = node
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        # a fact that was written must survive a power cut: nothing would make it again
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(SCHEMA)
        self._spool = self._identity()
        self.filled = threading.Event()
        self.filled.set()

    def _identity(self) -> str:
        row = self._database.execute("SELECT spool FROM identity").fetchone()
        if row is None:
            row = (uuid.uuid4().hex,)
            self._database.execute("INSERT INTO identity VALUES (?)", row)
        return str(row[0])

    @property
    def epoch(self) -> str:
        """Of the counters kept here: they begin again when the spool does."""
        return self._spool

    def add(self, *contents: Content) -> None:
        """Write facts, in their order, in one transaction."""
        self.add_with_counters(contents, {})

    def add_with_counters(self, contents: Iterable[Content], counters: Mapping[str, object]) -> None:
        """Write facts and counters in one transaction: both or neither."""
        at = timestamp()
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for content in contents:
                    self._insert(content, at)
                self._database.executemany(
                    "INSERT OR REPLACE INTO counters VALUES (?, ?)",
                    [(name, json.dumps(value)) for name, value in counters.items()],
                )
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
        self.filled.set()

    def _insert(self, content: Content, at: str) -> None:
        last = self._database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'facts'").fetchone()
        sequence = (last[0] if last else 0) + 1
        if isinstance(content, UsageFact):
            identity = usage_id(self._node, content.instance, content.meter, content.window_start, content.epoch)
        else:
            identity = fact_id(self._node, self._spool, sequence)
        self._database.execute(
            "INSERT OR IGNORE INTO facts VALUES (?, ?, ?, ?)", (sequence, identity, at, content.model_dump_json())
        )

    def counters(self) -> dict[str, object]:
        with self._lock:
            rows = self._database.execute("SELECT name, value FROM counters").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def drop_counters(self, names: Iterable[str]) -> None:
        with self._lock:
            self._database.executemany("DELETE FROM counters WHERE name = ?", [(name,) for name in names])

    def batch(self) -> Batch:
        """The oldest facts, as many as one report takes; empty when all were sent."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, sequence, at, content FROM facts ORDER BY sequence LIMIT ?", (BATCH,)
            ).fetchall()
        facts = [RawFact(id=i, sequence=s, at=at, content=json.loads(content)) for i, s, at, content in rows]
        return Batch(facts=facts)

    def settle(self, verdicts: Iterable[Verdict]) -> list[Verdict]:
        """Delete what the controller has, set aside what it will not take; gives the latter."""
        refused = []
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            for verdict in verdicts:
                if verdict.verdict in {"conflict", "refused"}:
                    refused.append(verdict)
                    self._database.execute(
                        "INSERT OR REPLACE INTO aside SELECT sequence, id, at, content, ? FROM facts WHERE id = ?",
                        (f"{verdict.verdict}: {verdict.message}", verdict.id),
                    )
                self._database.execute("DELETE FROM facts WHERE id = ?", (verdict.id,))
            self._database.execute(
                "DELETE FROM aside WHERE sequence NOT IN (SELECT sequence FROM aside ORDER BY sequence DESC LIMIT ?)",
                (ASIDE,),
            )
            self._database.execute("COMMIT")
        return refused

    def aside(self) -> list[tuple[str, str]]:
        """(content, verdict) of the facts that were set aside, oldest first."""
        with self._lock:
            return self._database.execute("SELECT content, verdict FROM aside ORDER BY sequence").fetchall()

    def waiting(self) -> int:
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM facts").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._database.close()
