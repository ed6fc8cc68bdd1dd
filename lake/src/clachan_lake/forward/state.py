"""What the forwarder remembers over its own end: SQLite, one row for each path.

`position` is how much of the file the lake has acknowledged. It may lag behind (killed between answer and note): then
a chunk is sent again, and the lake knows its id.
"""

import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clachan_lake.forward.database import open_alone

FORMAT = 1
Status = Literal["open", "done", "refused", "lost"]


@dataclass(frozen=True)
class Shipped:
    """`status`: open; done, all of it with its end; refused, the lake will not have it; lost, removed before."""

    path: str
    identity: str
    generation: int = 1
    position: int = 0
    mtime_ns: int = 0
    status: Status = "open"
    message: str = ""
    changed: float = 0.0
    """When the status changed, seconds since 1970."""


COLUMNS = tuple(Shipped.__dataclass_fields__)


class State:
    """Raises BlockingIOError when another forwarder uses the file."""

    def __init__(self, path: Path) -> None:
        self._db = open_alone(path, "state", FORMAT, _prepare)

    def load(self) -> dict[str, Shipped]:
        rows = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM files")  # noqa: S608 - constants
        shipped = (Shipped(*row) for row in rows)
        # a path may be no valid text: kept as bytes
        return {(path := _path(one.path)): replace(one, path=path) for one in shipped}

    def save(self, one: Shipped) -> None:
        values = [_blob(one.path), *(getattr(one, column) for column in COLUMNS[1:])]
        marks = ", ".join("?" * len(COLUMNS))
        self._db.execute(f"INSERT OR REPLACE INTO files ({', '.join(COLUMNS)}) VALUES ({marks})", values)  # noqa: S608

    def close(self) -> None:
        self._db.close()


def _prepare(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, identity TEXT NOT NULL, generation INTEGER "
        "NOT NULL, position INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, status TEXT NOT NULL, message TEXT "
        "NOT NULL, changed REAL NOT NULL)"
    )


def _blob(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _path(blob: str | bytes) -> str:
    return blob.decode("utf-8", "surrogateescape") if isinstance(blob, bytes) else blob
