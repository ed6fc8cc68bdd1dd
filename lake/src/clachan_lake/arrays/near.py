"""An array of a lake at a URL, mapped from the files that its server hands over: the reader's side of `layout`.

One version of the array, in a range of addresses of its own; it never changes. What is mapped is asked for when it is
first read, some files at a time, so that few are open.
"""

import os
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self
from weakref import finalize

from clachan_lake.arrays import pages
from clachan_lake.arrays.grid import Grid
from clachan_lake.arrays.region import Region
from clachan_lake.arrays.table import Part
from clachan_lake.errors import CorruptError, RemoteError
from clachan_lake.format import Piece
from clachan_lake.near import fetch


@dataclass(frozen=True)
class Answer:
    """The server's, of the bytes start <= position < stop of `length`; `files` is how many the ticket is for."""

    socket: str
    ticket: str
    proof: str
    snapshot: str
    version: str
    row_bytes: int
    length: int
    grid: list[int]
    start: int
    stop: int
    files: int
    runs: list[list[Any]]


class Lent:
    """A file that was handed over: open until nobody refers to it."""

    _p_oid = b""

    def __init__(self, number: int) -> None:
        self._number = number
        finalize(self, os.close, number)

    def fileno(self) -> int:
        return self._number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """It is still needed for the chunks that follow."""


class NearTable:
    """Where the bytes of one version are, as the server says when it is asked: `ask(low, high, snapshot)`."""

    tail = range(0)

    def __init__(self, name: str, first: Answer, ask: Callable[[int, int, str], Answer]) -> None:
        self.name = name
        self.length = first.length
        self.grid = Grid(*first.grid)
        self.lease: Lent | None = None
        self._answer: Answer | None = first
        self._snapshot = first.snapshot
        self._ask = ask

    def begin(self, answer: Answer) -> None:
        """An answer that is used when what it tells of is read next."""
        self._answer = answer

    def spread(self, first: int, stop: int) -> Iterator[tuple[int, tuple[Part, ...]]]:
        """As `Table.spread`. Raises what asking and fetching raise."""
        low, high = self.grid.start(first), min(self.grid.stop(stop - 1), self.length)
        while low < high:
            answer, self._answer = self._answer, None
            if answer is None or answer.start != low:
                answer = self._ask(low, high, self._snapshot)
            if not low < answer.stop:
                raise RemoteError(f"array {self.name}: files until {answer.stop}, expected beyond {low}")
            yield from self._chunks(answer, low, min(high, answer.stop))
            low = answer.stop

    def _chunks(self, answer: Answer, low: int, high: int) -> Iterable[tuple[int, tuple[Part, ...]]]:
        lease, *files = [Lent(number) for number in fetch(answer.socket, answer.ticket, answer.proof, answer.files)]
        self.lease = self.lease or lease
        found: dict[int, list[Part]] = {}
        for position, length, file, offset in answer.runs:
            if not low <= position <= position + length <= self.grid.stop(self.grid.number(answer.stop - 1)):
                raise RemoteError(f"array {self.name}: bytes at {position}, expected from {low} to {answer.stop}")
            holder = Piece(b64decode(offset)) if file is None else files[file]
            for number, first, last in self.grid.clipped(position, min(position + length, high)):
                at = (0 if file is None else offset) + first - position
                part = Part(first - self.grid.start(number), holder, at, last - first)
                found.setdefault(number, []).append(part)
        return ((number, tuple(parts)) for number, parts in sorted(found.items()))

    def fetch(self, number: int, holder: Any, offset: int, length: int) -> bytes:
        if isinstance(holder, Piece):
            data = bytes(holder.data[offset : offset + length])
        else:
            data = os.pread(holder.fileno(), length, offset)
        if len(data) != length:
            raise CorruptError(f"{self.what(number)}: {len(data)} bytes, expected {length}")
        return data

    def file(self, _number: int, holder: Lent) -> Lent:
        return holder

    def what(self, number: int) -> str:
        return f"array {self.name}, chunk {number}"

    def leaves(self) -> Iterable[int]:
        return ()

    def revision(self, _leaf: int) -> bytes | None:
        return None


class NearRegion(Region):
    """For reading: shared pages, which are the page cache's own and need no memory. A chunk that is not in one file as
    it is takes memory of its own."""

    def __init__(self, table: NearTable) -> None:
        super().__init__(table, None)

    def _rooms(self, _whole: int) -> Iterable[int]:
        return ()

    def _put(self, start: int, length: int, file: int, offset: int) -> None:
        pages.map_read(self.base + start, length, file, offset)

    def _zero(self, low: int, high: int) -> None:
        pages.read_zeros(self.base + low, high - low)

    def _copy(self, number: int, parts: tuple[Part, ...]) -> None:
        start, size = self.grid.start(number), self.grid.size(number)
        pages.claim()
        pages.map_zeros(self.base + start, size)
        try:
            for part in parts:
                data = self.table.fetch(number, part.holder, part.offset, part.length)
                pages.fill(self.base + start + part.at, data)
        finally:
            pages.protect(self.base + start, size)
        self._keys[number] = tuple(part.key for part in parts)
