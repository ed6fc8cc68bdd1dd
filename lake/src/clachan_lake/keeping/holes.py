"""What a pack leaves in the blob folder: files that no record has, and ranges of extents that no record refers to.

An extent holds several chunks. When all but one were written anew and their history is packed away, the file is still
needed for that one; the rest of it is given back to the disk by punching holes.
"""

import ctypes
import errno
import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from BTrees.LLBTree import LLBTree
from ZODB.blob import FilesystemHelper
from ZODB.utils import u64

from clachan_lake.errors import CorruptError
from clachan_lake.format import PAGE_BYTES
from clachan_lake.keeping.records import GROWING, parse, parts

log = logging.getLogger(__name__)
KEEP_SIZE, PUNCH_HOLE = 1, 2
TELLING = (b"LOBucket", b"LOBTree", b"Leaf", b"ArrayState", b"Growing", b"ZODB.blob")
"""In the first bytes of the records that say something of blobs."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def tidy(storage: Any) -> None:
    """After a pack of a FileStorage, by the process that owns it; commits go on meanwhile. Whatever an earlier pack or
    commit that was killed has left is found as well."""
    # a transaction under way has a greater number, and what it refers to was referred to by a record that is kept
    last = storage.lastTransaction()
    uses = Uses.of(storage, last)
    for oid, folder in storage.fshelper.listOIDs():
        forgotten = [path for path, serial in _blobs(storage.fshelper, folder, last) if not uses.has_blob(oid, serial)]
        for path in forgotten:
            log.info("blob %s: no record has it, removed", path)
            path.unlink(missing_ok=True)
        if forgotten:
            # a commit makes the folder and moves a file into it under the same lock
            with storage._lock, suppress(OSError):
                Path(folder).rmdir()
        punch(storage.fshelper, uses, oid, folder, last)


def tidy_shared(storage: Any, blobs: Path, last: bytes) -> None:
    """After a pack of a storage that nobody owns: files that no record has stay, as others' commits may be of them."""
    uses = Uses.of(storage, last)
    helper = FilesystemHelper(str(blobs))
    for oid, folder in helper.listOIDs():
        punch(helper, uses, oid, folder, last)


def punch(helper: FilesystemHelper, uses: "Uses", oid: bytes, folder: str, last: bytes) -> None:
    """Give back what of an object's files no record refers to."""
    for path, serial in _blobs(helper, folder, last):
        if uses.has_blob(oid, serial) and (gaps := uses.gaps(oid, path)):
            _punch(path, gaps)


def _blobs(helper: FilesystemHelper, folder: str, last: bytes) -> Iterator[tuple[Path, bytes]]:
    """Files and serials of one object, of commits until `last`."""
    try:
        paths = list(Path(folder).iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        _oid, serial = helper.splitBlobFilename(str(path))
        if serial is not None and serial <= last:
            yield path, serial


class Uses:
    """Which blobs there are, and which ranges of them are referred to."""

    def __init__(self) -> None:
        self._serials = LLBTree()
        self._earlier: set[tuple[int, int]] = set()
        self._ranges: dict[int, Ranges] = {}
        self._growing: frozenset[bytes] = frozenset()
        self._known = True

    @classmethod
    def of(cls, storage: Any, last: bytes) -> "Uses":
        """What all records say that a storage has of commits until `last`."""
        uses = cls()
        for transaction in storage.iterator(None, last):
            for record in transaction:
                if record.data:
                    uses.add(record.oid, record.tid, record.data)
        return uses

    def add(self, oid: bytes, serial: bytes, data: bytes) -> None:
        if not any(word in data[:100] for word in TELLING):
            return
        try:
            record = parse(oid, serial, data)
            if record.is_blob:
                self._add_blob(u64(oid), u64(serial))
            if record.kind == GROWING:
                # one record, whose last revision comes last
                self._growing = frozenset(record.references)
            for part in parts(record):
                self._ranges.setdefault(u64(part.holder), Ranges()).add(part.offset, part.offset + part.length)
        except CorruptError as error:
            if self._known:
                log.warning("%s; no holes are made in extents", error)
            self._known = False

    def _add_blob(self, oid: int, serial: int) -> None:
        if oid in self._serials:
            self._earlier.add((oid, self._serials[oid]))
        self._serials[oid] = serial

    def has_blob(self, oid: bytes, serial: bytes) -> bool:
        key = (u64(oid), u64(serial))
        return not self._known or self._serials.get(key[0]) == key[1] or key in self._earlier

    def gaps(self, oid: bytes, path: Path) -> list[tuple[int, int]]:
        """What may go of a file; nothing when no range of it is known."""
        used = self._ranges.get(u64(oid))
        try:
            if not used or not self._known:
                return []
            # what is behind the last chunk of one that grows may be the next one, on its way
            return list(used.gaps(used.stop if oid in self._growing else path.stat().st_size))
        except FileNotFoundError:
            return []


class Ranges:
    """Sorted ranges that do not touch: starts and stops in turn."""

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds: list[int] = []

    def add(self, start: int, stop: int) -> None:
        if start >= stop:
            return
        first, last = bisect_left(self._bounds, start), bisect_right(self._bounds, stop)
        # a bound inside another range is none
        self._bounds[first:last] = [start] * (first % 2 == 0) + [stop] * (last % 2 == 0)

    @property
    def stop(self) -> int:
        """Where the last one ends."""
        return self._bounds[-1] if self._bounds else 0

    def gaps(self, size: int) -> Iterator[tuple[int, int]]:
        """Whole blocks between the ranges, and behind the last until `size`."""
        edges = [0, *self._bounds, -(-size // PAGE_BYTES) * PAGE_BYTES]
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            low, high = -(-start // PAGE_BYTES) * PAGE_BYTES, stop // PAGE_BYTES * PAGE_BYTES
            if low < high:
                yield low, high


def _punch(path: Path, gaps: Iterable[tuple[int, int]]) -> None:
    try:
        with path.open("rb") as file:
            full = [gap for gap in gaps if _has_data(file.fileno(), *gap)]
        if full:
            with _writable(path) as number:
                for start, stop in full:
                    _punch_one(number, start, stop)
    except FileNotFoundError:
        return
    except OSError as error:
        # EOPNOTSUPP: a file system without holes
        log.log(logging.DEBUG if error.errno == errno.EOPNOTSUPP else logging.WARNING, "blob %s: %s", path, error)


def _has_data(number: int, start: int, stop: int) -> bool:
    try:
        return os.lseek(number, start, os.SEEK_DATA) < stop
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise


@contextmanager
def _writable(path: Path) -> Iterator[int]:
    mode = path.stat().st_mode
    path.chmod(mode | 0o200)
    try:
        number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    finally:
        path.chmod(mode)
    try:
        yield number
    finally:
        os.close(number)


def _punch_one(number: int, start: int, stop: int) -> None:
    if _libc.fallocate(number, KEEP_SIZE | PUNCH_HOLE, start, stop - start) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
