"""The ZODB database of a lake: opening its storage, and keeping what it may do narrow.

One process owns the folder: whoever has its FileStorage open holds its lock. Others are its clients, or read beside
it. `database` is the same on each of them.
"""

import errno
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ZODB
from BTrees.OOBTree import OOBTree
from transaction import TransactionManager
from zc.lockfile import LockError  # type: ignore[import-untyped]
from ZEO.ClientStorage import ClientStorage
from ZODB.FileStorage.FileStorage import FileStorageError
from ZODB.interfaces import IBlobStorage
from ZODB.utils import z64

from clachan_lake import migration
from clachan_lake.errors import CorruptError, FormatError, LakeBusyError, RemoteError
from clachan_lake.format import FORMAT, admit
from clachan_lake.repeating import repeated
from clachan_lake.storage import layout
from clachan_lake.storage.file import LakeStorage
from clachan_lake.storage.following import FollowingStorage
from clachan_lake.storage.resolving import Resolving
from clachan_lake.storage.syncing import sync_files

__all__ = [
    "LakeClient",
    "LakeStorage",
    "blob_folder",
    "database",
    "follow",
    "join",
    "own",
    "socket_address",
    "sync_files",
]
logging.getLogger("ZODB.blob").setLevel(logging.WARNING)
SOCKET_BYTES = 107
CACHE_BYTES = 8 << 20
IDLE_SECONDS = 5.0
"""Closed sessions are kept so long for others. Each notes the id of every record that is committed meanwhile: kept for
ever, they would grow with all that comes in."""


class LakeClient(Resolving, ClientStorage):  # type: ignore[misc]
    """ZEO's client, which unpickles nothing that a server sends for a conflict."""


def own(folder: Path) -> LakeStorage:
    """Open the folder alone, making it on first use, and migrating a lake of an older format. Raises LakeBusyError,
    FormatError, CorruptError, OSError."""
    layout.make(folder)
    number = layout.read_format(folder)
    if number is not None and number < FORMAT:
        # the database's own number says whether it was migrated; the file's follows, so that no older version opens it
        database(_lock(folder)).close()
        layout.write_format(folder)
    storage = _lock(folder)
    try:
        layout.write_format(folder)
        layout.clean(folder, storage)
    except BaseException:
        storage.close()
        raise
    return storage


def _lock(folder: Path) -> LakeStorage:
    try:
        layout.undo_half_pack(folder)
        layout.undo_half_made(folder)
        return LakeStorage(folder)
    except LockError as error:
        raise LakeBusyError(
            f"lake {folder}: open in another process, expected to be alone; use that process's socket or URL, or"
            " read_only=True"
        ) from error
    except FileStorageError as error:
        raise CorruptError(f"lake {folder}: {error}, expected its records; restore a backup") from error


def follow(folder: Path) -> FollowingStorage:
    """Open the folder for reading, beside the process that owns it or without one. Raises FormatError, CorruptError,
    OSError."""
    if not folder.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "lake: not there, expected its folder, which reading does not make", str(folder)
        )
    number = layout.read_format(folder)
    if number is None:
        raise FormatError(f"folder {folder}: empty, expected a lake; open it for writing to make one")
    if number < FORMAT:
        raise FormatError(
            f"lake {folder}, format: {number}, expected {FORMAT} for reading; open it once for writing to migrate it"
        )
    try:
        storage = FollowingStorage(folder)
    except FileStorageError as error:
        raise CorruptError(f"lake {folder}: {error}, expected whole commits; open it for writing to mend it") from error
    if storage.lastTransaction() == z64:
        storage.close()
        raise FormatError(f"lake {folder}: nothing committed, expected a root; open it for writing to make one")
    return storage


def socket_address(socket: Path) -> str:
    """The path, or where it is too long for the kernel (107 bytes) the same relative to the working directory; raises
    ValueError when both are."""
    for path in (str(socket), os.path.relpath(socket)):
        if len(os.fsencode(path)) <= SOCKET_BYTES:
            return path
    raise ValueError(f"socket {socket}: {len(os.fsencode(socket))} bytes, expected at most {SOCKET_BYTES}")


def join(socket: Path, blobs: Path, wait_seconds: float) -> LakeClient:
    """Become a client of the process that owns the lake; the blob folder is shared. Raises RemoteError, OSError."""
    if not (blobs / ".layout").exists():
        raise FileNotFoundError(
            errno.ENOENT, "blob folder: not the lake's, expected it beside the socket, or named by `blobs`", str(blobs)
        )
    try:
        return LakeClient(
            socket_address(socket),
            blob_dir=str(blobs),
            shared_blob_dir=True,
            cache_size=2 << 20,
            wait_timeout=wait_seconds,
            # who begins a transaction sees all that was committed before, by whomever
            server_sync=True,
        )
    except Exception as error:
        raise RemoteError(f"lake's socket {socket}: {error!r}, expected its server within {wait_seconds} s") from error


def blob_folder(storage: Any) -> Path | None:
    """Where the storage keeps blobs; None when it has none, and chunks are bytes in its records."""
    if not IBlobStorage.providedBy(storage):
        return None
    return Path(storage.temporaryDirectory()).parent


def database(storage: Any) -> ZODB.DB:
    """The database on a storage, with its root filled on first use and its records migrated from an older format; the
    storage is closed when it fails. Raises FormatError for another format."""
    db = None
    try:
        with getattr(storage, "making", nullcontext)():
            db = ZODB.DB(
                storage,
                class_factory=admit,
                cache_size=2000,
                cache_size_bytes=CACHE_BYTES,
                pool_size=16,
                pool_timeout=IDLE_SECONDS,
                historical_pool_size=16,
            )
            _prepare_root(db)
    except BaseException:
        (db or storage).close()
        raise
    return db


def _prepare_root(db: ZODB.DB) -> None:
    """In one transaction; another client may do it at the same time."""

    def prepare() -> None:
        manager = TransactionManager()
        connection = db.open(manager)
        try:
            if not db.storage.isReadOnly():
                _fill(connection.root())
            _check(connection.root())
            if check_blobs := getattr(db.storage, "check_blobs", None):
                check_blobs(connection.root())
            manager.commit()
        finally:
            manager.abort()
            connection.close()

    repeated(prepare)


def _fill(root: Any) -> None:
    if "format" not in root:
        root.update(format=FORMAT, streams=OOBTree(), arrays=OOBTree())
        migration.add_trees(root)
    if root["format"] in range(layout.OLDEST, FORMAT):
        migration.migrate(root)
        root["format"] = FORMAT


def _check(root: Any) -> None:
    number = root.get("format", None)
    if number != FORMAT:
        raise FormatError(f"database, format: {number!r}, expected {FORMAT}")
