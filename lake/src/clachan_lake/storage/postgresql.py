"""A lake's records in PostgreSQL, through RelStorage; its blobs in a folder that all clients share.

There is no process that owns it: each client commits for itself, and merges what others have committed for itself. So
each syncs its blobs, and each merges with `resolving` only. The folder and the database know each other by an id.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from persistent.timestamp import TimeStamp
from relstorage.adapters.interfaces import DriverNotAvailableError
from relstorage.adapters.postgresql import PostgreSQLAdapter
from relstorage.blobhelper.shared import SharedBlobHelper
from relstorage.options import Options
from relstorage.storage import RelStorage
from relstorage.storage.history import UndoableHistory
from relstorage.storage.tpc import vote
from relstorage.storage.util import copy_storage_methods, storage_method
from ZODB.blob import FilesystemHelper
from ZODB.POSException import POSKeyError, StorageError
from ZODB.utils import p64, u64

from clachan_lake.errors import FormatError, RemoteError
from clachan_lake.storage.plain import PlainTransactions
from clachan_lake.storage.resolving import Resolving
from clachan_lake.storage.syncing import Syncer, sync

ID = "lake.id"
KEY = "blobs"
CACHE_MIB = 4
LOCK = int.from_bytes(b"clachan")


def connect(url: str, blobs: str | Path | None, *, read_only: bool, wait_seconds: float) -> "PostgreSQLStorage":
    """A client of the database at `url`, whose tables are made on first use. Raises ValueError without `blobs` or with
    a wrong URL, RemoteError when the server refuses or does not answer, FormatError, OSError."""
    name = _shown(url)
    if blobs is None:
        raise ValueError(f"lake {name}, blobs: None, expected the folder of blobs that all its clients share")
    folder = _folder(Path(blobs).absolute(), read_only)
    options = Options(
        read_only=read_only,
        create_schema=not read_only,
        keep_history=True,
        blob_dir=str(folder),
        shared_blob_dir=True,
        cache_local_mb=CACHE_MIB,
        driver="psycopg2",
    )
    dsn = _dsn(url, name, wait_seconds)
    try:
        adapter = PostgreSQLAdapter(dsn=dsn, options=options)
        with nullcontext() if read_only else alone(dsn):
            return PostgreSQLStorage(adapter, options=options, blobhelper=SyncedBlobs(options, adapter))
    except DriverNotAvailableError as error:
        raise ImportError(f"psycopg2: {error}, expected the extra: pip install 'clachan-lake[postgresql]'") from error
    except StorageError as error:
        raise FormatError(
            f"lake {name}: {error}, expected a database of lakes; open it for writing to make one"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith("psycopg2"):
            raise
        reason = " ".join(str(error).split())
        raise RemoteError(f"lake {name}: {reason}, expected its server within {wait_seconds} s") from error


def _shown(url: str) -> str:
    """Without its password."""
    return re.sub(r"(?<=//)([^/@:]*):[^/@]*(?=@)", r"\1", re.sub(r"([?&]password=)[^&]*", r"\1***", url))


def _folder(folder: Path, read_only: bool) -> Path:
    if not folder.is_dir():
        if read_only:
            raise FileNotFoundError(errno.ENOENT, "blobs: not there, expected the lake's folder of blobs", str(folder))
        folder.mkdir(mode=0o750)
        sync(folder.parent)
    return folder


def _dsn(url: str, name: str, wait_seconds: float) -> str:
    # RelStorage adds to it words that no URL can have
    try:
        from psycopg2 import ProgrammingError
        from psycopg2.extensions import make_dsn, parse_dsn
    except ImportError as error:
        raise ImportError(f"psycopg2: {error}, expected the extra: pip install 'clachan-lake[postgresql]'") from None
    try:
        parts = parse_dsn(url)
    except ProgrammingError as error:
        reason = " ".join(str(error).replace(url, name).split())
        raise ValueError(f"lake {name}: {reason}, expected postgresql://user@host/database") from None
    dsn: str = make_dsn(**{"connect_timeout": max(2, round(wait_seconds)), **parts})
    return dsn


@contextmanager
def alone(dsn: str) -> Iterator[None]:
    """No other client makes the tables or the root meanwhile. Raises psycopg2's errors."""
    from psycopg2 import connect

    connection = connect(dsn)
    try:
        connection.cursor().execute("select pg_advisory_lock(%s)", (LOCK,))
        yield
    finally:
        # the server gives it back with the connection, however that ends
        connection.close()


class SyncedBlobs(SharedBlobHelper):  # type: ignore[misc]
    """Blobs are on the disk before the commit: their bytes while no other client waits for it."""

    def __init__(self, options: Any, adapter: Any, fshelper: Any = None, syncer: Syncer | None = None) -> None:
        if fshelper is None:
            fshelper = FilesystemHelper(options.blob_dir)
            if not options.read_only:
                fshelper.create()
                sync(Path(options.blob_dir, ".layout"))
        super().__init__(options, adapter, fshelper)
        self._syncer = syncer or Syncer(options.blob_dir)
        self.new_instance_kwargs = {"syncer": self._syncer}

    def _doStoreBlob(self, *arguments: Any) -> str:  # noqa: N802 - RelStorage's name
        path: str = super()._doStoreBlob(*arguments)
        sync(Path(path))
        return path

    def copy_undone(self, copied: Any, tid: bytes) -> None:
        super().copy_undone(copied, tid)
        self._syncer.sync(self._txn_blobs.values())

    def vote(self, tid: bytes | None = None) -> None:
        super().vote(tid)
        self._syncer.sync_names(Path(path) for path in (self._txn_blobs or {}).values())


class PlainHistory(UndoableHistory):  # type: ignore[misc]
    """Passes over extensions (see `plain`), and sees what was committed until now, whenever its session began."""

    @storage_method  # type: ignore[untyped-decorator]
    def history(
        self, oid: bytes, version: str | None = None, size: int = 1, filter: Any = None
    ) -> list[dict[str, Any]]:
        with self.load_connection.isolated_connection() as cursor:
            try:
                entries = islice(self.adapter.dbiter.iter_object_history(cursor, u64(oid)), size)
            except KeyError as error:
                raise POSKeyError(oid) from error
            return [
                {
                    "tid": (tid := bytes(p64(entry.tid_int))),
                    "time": TimeStamp(tid).timeTime(),
                    "user_name": entry.username or b"",
                    "description": entry.description or b"",
                    "size": entry.pickle_size,
                }
                for entry in entries
            ]


class PostgreSQLStorage(PlainTransactions, Resolving, RelStorage):  # type: ignore[misc]
    """See `connect`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # RelStorage's own have become attributes of the object
        copy_storage_methods(self, PlainHistory(self._adapter, self._load_connection))
        for name in ("supportsUndo", "undoLog", "undoInfo"):
            self.__dict__.pop(name, None)

    @property
    def _start(self) -> bytes:
        """As other storages of ZODB name it: the first commit that this instance does not see."""
        return bytes(p64(self.highest_visible_tid + 1))

    def making(self) -> AbstractContextManager[None]:
        """While a root may be made."""
        return nullcontext() if self.isReadOnly() else alone(self._adapter._dsn)

    def check_blobs(self, root: Any) -> None:
        """That the folder is that of this database; on first use it becomes so. Raises FormatError."""
        path = Path(self._options.blob_dir, ID)
        known = root.get(KEY)
        found = (path.read_text().strip() or None) if path.exists() else None
        if known is None and not self.isReadOnly():
            if found is not None and any(path.parent.glob("0x*")):
                raise FormatError(f"folder {path.parent}: blobs of lake {found}, expected a folder for a new lake")
            known = root[KEY] = found or uuid4().hex
            if found is None:
                path.write_text(known)
                sync(path)
                sync(path.parent)
        elif known is None or found != known:
            raise FormatError(f"folder {path.parent}: blobs of lake {found}, expected those of {known}")


class _Resolver(Resolving, vote._CachedConflictResolver):  # type: ignore[misc]
    """RelStorage resolves by an object of its own, not by the storage."""


_other = vote._CachedConflictResolver


def _resolver(storage: Any, states: Any) -> Any:
    return (_Resolver if isinstance(storage, PostgreSQLStorage) else _other)(storage, states)


vote._CachedConflictResolver = _resolver
