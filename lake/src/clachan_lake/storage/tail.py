"""The end of a FileStorage file: its last transaction is whole, being written, or was torn by a power cut.

A commit is on the disk twice: first its records, with the status `c`; then the status that makes it count. So what a
power cut leaves half stands behind all that was ever acknowledged, and can be told from damage, behind which there are
whole transactions.
"""

import logging
import os
import struct
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ZODB.FileStorage.format import DATA_HDR_LEN, TRANS_HDR, TRANS_HDR_LEN, DataHeaderFromString

from clachan_lake.errors import CorruptError

log = logging.getLogger(__name__)
FIRST = 4
"""Where the first transaction begins."""

STATUS = 16
"""Where in a transaction its status is."""


class Whole(NamedTuple):
    """A transaction that is all there; its records begin at `records`, the next transaction at `end`."""

    tid: bytes
    records: int
    end: int


def whole_at(file: int, start: int) -> Whole | None:
    """The transaction at that position; None when it does not count yet, or is none. `file` is a descriptor."""
    head = os.pread(file, TRANS_HDR_LEN, start)
    if len(head) < TRANS_HDR_LEN:
        return None
    tid, length, status, user, description, extension = struct.unpack(TRANS_HDR, head)
    records = start + TRANS_HDR_LEN + user + description + extension
    stop = start + length
    if status not in {b" ", b"p", b"u"} or stop < records or _number_at(file, stop) != length:
        return None
    return Whole(tid, records, stop + 8)


def _number_at(file: int, position: int) -> int:
    data = os.pread(file, 8, position) if 0 <= position < 1 << 62 else b""
    return int.from_bytes(data) if len(data) == 8 else -1


def positions(file: int, found: Whole) -> dict[bytes, int]:
    """Where each record of it begins, by its id."""
    made, at = {}, found.records
    while at < found.end - 8:
        header = DataHeaderFromString(os.pread(file, DATA_HDR_LEN, at))
        made[header.oid] = at
        at += header.recordlen()
    return made


def whole_from(file: int, start: int) -> Iterator[Whole]:
    while found := whole_at(file, start):
        yield found
        start = found.end


def last_before(file: int, end: int) -> Whole | None:
    """The transaction that ends there."""
    length = _number_at(file, end - 8)
    start = end - 8 - length
    found = whole_at(file, start) if length > 0 and start >= FIRST else None
    return found if found and found.end == end else None


def cut(file: int, name: str, start: int) -> None:
    """Cut off what stands behind the whole transactions from `start` on. Raises CorruptError when that is damage."""
    size = os.fstat(file).st_size
    end = start
    for found in whole_from(file, start):
        end = found.end
    if size <= end:
        return
    last = last_before(file, size)
    if last is not None:
        raise CorruptError(
            f"file {name}, transaction at {end}: damaged, and whole ones behind it up to {last.tid.hex()}, expected to"
            " be whole; restore a backup"
        )
    plain = size - end < TRANS_HDR_LEN or os.pread(file, 1, end + STATUS) == b"c"
    kept = None if plain else _keep(file, end, size, name)
    log.warning(
        "file %s: %d bytes of a commit that was not acknowledged, cut off%s",
        name,
        size - end,
        f", kept in {kept}" if kept else "",
    )
    os.ftruncate(file, end)


def _keep(file: int, start: int, stop: int, name: str) -> Path:
    """What does not even look like a commit, for whoever wants to look into it."""
    path = next(path for number in count(1) if not (path := Path(f"{name}.cut{number}")).exists())
    with path.open("xb") as copy:
        while start < stop:
            data = os.pread(file, min(stop - start, 1 << 20), start)
            copy.write(data)
            start += len(data)
    return path
