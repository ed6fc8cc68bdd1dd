"""The forwarder's own files: SQLite, each used by one forwarder at a time."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

Prepare = Callable[[sqlite3.Connection], None]


def open_alone(path: Path, what: str, number: int, prepare: Prepare, *, threads: bool = False) -> sqlite3.Connection:
    """The database, of the format `number`, with its tables made by `prepare`. Raises BlockingIOError when another
    forwarder uses it, ValueError for another format, OSError when it cannot be opened."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.1, check_same_thread=not threads)
    try:
        # exclusive for as long as it is open: two forwarders on one file would not know of each other
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        known = connection.execute("PRAGMA user_version").fetchone()[0]
        if known not in {0, number}:
            raise ValueError(f"{what} {path}, format: {known}, expected {number}")
        prepare(connection)
        connection.execute(f"PRAGMA user_version = {number}")
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" in str(error):
            raise BlockingIOError(f"{what} {path}: in use, expected no other forwarder on it") from error
        raise OSError(f"{what} {path}: {error}, expected to open it") from error
    except BaseException:
        connection.close()
        raise
    return connection
