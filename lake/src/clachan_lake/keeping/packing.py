"""Packing: the history that is older than a time goes, and its bytes with it.

No pack goes beyond a snapshot that a session reads (`leases`). What is packed away is written in the root first, in a
transaction of its own: whoever wants an older snapshot holds its lease, and then reads that, so that either it is
refused or the pack sees the lease.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persistent.TimeStamp import TimeStamp
from ZEO.Exceptions import ClientDisconnected
from ZODB.FileStorage.FileStorage import FileStorageError
from ZODB.POSException import POSKeyError
from ZODB.utils import z64

from clachan_lake.database import LakeClient, LakeStorage, blob_folder
from clachan_lake.errors import CorruptError, LakeBusyError, RemoteError
from clachan_lake.keeping import leases
from clachan_lake.keeping.checking import Progress, quiet
from clachan_lake.keeping.holes import tidy_shared
from clachan_lake.keeping.limits import KEY
from clachan_lake.local import LocalLake
from clachan_lake.moments import as_tid, as_time


@dataclass(frozen=True)
class Packed:
    """Disk use before and after, and the time from which on there is history."""

    before_bytes: int
    after_bytes: int
    until: datetime


def pack(lake: LocalLake, keep_seconds: float, progress: Progress = quiet) -> Packed:
    """Forget the history that is older than `keep_seconds`, but none that an open session reads. Readers and writers
    go on. Raises LakeReadOnlyError, LakeBusyError when another pack runs, CorruptError when a record is missing, and
    OSError when the disk is full, for the packed records stand beside the others until they replace them."""
    if not 0 <= keep_seconds < math.inf:
        raise ValueError(f"time to keep: {keep_seconds} s, expected at least 0")
    storage = lake.root()._p_jar.db().storage
    blobs = blob_folder(storage)
    progress("measure", 0, None)
    before = disk_bytes(storage)
    leased = leases.place(storage, blobs)
    until = _record(lake, leased, keep_seconds)
    progress("pack", 0, None)
    # another session may be open since the record was written
    if (end := min(until, leases.oldest(leased) or until)) > z64:
        with _errors():
            lake.root()._p_jar.db().pack(_seconds(end, _is_limited(storage)))
    lake.refresh()
    if blobs is not None and not _is_limited(storage):
        tidy_shared(storage, blobs, lake.tid)
    progress("measure", 0, None)
    return Packed(before, disk_bytes(storage), as_time(until))


def _record(lake: LocalLake, leased: Path | None, keep_seconds: float) -> bytes:
    """Say in the root from when on there will be history."""
    with lake.transaction("pack"):
        root = lake.root()
        wanted = as_tid(datetime.fromtimestamp(max(0.0, time.time() - keep_seconds), UTC))
        until: bytes = min(wanted, lake.tid, leases.oldest(leased) or wanted)
        known: bytes = root.get(KEY, z64)
        if until <= known:
            return known
        root[KEY] = until
    return until


def _is_limited(storage: Any) -> bool:
    """It packs at most until what the root says (`limits.limit`): then a time may be rounded up."""
    return isinstance(storage, LakeStorage | LakeClient)


def _seconds(tid: bytes, up: bool) -> float:
    """The time that ZODB makes that number of, or as there are fewer times than numbers, the next or the last one."""
    seconds = float(TimeStamp(tid).timeTime())
    while _tid(seconds) > tid:
        seconds = math.nextafter(seconds, 0)
    while up and _tid(seconds) < tid:
        seconds = math.nextafter(seconds, math.inf)
    return seconds


def _tid(seconds: float) -> bytes:
    raw: bytes = TimeStamp(*time.gmtime(seconds)[:5], seconds % 60).raw()
    return raw


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except FileStorageError as error:
        if "Already packing" not in str(error):
            raise
        raise LakeBusyError("pack: another one runs, expected to be the only one") from error
    except ClientDisconnected as error:
        raise RemoteError("pack: the lake's server ended, expected it to run; pack again") from error
    except POSKeyError:
        raise
    except KeyError as error:
        missing = error.args[0].hex() if error.args and isinstance(error.args[0], bytes) else error
        raise CorruptError(f"record {missing}: missing, expected in the database; nothing was packed") from error


def disk_bytes(storage: Any) -> int:
    """What the records and the blobs take of the disk."""
    blobs = blob_folder(storage)
    return int(storage.getSize()) + (0 if blobs is None else sum(_blocks(blobs)))


def _blocks(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*.blob"):
        try:
            yield path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
