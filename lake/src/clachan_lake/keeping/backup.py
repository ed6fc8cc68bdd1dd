"""Backup and restore: a lake's state at one commit, in a folder of its own.

A backup is itself a lake's folder. Its data.fs has every record that is reached from the root as it was at that
commit, under the same id and serial, in one transaction for each serial; the newest, with the commit's own number, is
described as `MARK`, and its root says that all before is packed away. So two backups of one commit are equal byte for
byte, and one that somebody has written to since is told by its last transaction.

Into a folder that has a backup already, only the blobs are copied that are not there. New blobs come first, then
data.fs takes the other's place by one rename, then the blobs go that only the former needed. Killed at any point it is
the former backup or the new one.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from uuid import uuid4

from BTrees.LLBTree import LLBTree, LLTreeSet
from zc.lockfile import LockError, LockFile  # type: ignore[import-untyped]
from ZODB.blob import BLOB_SUFFIX, FilesystemHelper, set_not_writable
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import u64

from clachan_lake.errors import CorruptError, FormatError, LakeBusyError
from clachan_lake.keeping import leases
from clachan_lake.keeping.checking import Checker, Progress, quiet
from clachan_lake.keeping.copying import copy, grow, sync_all
from clachan_lake.keeping.datafile import MARK, Datafile, last_transaction
from clachan_lake.keeping.records import Load, ends
from clachan_lake.local import LocalLake
from clachan_lake.moments import as_time
from clachan_lake.storage.layout import read_format

SHOWN_FAULTS = 10
BATCH_BYTES = 256 << 20
STAGED = "staged"
DRAFT = "data.fs.new"


@dataclass(frozen=True)
class Backup:
    """Of the commit `tid`, made at `time`: how many records there are, and their and the blobs' bytes."""

    tid: bytes
    time: datetime
    objects: int
    bytes: int


def backup(lake: LocalLake, target: Path, progress: Progress = quiet) -> Backup:
    """Copy the lake as its session sees it into the folder `target`: a new one, an empty one, or an earlier backup.
    Writers go on. Raises FormatError when the folder is something else, LakeBusyError when it is in use, CorruptError
    when a chunk is missing or its checksum does not hold; then the folder's backup is the one that it was."""
    storage = lake.root()._p_jar._storage
    target.mkdir(mode=0o750, exist_ok=True)
    with locked(target, LOCK_EX):
        _begin(target, int(lake.root()["format"]))
        copier = _Copier(lambda oid, serial: Path(storage.loadBlob(oid, serial)), target, ends(storage.load))
        datafile = Datafile(storage.load, lake.tid)
        try:
            _copy(storage.load, copier, "backup", progress, datafile)
            datafile.write(target / DRAFT)
            _swap(target)
        except BaseException:
            _forget_drafts(target)
            raise
        copier.remove_others()
    size = (target / "data.fs").stat().st_size + copier.bytes
    return Backup(lake.tid, as_time(lake.tid), datafile.count, size)


def restore(source: Path, folder: Path, progress: Progress = quiet) -> Backup:
    """Make a lake of a backup in `folder`, which must not exist or be empty; nothing is there until all is.
    Raises FormatError, LakeBusyError, and CorruptError when a chunk is missing or its checksum does not hold."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FormatError(f"folder {folder}: not empty, expected a new or empty one")
    with locked(source, LOCK_SH):
        tid = check_backup(source)
        draft = folder.absolute().parent / f".{folder.absolute().name}.{uuid4().hex[:8]}.restore"
        draft.mkdir(mode=0o750)
        try:
            made = _restore(source, draft, tid, progress)
            draft.rename(folder)
            sync_all(folder.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return made


def _restore(source: Path, draft: Path, tid: bytes, progress: Progress) -> Backup:
    (draft / STAGED).mkdir()
    size = copy(source / "data.fs", draft / "data.fs")
    theirs = FilesystemHelper(str(source / "blobs"))
    # without the backup's own index, which may be anybody's pickle
    storage = FileStorage(str(draft / "data.fs"), read_only=True)
    try:
        copier = _Copier(lambda oid, serial: Path(theirs.getBlobFilename(oid, serial)), draft, ends(storage.load))
        count = _copy(storage.load, copier, "restore", progress)
    finally:
        storage.close()
    (draft / STAGED).rmdir()
    (draft / "format.json").write_text(json.dumps({"clachan_lake": read_format(source)}))
    sync_all(draft)
    return Backup(tid, as_time(tid), count, size + copier.bytes)


def _begin(target: Path, number: int) -> None:
    """Make an empty folder one of a backup, or see that it is one."""
    if not (target / "format.json").exists():
        draft = target / "format.json.new"
        if {path.name for path in target.iterdir()} - {draft.name}:
            raise FormatError(f"folder {target}: not empty and no backup, expected an empty folder or a backup")
        draft.write_text(json.dumps({"clachan_lake": number, "backup": True}))
        draft.rename(target / "format.json")
    elif (target / "data.fs").exists():
        check_backup(target)
    _forget_drafts(target)
    try:
        LockFile(str(target / "data.fs.lock")).close()
    except LockError:
        raise _busy(target) from None
    if leases.oldest(target / "blobs"):
        raise _busy(target)
    (target / STAGED).mkdir()


def check_backup(folder: Path) -> bytes:
    """The commit that the folder is a backup of; raises FormatError."""
    if read_format(folder) is None:
        raise FormatError(f"folder {folder}: empty, expected a backup")
    if not json.loads((folder / "format.json").read_bytes()).get("backup"):
        raise FormatError(f"folder {folder}: a lake, expected a backup")
    tid, description = last_transaction(folder / "data.fs")
    if description != MARK:
        raise FormatError(f"backup {folder}: written to at {as_time(tid)}, expected to be as it was made")
    return tid


def _forget_drafts(target: Path) -> None:
    (target / DRAFT).unlink(missing_ok=True)
    shutil.rmtree(target / STAGED, ignore_errors=True)


def _swap(target: Path) -> None:
    (target / STAGED).rmdir()
    (target / "data.fs.index").unlink(missing_ok=True)
    sync_all(target)
    (target / DRAFT).rename(target / "data.fs")
    sync_all(target)


@contextmanager
def locked(folder: Path, kind: int) -> Iterator[None]:
    """Of a backup's folder: one process writes it, or several read it."""
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            flock(number, kind | LOCK_NB)
        except BlockingIOError:
            raise _busy(folder) from None
        yield
    finally:
        os.close(number)


def _busy(folder: Path) -> LakeBusyError:
    return LakeBusyError(f"folder {folder}: in use by another process, expected to be in none")


def _copy(load: Load, copier: "_Copier", what: str, progress: Progress, datafile: Datafile | None = None) -> int:
    """Copy every blob that is reached; how many records are."""
    faults: list[str] = []
    count = 0
    for record in Checker(load, copier.compared, faults.append, progress).run(what):
        count += 1
        if datafile is not None:
            datafile.add(record)
        if record.is_blob and record.oid not in copier.lost:
            try:
                copier.place(record.oid, record.serial)
            except (POSKeyError, FileNotFoundError) as error:
                faults.append(f"{record.name}, record {u64(record.oid):#x}: its file is missing ({error})")
        if len(faults) >= SHOWN_FAULTS:
            break
    if faults:
        raise CorruptError("\n".join(faults))
    copier.finish()
    return count


class _Copier:
    """Brings blobs into a folder, some at a time: what has its name there is whole and on the disk. `ends` says of
    those that grow how far they are wanted: one that has grown since gets what is new behind what is there."""

    def __init__(self, find: Callable[[bytes, bytes], Path], target: Path, ends: LLBTree) -> None:
        self.bytes = 0
        self.lost: set[bytes] = set()
        self._find = find
        self._ends = ends
        self._target = target
        self._helper = FilesystemHelper(str(target / "blobs"), "bushy")
        self._helper.create()
        leases.prepare(target / "blobs")
        self._serials = LLBTree()
        self._new = LLTreeSet()
        self._staged: dict[Path, Path] = {}
        self._staged_bytes = 0

    def compared(self, oid: bytes, serial: bytes) -> Path | None:
        """The copy, when it was made now."""
        return self.place(oid, serial) if u64(oid) not in self._serials or u64(oid) in self._new else None

    def place(self, oid: bytes, serial: bytes) -> Path | None:
        """The blob's copy; None when it was there before."""
        name = Path(self._helper.getBlobFilename(oid, serial))
        if u64(oid) in self._serials:
            return self._staged.get(name, name)
        try:
            source = self._find(oid, serial)
            size = min(source.stat().st_size, self._ends.get(u64(oid), sys.maxsize))
        except (POSKeyError, FileNotFoundError):
            self.lost.add(oid)
            raise
        self._serials[u64(oid)] = u64(serial)
        self.bytes += size
        present = name.stat().st_size if name.exists() else -1
        grows = u64(oid) in self._ends
        if present == size or (grows and present > size):
            return None
        self._new.insert(u64(oid))
        return self._stage(source, name, size, grown=grows and present >= 0)

    def _stage(self, source: Path, name: Path, size: int, *, grown: bool) -> Path:
        if self._staged_bytes + size > BATCH_BYTES:
            self.finish()
        draft = self._target / STAGED / f"{len(self._new)}"
        if grown:
            # the former backup's holes and bytes stay as they are, for it counts until this one is whole
            copy(name, draft)
            grow(source, draft, size)
        else:
            copy(source, draft)
            os.truncate(draft, size)
        set_not_writable(str(draft))
        self._staged[name] = draft
        self._staged_bytes += size
        return draft

    def finish(self) -> None:
        """Give the copies their names, when their bytes are on the disk."""
        if self._staged:
            sync_all(self._target)
        for name, draft in self._staged.items():
            name.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(name)
        self._staged.clear()
        self._staged_bytes = 0

    def remove_others(self) -> None:
        """Blobs that no record of this backup needs."""
        for oid, folder in self._helper.listOIDs():
            serial = self._serials.get(u64(oid))
            kept = None if serial is None else Path(self._helper.getBlobFilename(oid, serial)).name
            for path in Path(folder).iterdir():
                if path.name != kept and path.suffix == BLOB_SUFFIX:
                    path.unlink()
            if kept is None:
                with suppress(OSError):
                    os.removedirs(folder)
