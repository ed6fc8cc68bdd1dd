"""Where the bytes of an array are, as a reader in another process is told: the server's side of `near`.

A *run* is (position, length, file, offset): so many bytes of the array from that position on stand in the file with
that number, from the offset on. A piece, which is in no file, is (position, length, None, its bytes in base64). Where
runs overlap the later counts; what is in none is zero.
"""

import os
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from clachan_lake.arrays.table import Part, Table
from clachan_lake.errors import LakeError
from clachan_lake.format import Piece

RUNS = 16_384
PIECES_BYTES = 4 << 20
Run = tuple[int, int, int | None, int | str]


class ScatteredError(LakeError, ValueError):
    """One chunk is made of more files, or of more bytes that are in none, than are told at once."""


@dataclass
class Layout:
    """Of the bytes start <= position < stop, which are whole chunks. `files` are open for reading, and closed with
    `close` by who has no more use for them."""

    start: int
    stop: int
    runs: list[Run] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def close(self) -> None:
        while self.files:
            os.close(self.files.pop())


def layout(table: Table, low: int, high: int, most: int) -> Layout:
    """Of the chunks that low <= position < high touches, as many from the first on as have no more than `most` files.
    Raises CorruptError when a file is missing, ScatteredError, OSError."""
    numbers = table.grid.spanned(low, min(high, table.length))
    if not numbers:
        return Layout(low, high)
    found = Layout(table.grid.start(numbers.start), min(table.grid.stop(numbers[-1]), table.length))
    filling = _Filling(table, found, most)
    try:
        for number, parts in table.spread(numbers.start, numbers.stop):
            if not filling.has_room(parts):
                found.stop = table.grid.start(number)
                break
            filling.add(number, parts)
        if found.stop <= found.start:
            raise ScatteredError(
                f"{table.what(numbers.start)}: too many parts, expected those of {most} files; "
                "`clachan-lake pack --merge` makes them one, or read it over HTTP"
            )
    except BaseException:
        found.close()
        raise
    return found


class _Filling:
    def __init__(self, table: Table, found: Layout, most: int) -> None:
        self._table = table
        self._found = found
        self._most = most
        self._numbers: dict[bytes, int] = {}
        self._pieces = 0

    def has_room(self, parts: tuple[Part, ...]) -> bool:
        files = self._numbers.keys() | {part.holder._p_oid for part in parts if not isinstance(part.holder, Piece)}
        pieces = sum(part.length for part in parts if isinstance(part.holder, Piece))
        return (
            len(files) <= self._most
            and self._pieces + pieces <= PIECES_BYTES
            and len(self._found.runs) + len(parts) <= RUNS
        )

    def add(self, number: int, parts: tuple[Part, ...]) -> None:
        for run in self._runs(number, parts):
            if not self._continues(run):
                self._found.runs.append(run)

    def _runs(self, number: int, parts: tuple[Part, ...]) -> Iterator[Run]:
        start = self._table.grid.start(number)
        for part in parts:
            if isinstance(part.holder, Piece):
                self._pieces += part.length
                data = self._table.fetch(number, part.holder, part.offset, part.length)
                yield start + part.at, part.length, None, b64encode(data).decode()
            else:
                yield start + part.at, part.length, self._file(number, part.holder), part.offset

    def _continues(self, run: Run) -> bool:
        """Whether the run was made part of the one before."""
        if not self._found.runs:
            return False
        position, length, file, offset = self._found.runs[-1]
        if file is None or run[:1] + run[2:] != (position + length, file, int(offset) + length):
            return False
        self._found.runs[-1] = position, length + run[1], file, offset
        return True

    def _file(self, number: int, blob: Any) -> int:
        """Its number among those that are open."""
        if (known := self._numbers.get(blob._p_oid)) is not None:
            return known
        with self._table.file(number, blob) as file:
            self._found.files.append(os.dup(file.fileno()))
        return self._numbers.setdefault(blob._p_oid, len(self._found.files) - 1)
