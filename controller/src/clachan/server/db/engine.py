"""The database: SQLite (WAL, synced commits, foreign keys) or PostgreSQL by URL.

Writing transactions run one after the other, so what one has read stays true until it commits: `BEGIN IMMEDIATE` on
SQLite, behind a lock of the process so that threads queue instead of spinning on a busy file; an advisory lock on
PostgreSQL.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session

WRITER_LOCK = 0x636C6163  # any number that is only ours: "clac"


def database_url(home: Path, configured: str | None) -> str:
    return configured or f"sqlite:///{home / 'controller' / 'clachan.db'}"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class Database:
    """Sessions on one database; `read` and `write` are the only ways in. Errors never show parameters: secrets."""

    def __init__(self, url: str) -> None:
        sqlite = url.startswith("sqlite")
        options: dict[str, Any] = {"connect_args": {"timeout": 30}} if sqlite else {"pool_pre_ping": True}
        self.engine: Engine = create_engine(
            url, pool_size=16, max_overflow=32, json_serializer=_json, hide_parameters=True, **options
        )
        self.sqlite = sqlite
        self._lock = threading.Lock() if sqlite else nullcontext()
        self._writer = self.engine.execution_options(clachan_writer=True)
        if sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
        event.listen(self.engine, "begin", self._begin)

    def _begin(self, connection: Connection) -> None:
        writer = connection.get_execution_options().get("clachan_writer", False)
        if self.sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")
        elif writer:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent snapshot; nothing is written."""
        options = {} if self.sqlite else {"isolation_level": "REPEATABLE READ"}
        with Session(self.engine.execution_options(**options), expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """The only writing transaction of its moment: committed at the end, or undone when anything is raised."""
        with self._lock, Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # None: the driver starts no transaction by itself, `_begin` does
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-16000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
