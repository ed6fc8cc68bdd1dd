"""Restoring a backup into a PostgreSQL database."""

from fcntl import LOCK_SH
from pathlib import Path

from ZODB.utils import z64

from clachan_lake.errors import CorruptError, FormatError
from clachan_lake.keeping.backup import SHOWN_FAULTS, Backup, check_backup, locked
from clachan_lake.keeping.checking import Checker, Progress, quiet
from clachan_lake.keeping.copying import sync_all
from clachan_lake.moments import as_time
from clachan_lake.storage.following import FollowingStorage


def restore_into(source: Path, url: str, blobs: Path, progress: Progress = quiet, wait_seconds: float = 10) -> Backup:
    """Fill the new database at `url` and the new folder `blobs` with a backup, once every checksum was compared. When
    it fails or is killed on the way, drop both and begin again. Raises FormatError, LakeBusyError, CorruptError,
    RemoteError."""
    from clachan_lake.storage.postgresql import connect

    with locked(source, LOCK_SH):
        tid = check_backup(source)
        backup = FollowingStorage(source)
        try:
            count, size = _compare(backup, progress)
            if blobs.exists() and any(blobs.glob("0x*")):
                raise FormatError(f"folder {blobs}: has blobs, expected one for a new lake")
            database = connect(url, blobs, read_only=False, wait_seconds=wait_seconds)
            try:
                if database.lastTransaction() != z64:
                    raise FormatError("database: has commits, expected a new one")
                progress("copy", 0, None)
                database.copyTransactionsFrom(backup)
                sync_all(blobs)
            finally:
                database.close()
        finally:
            backup.close()
    return Backup(tid, as_time(tid), count, size)


def _compare(backup: FollowingStorage, progress: Progress) -> tuple[int, int]:
    """How many records there are, and the bytes of them and of the blobs."""
    faults: list[str] = []
    count, size = 0, int(backup.getSize())

    def place(oid: bytes, serial: bytes) -> Path:
        return Path(backup.loadBlob(oid, serial))

    for record in Checker(backup.load, place, faults.append, progress).run("compare"):
        count += 1
        if record.is_blob and not faults:
            size += place(record.oid, record.serial).stat().st_size
        if len(faults) >= SHOWN_FAULTS:
            break
    if faults:
        raise CorruptError("\n".join(faults))
    return count, size
