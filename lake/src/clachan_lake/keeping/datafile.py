"""Writing a FileStorage file of one state: each record once, under its own id and serial."""

from collections.abc import Iterator
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
from ZODB.FileStorage.FileStorage import packed_version as MAGIC  # noqa: N812
from ZODB.FileStorage.format import TRANS_HDR_LEN, DataHeader, TxnHeader, TxnHeaderFromString
from ZODB.utils import p64, u64, z64

from clachan_lake.errors import FormatError
from clachan_lake.format import admit
from clachan_lake.keeping.limits import KEY
from clachan_lake.keeping.records import Load, Record
from clachan_lake.storage.resolving import Writer, read

MARK = b"clachan-lake backup"
PROTOCOL = 3


class Datafile:
    """The records of the commit `tid`. The root is written with that commit: it says what is packed away."""

    def __init__(self, load: Load, tid: bytes) -> None:
        self._load = load
        self._tid = tid
        self._serials: list[int] = []
        self._oids: list[int] = []

    @property
    def count(self) -> int:
        return len(self._oids)

    def add(self, record: Record) -> None:
        self._serials.append(u64(self._tid if record.oid == z64 else record.serial))
        self._oids.append(u64(record.oid))

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            file.write(MAGIC)
            for serial, oids in groupby(self._sorted(), key=lambda pair: pair[0]):
                self._write_transaction(file, p64(serial), [p64(oid) for _serial, oid in oids])

    def _sorted(self) -> Iterator[tuple[int, int]]:
        serials, oids = np.array(self._serials, np.uint64), np.array(self._oids, np.uint64)
        for at in np.lexsort((oids, serials)):
            yield int(serials[at]), int(oids[at])

    def _write_transaction(self, file: BinaryIO, serial: bytes, oids: list[bytes]) -> None:
        begin = file.tell()
        header = TxnHeader(serial, 0, " ", 0, len(MARK) if serial == self._tid else 0, 0)
        header.user, header.descr, header.ext = b"", MARK if serial == self._tid else b"", b""
        file.write(header.asString())
        for oid in oids:
            data, _serial = self._load(oid)
            if oid == z64:
                data = packed_root(data, self._tid)
            file.write(DataHeader(oid, serial, 0, begin, 0, len(data)).asString())
            file.write(data)
        end = file.tell()
        header.tlen = end - begin
        file.write(p64(header.tlen))
        file.seek(begin)
        file.write(header.asString())
        file.seek(end + 8)


def packed_root(data: bytes, tid: bytes) -> bytes:
    """The root's record that says that what was before `tid` is packed away."""
    kind, state = read(data, {})
    state["data"][KEY] = tid
    # which folder of blobs is a database's (`storage.postgresql`): none is a backup's
    state["data"].pop("blobs", None)
    file = BytesIO()
    writer = Writer(file, PROTOCOL)
    writer.dump(admit(None, *kind))
    writer.dump(state)
    return file.getvalue()


def last_transaction(path: Path) -> tuple[bytes, bytes]:
    """Number and description of a file's last transaction; raises FormatError when there is none."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        begin = size - 8 - u64(file.read(8).rjust(8, b"\0"))
        file.seek(max(0, begin))
        raw = file.read(TRANS_HDR_LEN)
        if begin < len(MAGIC) or len(raw) != TRANS_HDR_LEN:
            raise FormatError(f"file {path}: without a whole transaction at its end, expected a backup's records")
        header = TxnHeaderFromString(raw)
        file.seek(header.ulen, 1)
        return header.tid, file.read(header.dlen)
