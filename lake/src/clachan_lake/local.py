"""A lake in a folder, opened alone or through its server's socket."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self
from weakref import finalize

import numpy.typing as npt
import ZODB
from transaction import TransactionManager
from ZODB.POSException import ConflictError, POSKeyError
from ZODB.utils import p64, u64

from clachan_lake import following
from clachan_lake.access.token import LocalTokens
from clachan_lake.arrays import folding, merging
from clachan_lake.arrays.array import LocalArray, new_record
from clachan_lake.arrays.flushing import flush
from clachan_lake.arrays.opened import Changes, OpenArray
from clachan_lake.attributes import json_text
from clachan_lake.database import blob_folder
from clachan_lake.documents import LocalDocuments
from clachan_lake.errors import LakeReadOnlyError, MissingError, TakenError, TransactionError
from clachan_lake.format import ArrayRecord, StreamRecord
from clachan_lake.interface import Arrays, Lake, Revision, Streams
from clachan_lake.keeping.leases import Lease, before, catch_up, place
from clachan_lake.keeping.limits import check_not_packed
from clachan_lake.moments import as_tid, as_time
from clachan_lake.names import check_name
from clachan_lake.policies.dead import LocalDead
from clachan_lake.policies.declaring import LocalPolicies
from clachan_lake.storage.address import address_of
from clachan_lake.streams.stream import LocalStream
from clachan_lake.transform.declaring import LocalTransformations

log = logging.getLogger(__name__)


class LocalLake(Lake):
    """`close_database` is False for a session: the lake that it came from closes the database. `at` is the commit whose
    state is read, for a lake of the past."""

    def __init__(
        self, db: ZODB.DB, *, read_only: bool = False, close_database: bool = True, at: bytes | None = None
    ) -> None:
        self._db = db
        self._read_only = read_only or at is not None
        self._close_database = close_database
        self._past = at
        self._manager = TransactionManager()
        folder = blob_folder(db.storage)
        # held before the snapshot is taken, and no newer: so no pack comes between
        self._lease = Lease(place(db.storage, folder), before(db) if at is None else at)
        catch_up(db.storage)
        self._connection = db.open(self._manager) if at is None else db.open(self._manager, at=at)
        self._process = os.getpid()
        self._active = False
        self._closed = False
        self._opened: dict[bytes, OpenArray] = {}
        self._drafts = None if folder is None else folder / "tmp"
        self._lease.hold(self.tid)
        self.streams: LocalStreams = LocalStreams(self)
        self.arrays: LocalArrays = LocalArrays(self)
        self.policies: LocalPolicies = LocalPolicies(self)
        self.tokens: LocalTokens = LocalTokens(self)
        self.dead: LocalDead = LocalDead(self)
        self.transformations: LocalTransformations = LocalTransformations(self)

    # -- transactions

    @contextmanager
    def transaction(self, note: str = "") -> Iterator[Self]:
        """Commits when the block ends; raises TransactionError inside another, and what the commit raises: ZODB's
        ConflictError when another writer was faster (do it again), OSError when the disk is full. `note` is kept in
        the history."""
        self.begin(note)
        try:
            yield self
        except BaseException:
            self.abort()
            raise
        self.commit()

    def begin(self, note: str = "") -> None:
        """Open a transaction, for `commit` or `abort` to end: where a block does not fit, as in a notebook."""
        if self._read_only:
            raise LakeReadOnlyError("lake: opened for reading, expected open_lake(..., read_only=False)")
        if self._active:
            raise TransactionError("transaction: one is open, expected to be the only one")
        self.refresh()
        if note:
            self._manager.get().note(note)
        self._active = True

    def commit(self) -> None:
        """Keep what was changed since `begin`, or raise and keep nothing of it."""
        self.writing("commit")
        try:
            for opened in self._opened.values():
                flush(opened)
            self._manager.commit()
        except BaseException:
            self.abort()
            raise
        self._end()
        self._fold()

    def abort(self) -> None:
        """Forget what was changed since `begin`."""
        self.writing("abort")
        self._manager.abort()
        self._end(discard=True)

    def savepoint(self) -> "Savepoint":
        """A state inside the transaction to return to; what was stored until now goes from memory to files."""
        self.writing("savepoint")
        for opened in self._opened.values():
            flush(opened)
        return Savepoint(self, self._manager.savepoint())

    def _end(self, discard: bool = False) -> None:
        self._active = False
        self._manager.begin()
        self.settle(discard)
        self._drop_deleted()
        self._lease.hold(self.tid)

    def _drop_deleted(self) -> None:
        """Their records may be packed away from now on; their views stay."""
        for oid, opened in list(self._opened.items()):
            if not self._is_there(opened):
                del self._opened[oid]

    def _is_there(self, opened: OpenArray) -> bool:
        return self.root()["arrays"].get(opened.name) is opened.record

    def settle(self, discard: bool) -> None:
        """Bring what is mapped to what the records say."""
        for oid, opened in list(self._opened.items()):
            if opened.record._p_jar is None or opened.record._p_oid != oid:
                # made in the transaction that is no more
                for draft in opened.drafts:
                    draft.discard()
                del self._opened[oid]
            elif discard:
                opened.discard()
            else:
                opened.finish()
            if not self._active:
                opened.touched = set()

    def _fold(self) -> None:
        """Move long tails into chunks. What goes wrong is tried again after the next commit: nothing depends on it."""
        for opened in list(self._opened.values()):
            if not folding.is_due(opened.table):
                continue
            try:
                folding.fold(opened.table, opened.writer)
                self._manager.commit()
            except ConflictError:
                self._manager.abort()
            except Exception as error:
                self._manager.abort()
                log.warning("array %s: tail not moved into chunks: %r", opened.record.name, error)
            self._end()

    # -- sessions

    def session(self) -> Self:
        return type(self)(self._db, read_only=self._read_only, close_database=False, at=self._past)

    def at(self, when: str | datetime | bytes) -> Self:
        """The lake as it was: `when` is a time, its ISO text (UTC, where it names no zone), or a commit's id. For
        reading; close it, so that its past may be packed away. Raises MissingError, PackedError, ValueError."""
        past = type(self)(self._db, close_database=False, at=min(as_tid(when), self.tid))
        try:
            # its lease holds now
            check_not_packed(self._db, past.tid)
            past.check_made()
        except BaseException:
            past.close()
            raise
        return past

    def check_made(self) -> None:
        """Raises MissingError for a past before the lake."""
        try:
            known = "arrays" in self.root()
        except POSKeyError:
            known = False
        if not known:
            raise MissingError(f"lake at {as_time(self.tid).isoformat()}: not made yet, expected a later time")

    def refresh(self) -> None:
        if self._active:
            raise TransactionError("refresh: a transaction is open, expected none")
        self._check_process()
        stray = {opened.name: size for opened in self._opened.values() if (size := opened.stray())}
        self._manager.begin()
        self._drop_deleted()
        for opened in self._opened.values():
            opened.region.sync()
        self._lease.hold(self.tid)
        for name, size in stray.items():
            raise TransactionError(
                f"array {name}: {size} bytes of pages stored through a view outside a transaction, expected inside "
                "`with lake.transaction():`; they are forgotten"
            )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._active = False
        if self._process != os.getpid():
            # a fork shares the files: closing them here would take the folder's lock and the drafts from its parent
            return
        self._manager.abort()
        for opened in self._opened.values():
            for draft in opened.drafts:
                draft.discard()
        if not any(opened.region.is_viewed for opened in self._opened.values()):
            self._lease.release()
        # else it ends with the last view of what is mapped
        self._lease = Lease(None, self.tid)
        for opened in self._opened.values():
            opened.region.lease = None
        self._opened = {}
        self._connection.close()
        if self._close_database:
            self._db.close()

    @property
    def active(self) -> bool:
        return self._active

    @property
    def tid(self) -> bytes:
        """The last commit whose state this session sees."""
        if self._past is not None:
            return self._past
        # a savepoint puts another in the place of `_storage`
        return bytes(p64(u64(self._connection._normal_storage._start) - 1))

    def lease(self) -> int:
        """A descriptor that keeps what this session sees from being packed away, also when the session has ended and
        in another process, until it is closed. Raises OSError."""
        return self._lease.another(self.tid)

    def now(self) -> str:
        """`tid` as `at` takes it."""
        return self.tid.hex()

    @property
    def address(self) -> tuple[str, str | None] | None:
        """What `open_lake` takes in another process: the folder, or the socket and its `blobs`; None for a lake that
        cannot be opened so."""
        return address_of(self._db.storage)

    def root(self) -> Any:
        return self._connection.root()

    def adopt(self, record: Any) -> None:
        """Give a new record its connection, so that its blobs are made beside the lake's."""
        self._connection.add(record)

    def writing(self, what: str) -> None:
        """Guards every write; raises TransactionError."""
        if not self._active:
            raise TransactionError(f"{what}: outside a transaction, expected inside `with lake.transaction():`")
        self._check_process()

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise TransactionError(
                f"lake: opened by process {self._process}, expected to be opened anew by its fork {os.getpid()}"
            )

    def documents(self, kind: str) -> LocalDocuments:
        """See `clachan_lake.documents`."""
        return LocalDocuments(self, kind)

    # -- arrays

    def opened(self, record: ArrayRecord) -> OpenArray:
        """The one of this session."""
        found = self._opened.get(record._p_oid)
        if found is None:
            found = self._opened[record._p_oid] = OpenArray(record, self._connection, self._drafts)
            found.region.lease = self._lease
        return found

    def changes(self) -> dict[OpenArray, Changes]:
        """What this transaction did so far."""
        return {opened: opened.changes for opened in self._opened.values()}

    def forget(self, record: ArrayRecord) -> None:
        """It is deleted: nothing of it is to be committed."""
        opened = self._opened.get(record._p_oid)
        if opened is not None:
            opened.discard()

    def writing_to(self, opened: OpenArray, what: str) -> None:
        """Guards every write to an array; raises TransactionError, and MissingError when it is deleted."""
        self.writing(f"array {opened.name}: {what}")
        if not self._is_there(opened):
            raise MissingError(f"array {opened.name!r}: deleted, expected one of lake.arrays")

    def merge(self, record: ArrayRecord) -> int:
        """See `LocalArray.merge`."""
        opened, done = self.opened(record), 0
        if opened.writer.folder is None:
            return 0
        for numbers in list(merging.scattered(opened.table)):
            try:
                with self.transaction("merge"):
                    moved = merging.merge(opened.table, opened.writer, numbers)
                    opened.touched.update(numbers)
            except ConflictError:
                continue
            done += moved
        return done

    def array_at(self, name: str, when: str | datetime) -> LocalArray:
        past = self.at(when)
        try:
            array = past.arrays[name]
        except BaseException:
            past.close()
            raise
        # views of it need their files only, which are mapped
        finalize(array, past.close).atexit = False
        return array

    def history_of(self, record: ArrayRecord, limit: int) -> list[Revision]:
        """Newest first."""
        state = record.state
        found = []
        entries = self._db.storage.history(state._p_oid, size=limit)
        for number, entry in enumerate(entries, 1):
            if entry["tid"] > self.tid:
                continue
            then = self._connection.oldstate(state, entry["tid"])
            # a pack may have left nothing of the change but the fold behind it
            if then["change"] != "fold" or number == len(entries) < limit:
                note = _text(entry["description"])
                found.append(Revision(entry["tid"].hex(), as_time(entry["tid"]), tuple(then["shape"]), note))
        return found

    def changes_of(self, record: ArrayRecord, limit: int) -> Iterator[tuple[str, str]]:
        """(id of a commit, what it did) to an array, the last `limit` ones, newest first, also folds."""
        state = record.state
        for entry in self._db.storage.history(state._p_oid, size=limit):
            if entry["tid"] <= self.tid:
                yield entry["tid"].hex(), str(self._connection.oldstate(state, entry["tid"])["change"])


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Savepoint:
    """See `LocalLake.savepoint`."""

    def __init__(self, lake: LocalLake, point: Any) -> None:
        self._lake = lake
        self._point = point
        self._changes = lake.changes()

    def rollback(self) -> None:
        """Forget what was changed since. Raises TransactionError when the transaction has ended."""
        self._lake.writing("rollback")
        if not self._point.valid:
            raise TransactionError("rollback: the savepoint is no longer there, expected one of this transaction")
        self._point.rollback()
        self._lake.settle(discard=True)
        for opened, changes in self._changes.items():
            opened.changes = changes


class LocalArrays(Arrays):
    def __init__(self, lake: LocalLake) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> LocalArray:
        record = _find(self._lake.root()["arrays"], "array", name)
        return LocalArray(self._lake.opened(record), self._lake)

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
        chunk_bytes: int | None = None,
        *,
        order: str = "C",
        units: str | None = None,
    ) -> LocalArray:
        self._lake.writing(f"array {name}: create")
        _check_free(self._lake.root()["arrays"], "array", name)
        described = {**(attrs or {}), **({} if units is None else {"units": units})}
        record = new_record(name, shape, dtype, described, chunk_bytes=chunk_bytes, order=order)
        self._lake.root()["arrays"][name] = record
        self._lake.adopt(record)
        opened = self._lake.opened(record)
        opened.table.prepare(opened.nbytes)
        following.attach(self._lake, "array", record)
        return self[name]

    def __delitem__(self, name: str) -> None:
        self._lake.writing(f"array {name}: delete")
        record = _find(self._lake.root()["arrays"], "array", name)
        # so that who writes to it at the same time does not think that it is kept
        record.state.wholes += 1
        record.state.change = "whole"
        self._lake.forget(record)
        for transformation in following.positions(self._lake, "array", name):
            following.unfollow(self._lake, "array", record, transformation)
        del self._lake.root()["arrays"][name]


class LocalStreams(Streams):
    def __init__(self, lake: LocalLake) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> LocalStream:
        root = self._lake.root()
        return LocalStream(_find(root["streams"], "stream", name), self._lake)

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
        return None if record is None else LocalStream(record, self._lake)

    def create(self, name: str, policy: str = "raw", attrs: Mapping[str, Any] | None = None) -> LocalStream:
        self._lake.writing(f"stream {name}: create")
        streams = self._lake.root()["streams"]
        _check_free(streams, "stream", name)
        text = json_text(f"stream {name}", attrs or {})
        record = streams[name] = StreamRecord(name, policy, text, time.time_ns() // 10**6)
        self._lake.adopt(record)
        following.attach(self._lake, "stream", record)
        return self[name]

    def __delitem__(self, name: str) -> None:
        self._lake.writing(f"stream {name}: delete")
        root = self._lake.root()
        record = _find(root["streams"], "stream", name)
        for transformation in following.positions(self._lake, "stream", name):
            following.unfollow(self._lake, "stream", record, transformation)
        # so that who appends to it at the same time does not think that it is kept
        record.modified = time.time_ns() // 10**6
        del root["streams"][name]


def _find(records: Any, kind: str, name: str) -> Any:
    record = records.get(name) if isinstance(name, str) else None
    if record is None:
        raise MissingError(f"{kind} {name!r}: none of this name")
    return record


def _check_free(records: Any, kind: str, name: str) -> None:
    if check_name(kind, name) in records:
        raise TakenError(f"{kind} {name!r}: exists, expected a new name")
