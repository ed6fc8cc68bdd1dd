"""A lake in a folder, opened alone or through its server's socket."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy.typing as npt
import ZODB
from transaction import TransactionManager

from clachan_lake.arrays.array import LocalArray, new_record
from clachan_lake.errors import LakeReadOnlyError, MissingError, TakenError, TransactionError
from clachan_lake.format import CHUNK_BYTES, StreamRecord
from clachan_lake.interface import Arrays, Lake, Streams
from clachan_lake.names import check_name
from clachan_lake.streams.stream import LocalStream


class LocalLake(Lake):
    """`close_database` is False for a session: the lake that it came from closes the database."""

    def __init__(self, db: ZODB.DB, *, read_only: bool = False, close_database: bool = True) -> None:
        self._db = db
        self._read_only = read_only
        self._close_database = close_database
        self._manager = TransactionManager()
        self._connection = db.open(self._manager)
        self._active = False
        self._closed = False
        self.streams: LocalStreams = LocalStreams(self)
        self.arrays: LocalArrays = LocalArrays(self)

    @contextmanager
    def transaction(self) -> Iterator[Self]:
        """Commits when the block ends; raises TransactionError inside another, and what the commit raises: ZODB's
        ConflictError when another writer was faster (do it again), OSError when the disk is full."""
        if self._read_only:
            raise LakeReadOnlyError("lake: opened for reading, expected open_lake(..., read_only=False)")
        if self._active:
            raise TransactionError("transaction: one is open, expected to be the only one")
        self.refresh()
        self._active = True
        try:
            yield self
            self._manager.commit()
        finally:
            self._active = False
            self.refresh()

    def session(self) -> Self:
        return type(self)(self._db, read_only=self._read_only, close_database=False)

    def refresh(self) -> None:
        if self._active:
            raise TransactionError("refresh: a transaction is open, expected none")
        self._manager.begin()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._manager.abort()
        self._connection.close()
        if self._close_database:
            self._db.close()

    def root(self) -> Any:
        return self._connection.root()

    def adopt(self, record: Any) -> None:
        """Give a new record its connection, so that its blobs are made beside the lake's."""
        self._connection.add(record)

    def writing(self, what: str) -> None:
        """Guards every write; raises TransactionError."""
        if not self._active:
            raise TransactionError(f"{what}: outside a transaction, expected inside `with lake.transaction():`")


class LocalArrays(Arrays):
    def __init__(self, lake: LocalLake) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> LocalArray:
        return LocalArray(_find(self._lake.root()["arrays"], "array", name), self._lake.writing)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lake.root()["arrays"].keys())

    def __len__(self) -> int:
        return len(self._lake.root()["arrays"])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._lake.root()["arrays"]

    def create(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike,
        attrs: Mapping[str, Any] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> LocalArray:
        self._lake.writing(f"array {name}: create")
        _check_free(self._lake.root()["arrays"], "array", name)
        record = new_record(name, shape, dtype, attrs or {}, chunk_bytes)
        self._lake.root()["arrays"][name] = record
        self._lake.adopt(record)
        return self[name]

    def __delitem__(self, name: str) -> None:
        self._lake.writing(f"array {name}: delete")
        _find(self._lake.root()["arrays"], "array", name)
        del self._lake.root()["arrays"][name]


class LocalStreams(Streams):
    def __init__(self, lake: LocalLake) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> LocalStream:
        root = self._lake.root()
        return LocalStream(_find(root["streams"], "stream", name), root["pending"], self._lake.writing)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lake.root()["streams"].keys())

    def __len__(self) -> int:
        return len(self._lake.root()["streams"])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._lake.root()["streams"]

    def find(self, name: str) -> LocalStream | None:
        """The stream, or None."""
        root = self._lake.root()
        record = root["streams"].get(name)
        return None if record is None else LocalStream(record, root["pending"], self._lake.writing)

    def create(self, name: str, policy: str = "raw", transformation: str | None = None) -> LocalStream:
        self._lake.writing(f"stream {name}: create")
        streams = self._lake.root()["streams"]
        _check_free(streams, "stream", name)
        record = StreamRecord(name, policy, transformation, time.time_ns() // 10**6)
        streams[name] = record
        self._lake.adopt(record)
        return self[name]


def _find(records: Any, kind: str, name: str) -> Any:
    record = records.get(name) if isinstance(name, str) else None
    if record is None:
        raise MissingError(f"{kind} {name!r}: none of this name")
    return record


def _check_free(records: Any, kind: str, name: str) -> None:
    if check_name(kind, name) in records:
        raise TakenError(f"{kind} {name!r}: exists, expected a new name")
