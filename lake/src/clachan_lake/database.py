"""The ZODB database of a lake: opening its storage, and keeping what it may do narrow.

One process owns the folder: whoever has its FileStorage open holds its lock. Blob files are synced, with the folders
that name them, before a transaction is voted for: ZODB itself syncs only the record file.
"""

import errno
import json
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import ZODB
from BTrees.OOBTree import OOBTree, OOTreeSet
from transaction import TransactionManager
from zc.lockfile import LockError  # type: ignore[import-untyped]
from ZEO.ClientStorage import ClientStorage
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from clachan_lake.errors import FormatError, LakeBusyError, RemoteError
from clachan_lake.format import FORMAT, admit

log = logging.getLogger(__name__)
logging.getLogger("ZODB.blob").setLevel(logging.WARNING)
STALE_SECONDS = 3600
SOCKET_BYTES = 107
CACHE_BYTES = 8 << 20


class LakeStorage(FileStorage):  # type: ignore[misc]
    """FileStorage that syncs blobs before the vote, and unpickles nothing itself.

    After a write that failed (disk full) FileStorage's buffers hold what must never reach the file. So it is `broken`
    then: it takes no further transaction, and opening it again cuts off what was half written.
    """

    def __init__(self, folder: Path) -> None:
        self._unsynced: list[str] = []
        self._failed = False
        super().__init__(str(folder / "data.fs"), blob_dir=str(folder / "blobs"))

    @property
    def broken(self) -> bool:
        """A write failed: close it, and open the lake again."""
        return self._failed or bool(self._file.closed)

    def tpc_begin(self, transaction: Any, tid: bytes | None = None, status: str = " ") -> None:
        if self.broken:
            raise OSError(errno.EIO, "lake: a write failed before, expected to be opened again")
        super().tpc_begin(transaction, tid, status)

    def store(self, oid: bytes, oldserial: bytes, data: bytes, version: str, transaction: Any) -> None:
        with self._failing():
            super().store(oid, oldserial, data, version, transaction)

    def tpc_finish(self, transaction: Any, f: Callable[[bytes], None] | None = None) -> bytes:
        with self._failing():
            tid: bytes = super().tpc_finish(transaction, f)
        return tid

    def _blob_storeblob(self, oid: bytes, serial: bytes, blobfilename: str) -> None:
        super()._blob_storeblob(oid, serial, blobfilename)
        self._unsynced.append(self.fshelper.getBlobFilename(oid, serial))

    def tpc_vote(self, transaction: Any) -> None:
        files, self._unsynced = self._unsynced, []
        with self._failing():
            sync_files(files, self.fshelper.base_dir)
            super().tpc_vote(transaction)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._failed = True
            raise

    def _abort(self) -> None:
        self._unsynced = []
        super()._abort()

    def tryToResolveConflict(self, oid: bytes, committed: bytes, old: bytes, _new: bytes, _data: bytes = b"") -> bytes:  # noqa: N802
        # resolving would unpickle what a client sent, with any class; writers repeat the transaction instead
        raise ConflictError(oid=oid, serials=(committed, old))

    def _restore_index(self) -> Any:
        path = Path(f"{self.__name__}.index")
        if path.exists() and not _is_plain_pickle(path):
            log.warning("index %s: not plain, ignored and made again", path)
            return None
        return super()._restore_index()


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"class {module}.{name}, expected none")


def _is_plain_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return _loads_to_end(file)


def _loads_to_end(file: BinaryIO) -> bool:
    try:
        while _Plain(file).load():
            pass
    except Exception:
        return False
    return True


def sync_files(files: list[str], root: str) -> None:
    """Sync the files and every folder from each up to `root`: a new file is only kept when its name is."""
    folders: set[Path] = set()
    top = Path(root)
    for name in files:
        _sync(Path(name))
        for folder in Path(name).parents:
            folders.add(folder)
            if folder == top:
                break
    for folder in folders:
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own(folder: Path) -> LakeStorage:
    """Open the folder alone, making it on first use. Raises LakeBusyError, FormatError, OSError."""
    folder.mkdir(mode=0o750, exist_ok=True)
    _check_format(folder)
    try:
        storage = LakeStorage(folder)
    except LockError as error:
        raise LakeBusyError(
            f"lake {folder}: open in another process, expected to be alone; use that process's socket or URL"
        ) from error
    _write_format(folder)
    _clean(folder)
    return storage


def _check_format(folder: Path) -> None:
    path = folder / "format.json"
    if not path.exists():
        if any(entry.name != ".lock" for entry in folder.iterdir() if not entry.name.startswith("data.fs")):
            raise FormatError(f"folder {folder}: not empty and without format.json, expected a lake or an empty folder")
        return
    try:
        number = json.loads(path.read_bytes())["clachan_lake"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"file {path}: not readable ({error!r}), expected the format of a lake") from error
    if number != FORMAT:
        raise FormatError(f"lake {folder}, format: {number!r}, expected {FORMAT}; use the version that made it")


def _write_format(folder: Path) -> None:
    path, draft = folder / "format.json", folder / "format.json.tmp"
    if path.exists():
        return
    with draft.open("w") as file:
        json.dump({"clachan_lake": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    _sync(folder)


def _clean(folder: Path) -> None:
    """What a killed process left: bodies half received, and blobs of transactions that never were."""
    incoming = folder / "incoming"
    incoming.mkdir(mode=0o700, exist_ok=True)
    for path in incoming.iterdir():
        path.unlink()
    for path in (folder / "blobs" / "tmp").glob("*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - STALE_SECONDS:
                path.unlink()


def socket_address(socket: Path) -> str:
    """The path, or where it is too long for the kernel (107 bytes) the same relative to the working directory; raises
    ValueError when both are."""
    for path in (str(socket), os.path.relpath(socket)):
        if len(os.fsencode(path)) <= SOCKET_BYTES:
            return path
    raise ValueError(f"socket {socket}: {len(os.fsencode(socket))} bytes, expected at most {SOCKET_BYTES}")


def join(socket: Path, blobs: Path, wait_seconds: float) -> ClientStorage:
    """Become a client of the process that owns the lake; the blob folder is shared. Raises RemoteError."""
    try:
        return ClientStorage(
            socket_address(socket),
            blob_dir=str(blobs),
            shared_blob_dir=True,
            cache_size=2 << 20,
            wait_timeout=wait_seconds,
        )
    except Exception as error:
        raise RemoteError(f"lake's socket {socket}: {error!r}, expected its server within {wait_seconds} s") from error


def database(storage: Any) -> ZODB.DB:
    """The database on a storage, with its root filled on first use. Raises FormatError for another format."""
    try:
        db = ZODB.DB(storage, class_factory=admit, cache_size=2000, cache_size_bytes=CACHE_BYTES, pool_size=16)
    except BaseException:
        storage.close()
        raise
    try:
        _fill_root(db)
    except BaseException:
        db.close()
        raise
    return db


def _fill_root(db: ZODB.DB) -> None:
    manager = TransactionManager()
    connection = db.open(manager)
    try:
        root = connection.root()
        if "format" not in root:
            root.update(format=FORMAT, streams=OOBTree(), arrays=OOBTree(), pending=OOTreeSet())
            manager.commit()
        if root["format"] != FORMAT:
            raise FormatError(f"database, format: {root['format']!r}, expected {FORMAT}")
    finally:
        manager.abort()
        connection.close()
