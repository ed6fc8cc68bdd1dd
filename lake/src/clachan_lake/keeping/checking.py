"""Comparing a lake's bytes with the checksums that its records have of them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from ZODB.POSException import POSKeyError
from ZODB.utils import u64

from clachan_lake.errors import CorruptError
from clachan_lake.keeping.records import Load, Part, Record, Report, parse, parts, walk

Place = Callable[[bytes, bytes], Path | None]
"""Id and serial of a blob -> its file; None when its bytes need not be compared. Raises POSKeyError, OSError."""


class Progress(Protocol):
    """Called now and then: what is being done, how many bytes of it are, and of how many."""

    def __call__(self, what: str, done: int, total: int | None) -> None: ...


def quiet(what: str, done: int, total: int | None) -> None:
    """Says nothing."""


def total_bytes(load: Load) -> int:
    """Of all parts; what is corrupt counts nothing."""
    return sum(
        part.length for record in walk(load, lambda _fault: None) for part in _parts(record, lambda _fault: None)
    )


class Checker:
    """Goes through a lake's records, compares what they say of the bytes, and reports each fault."""

    def __init__(self, load: Load, place: Place, report: Report, progress: Progress = quiet) -> None:
        self._load = load
        self._place = place
        self._report = report
        self._progress = progress
        self._total = None if progress is quiet else total_bytes(load)
        self._done = 0

    def run(self, what: str) -> Iterator[Record]:
        """Each record, when what it says has been compared."""
        self._progress(what, 0, self._total)
        for record in walk(self._load, self._report):
            with _Holder(self._load, self._place) as holder:
                for part in _parts(record, self._report):
                    if fault := holder.fault(part):
                        self._report(f"{record.name}, {part.where}: {fault}")
                    self._done += part.length
                    self._progress(what, self._done, self._total)
            yield record


def _parts(record: Record, report: Report) -> Iterator[Part]:
    try:
        yield from parts(record)
    except CorruptError as error:
        report(str(error))


class _Holder:
    """The bytes of one holder at a time: neighbours are mostly of the same."""

    def __init__(self, load: Load, place: Place) -> None:
        self._load = load
        self._place = place
        self._oid = b""
        self._fault = ""
        self._piece: bytes | None = None
        self._file = -1

    def __enter__(self) -> "_Holder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def fault(self, part: Part) -> str | None:
        if part.holder != self._oid:
            self._open(part.holder)
        if self._fault:
            return f"{self._fault}, expected {part.length} bytes"
        if self._piece is None and self._file < 0:
            return None
        try:
            data = self._read(part.offset, part.length)
        except OSError as error:
            return f"not readable ({error})"
        if len(data) != part.length:
            return f"{len(data)} bytes, expected {part.length}"
        found = part.digest(data)
        return None if found == part.checksum else f"checksum {found:08x}, expected {part.checksum:08x}"

    def _open(self, oid: bytes) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._oid, self._fault, self._piece, self._file = oid, "", None, -1
        try:
            data, serial = self._load(oid)
            record = parse(oid, serial, data)
            path = self._place(oid, serial) if record.is_blob else None
        except (POSKeyError, FileNotFoundError):
            self._fault = f"its file or record {u64(oid):#x} is missing"
        except CorruptError as error:
            self._fault = str(error)
        else:
            if not record.is_blob:
                self._piece = _bytes(record)
                self._fault = "" if self._piece is not None else f"its bytes' record {u64(oid):#x} is none"
            elif path is not None:
                self._open_file(path)

    def _open_file(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._fault = f"its file is not readable ({error})"

    def _read(self, offset: int, length: int) -> memoryview:
        if self._piece is not None:
            return memoryview(self._piece)[offset : offset + length]
        if os.fstat(self._file).st_size < offset + length:
            # before memory is taken for a length that a corrupt record says
            length = max(0, os.fstat(self._file).st_size - offset)
        data = memoryview(bytearray(length))
        done = 0
        while done < length and (count := os.preadv(self._file, [data[done:]], offset + done)):
            done += count
        return data[:done]


def _bytes(record: Record) -> bytes | None:
    found = record.state.get("data") if isinstance(record.state, dict) else None
    return found if isinstance(found, bytes) else None
