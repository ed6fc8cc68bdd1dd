"""The address range of one array in one session: its chunks, mapped one behind the other.

What is mapped where is compared with the table at each boundary of a transaction (`sync`), and only what differs is
mapped anew: an ndarray that was made before shows it then. Chunks whose bytes do not stand in one file as they are
(pieces, the tail) are copied to the *spool*, an unnamed file in which each byte has the position that it has in the
array, and mapped from there.
"""

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds

from clachan_lake.arrays import pages
from clachan_lake.arrays.drafts import Bytes, Draft, write_all
from clachan_lake.arrays.grid import Grid
from clachan_lake.arrays.table import Part
from clachan_lake.errors import CorruptError, MappingError
from clachan_lake.format import LEAF, Piece

LENT = 256
ROOM = 64 << 30
GROWTH = 4
ALIGNMENT = 2 << 20
"""Of the range's first byte, so that the kernel can map large pages."""


class Source(Protocol):
    """Where the bytes are: the table of a lake's array, or one that a server tells of (`near`)."""

    grid: Grid

    @property
    def name(self) -> str: ...

    @property
    def length(self) -> int: ...

    @property
    def tail(self) -> range:
        """The chunks that have some of the tail."""

    def spread(self, first: int, stop: int) -> Iterator[tuple[int, tuple[Part, ...]]]: ...

    def fetch(self, number: int, holder: Any, offset: int, length: int) -> bytes: ...

    def file(self, number: int, holder: Any) -> Any: ...

    def what(self, number: int) -> str: ...

    def leaves(self) -> Iterable[int]: ...

    def revision(self, leaf: int) -> bytes | None:
        """None for a leaf that is not there."""


class _Span:
    """What numpy makes a view of; it keeps the region."""

    __slots__ = ("__array_interface__", "__weakref__", "lease", "range", "region")

    def __init__(self, region: "Region", low: int, high: int, writable: bool) -> None:
        self.region = region
        self.range = low, high
        self.lease = region.lease
        self.__array_interface__ = {
            "data": (region.base + low, not writable),
            "shape": (high - low,),
            "typestr": "|u1",
            "version": 3,
        }


class Region:
    def __init__(self, table: Source, drafts: Path | None) -> None:
        self.table = table
        self.grid = table.grid
        self.base = self.size = 0
        self.drafts: dict[int, tuple[Draft, int]] = {}
        """Chunks that are mapped from an uncommitted extent, to which stores go: the draft, and where in it."""
        self._folder = drafts
        self._method = pages.method()
        self._mapped = bytearray()
        self._keys: dict[int, tuple[tuple[int, bytes, int, int], ...]] = {}
        self._serials: dict[int, bytes] = {}
        self._tail = range(0)
        self._spool = _Unnamed(drafts)
        self._nothing = _Unnamed(drafts)
        self._copied: set[int] = set()
        self._due: set[int] = set()
        """Chunks to be compared with the table at the next boundary, as at the last one something went wrong."""
        self._spans: weakref.WeakSet[_Span] = weakref.WeakSet()
        self._writable: weakref.WeakSet[_Span] = weakref.WeakSet()
        self._lent: list[tuple[int, int]] = []
        self._free: weakref.finalize[..., Region] | None = None
        self.lease: object = None
        """What keeps the mapped files' bytes from being packed away: each view has it, also when the lake is closed."""

    # -- views

    def view(self, low: int, high: int, writable: bool) -> Bytes:
        """The bytes low <= position < high, mapped. Raises CorruptError, MappingError."""
        if low >= high:
            return np.empty(0, np.uint8)
        self.ensure(low, high)
        return self.raw(low, high, writable)

    def raw(self, low: int, high: int, writable: bool) -> Bytes:
        """As `view`, of what is mapped already."""
        span = _Span(self, low, high, writable)
        self._spans.add(span)
        if writable:
            self._writable.add(span)
            self._lent.append((low, high))
            if len(self._lent) > LENT:
                self._lent = [(min(low for low, _ in self._lent), max(high for _, high in self._lent))]
        return np.asarray(span)

    @property
    def is_viewed(self) -> bool:
        """Whether somebody has a view."""
        return bool(self._spans)

    @property
    def is_lent(self) -> bool:
        """Whether somebody has, or since the last `settle` had, a view that can be stored to."""
        return bool(self._lent)

    def overlaps(self, array: npt.NDArray[Any]) -> bool:
        """Whether some of the array lies in this range."""
        low, high = byte_bounds(array)
        return bool(low < self.base + self.size and high > self.base)

    # -- the range

    def reserve(self, length: int) -> None:
        """Have addresses for `length` bytes; raises MappingError when the range is full and in use."""
        if length <= self.size:
            return
        if self.size and not self._is_idle():
            raise MappingError(
                f"array {self.table.name}: {length} bytes, expected at most {self.size} in this session while "
                "views of it are in use, or stores are not committed; commit and let go of the views"
            )
        self.close()
        # all of the array: what is used of it next may be far behind
        whole = max(length, self.table.length)
        for room in (*self._rooms(whole), whole, length):
            try:
                self._reserve(self.grid.stop(self.grid.number(room)))
                break
            except MappingError:
                if room == length:
                    raise

    def _rooms(self, whole: int) -> Iterable[int]:
        """How many addresses are wanted beyond the array's own, the most first."""
        return max(whole * GROWTH, ROOM), whole * 2

    def _reserve(self, room: int) -> None:
        address = pages.reserve(room + ALIGNMENT)
        self.base = -(-address // ALIGNMENT) * ALIGNMENT
        self.size = room
        self._free = weakref.finalize(self, pages.release, address, room + ALIGNMENT)
        self._mapped = bytearray(self.grid.count(room))

    def _is_idle(self) -> bool:
        """Whether nobody would miss what is mapped: there is no view, and no store that is not committed."""
        return not (self._spans or self.drafts or self.written())

    def close(self) -> None:
        """Let go of the addresses; only when no view is in use."""
        if self._free is not None:
            self._free()
        self.base = self.size = 0
        self._keys, self._serials, self._copied, self._due = {}, {}, set(), set()

    # -- mapping

    def is_mapped(self, low: int, high: int) -> bool:
        """Whether all chunks that low <= position < high touches are."""
        numbers = self.grid.spanned(low, high)
        return high <= self.size and 0 not in self._mapped[numbers.start : numbers.stop]

    def ensure(self, low: int, high: int) -> None:
        """Map what is not mapped yet of the chunks that low <= position < high touches."""
        self.reserve(high)
        numbers = self.grid.spanned(low, high)
        if 0 not in self._mapped[numbers.start : numbers.stop]:
            return
        for first, stop in self._unmapped(numbers):
            self._zeros(first, stop)
            self._mapped[first:stop] = b"\1" * (stop - first)
            try:
                self._place(self.table.spread(first, stop))
            except BaseException:
                # what was mapped before stays; what failed is tried again at the next use
                self._zeros(first, stop)
                self._forget(range(first, stop))
                raise
        self._remember(numbers)

    def _unmapped(self, numbers: range) -> Iterator[tuple[int, int]]:
        at = numbers.start
        while at < numbers.stop:
            first = self._mapped.find(0, at, numbers.stop)
            if first < 0:
                return
            stop = self._mapped.find(1, first, numbers.stop)
            at = numbers.stop if stop < 0 else stop
            yield first, at

    def _forget(self, numbers: Iterable[int]) -> None:
        """What is mapped in these chunks is not what the table says."""
        for number in numbers:
            self._mapped[number] = 0
            self._keys.pop(number, None)
            self._copied.discard(number)

    def _zeros(self, first: int, stop: int) -> None:
        self._zero(self.grid.start(first), self.grid.stop(stop - 1))

    def _zero(self, low: int, high: int) -> None:
        """Zeros from one position (of a page) to another, whatever was mapped there."""
        length = high - low
        if self._method.reads_zeros_as_written:
            pages.map_private(self.base + low, length, self._nothing.room(low + length), low)
        else:
            pages.map_zeros(self.base + low, length)

    def _put(self, start: int, length: int, file: int, offset: int) -> None:
        """The file's bytes at a position (of a page)."""
        pages.map_private(self.base + start, length, file, offset)

    def _place(self, chunks: Iterable[tuple[int, tuple[Part, ...]]]) -> None:
        """Map chunks that have parts."""
        group: list[tuple[int, Part]] = []
        for number, parts in chunks:
            whole = _as_it_is(parts)
            if whole is None:
                self._copy(number, parts)
                continue
            if group and self._follows(group[-1], number, whole):
                group.append((number, whole))
            else:
                self._map(group)
                group = [(number, whole)]
        self._map(group)

    def _follows(self, last: tuple[int, Part], number: int, part: Part) -> bool:
        before, at = last[1], last[0]
        return (
            number == at + 1
            and part.holder is before.holder
            and before.length == self.grid.size(at)
            and part.offset == before.offset + before.length
        )

    def _map(self, group: list[tuple[int, Part]]) -> None:
        if not group:
            return
        (number, first), (_, last) = group[0], group[-1]
        end = last.offset + last.length
        with self.table.file(number, first.holder) as file:
            size = os.fstat(file.fileno()).st_size
            if size < end:
                found = next(at for at, part in group if part.offset + part.length > size)
                raise CorruptError(f"{self.table.what(found)}: its file has {size} bytes, expected {end}")
            start = self.grid.start(number)
            pages.claim()
            self._put(start, end - first.offset, file.fileno(), first.offset)
        start, stop = start + pages.up(end - first.offset), self.grid.stop(group[-1][0])
        if start < stop:
            # where a longer chunk was mapped before
            self._zero(start, stop)
        for at, part in group:
            self._keys[at] = (part.key,)
            self._copied.discard(at)

    def _copy(self, number: int, parts: tuple[Part, ...]) -> None:
        """Map a chunk from the spool, which may have the first of its parts already."""
        start, size = self.grid.start(number), self.grid.size(number)
        keys = tuple(part.key for part in parts)
        before = self._keys.pop(number, ()) if number in self._copied else ()
        known = len(before) if keys[: len(before)] == before else 0
        file = self._spool.room(start + size)
        if not known:
            write_all(file, bytes(size), start)
        for part in parts[known:]:
            write_all(file, self.table.fetch(number, part.holder, part.offset, part.length), start + part.at)
        if not known:
            pages.claim()
            self._put(start, size, file, start)
            self._copied.add(number)
        self._keys[number] = keys

    def _remember(self, numbers: range) -> None:
        """The revisions of the leaves that were read for these chunks."""
        for at in range(numbers.start // LEAF, -(-numbers.stop // LEAF)):
            if at not in self._serials and (revision := self.table.revision(at)) is not None:
                self._serials[at] = revision
        self._tail = self.table.tail

    # -- boundaries

    def sync(self, touched: Iterable[int] = ()) -> None:
        """Map what the table says now, where it differs. `touched` are chunks that this session changed."""
        if not self.size:
            return
        numbers = {*touched, *self._tail, *self._due}
        try:
            leaves = dict(self._changed_leaves())
            for at in leaves:
                numbers.update(range(at * LEAF, (at + 1) * LEAF))
            tail = self.table.tail
            self._remap(sorted(numbers.union(tail)))
        except BaseException:
            self._due.update(number for number in numbers if self._is_mapped(number))
            raise
        self._due, self._tail = set(), tail
        self._serials.update(leaves)

    def _changed_leaves(self) -> Iterator[tuple[int, bytes]]:
        """(number, revision) of the leaves that are not as they were at the last boundary."""
        for at, serial in self._serials.items():
            now = self.table.revision(at) or b""
            if now != serial:
                yield at, now
        for at in self.table.leaves():
            if at not in self._serials and any(self._mapped[at * LEAF : (at + 1) * LEAF]):
                yield at, self.table.revision(at) or b""

    def _remap(self, numbers: Iterable[int]) -> None:
        """Bring these chunks (sorted) to what the table says."""
        changed: dict[int, tuple[Part, ...]] = {}
        for first, stop in _ranges(number for number in numbers if self._is_mapped(number)):
            wanted = dict(self.table.spread(first, stop))
            for number in range(first, stop):
                parts = wanted.get(number, ())
                keys = tuple(part.key for part in parts)
                if number in self.drafts or not self._mapped[number] or keys != self._keys.get(number, ()):
                    changed[number] = parts
        try:
            for number, parts in changed.items():
                self.drafts.pop(number, None)
                if not parts:
                    self.clear(number, number + 1)
            self._place((number, parts) for number, parts in changed.items() if parts)
        except BaseException:
            self._forget(changed)
            self._due.update(changed)
            raise
        for number in changed:
            self._mapped[number] = 1

    def _is_mapped(self, number: int) -> bool:
        return number < len(self._mapped) and bool(self._mapped[number] or number in self._due)

    def clear(self, first: int, stop: int | None = None) -> list[int]:
        """Zeros in the mapped chunks first <= number < stop (all that follow, by default), whatever was in them;
        their numbers."""
        end = stop or len(self._mapped)
        numbers = sorted({*self._ones(first, end), *(number for number in self._due if first <= number < end)})
        for number in numbers:
            self._keys.pop(number, None)
            self._copied.discard(number)
            self.drafts.pop(number, None)
        for begin, end in _ranges(numbers):
            self._zeros(begin, end)
        return numbers

    def _ones(self, first: int, stop: int) -> Iterator[int]:
        """The chunks first <= number < stop that are mapped."""
        while (first := self._mapped.find(1, first, stop)) >= 0:
            yield first
            first += 1

    def attach(self, numbers: range, draft: Draft, offset: int) -> None:
        """Map chunks shared from a draft, which has them from `offset` on."""
        low, high = self.grid.start(numbers.start), self.grid.stop(numbers.stop - 1)
        self.reserve(high)
        pages.claim()
        pages.map_shared(self.base + low, high - low, draft.file, offset)
        self._mapped[numbers.start : numbers.stop] = b"\1" * len(numbers)
        for number in numbers:
            self.drafts[number] = draft, offset + self.grid.start(number) - low
            self._keys.pop(number, None)
            self._copied.discard(number)

    # -- stores

    def written(self) -> list[tuple[int, int]]:
        """The ranges of positions (whole pages) that were stored to and are in no draft."""
        found: list[tuple[int, int]] = []
        for low, high in self._stored_to():
            for first, stop in self._method.written(self.base + low, self.base + high):
                found.append((first - self.base, stop - self.base))
        return found

    def settle(self) -> None:
        """What was stored until now is committed or forgotten; only the views that are still there can store more, also
        when they are gone before anyone asks."""
        self._lent = [span.range for span in self._writable]

    def _stored_to(self) -> Iterator[tuple[int, int]]:
        """The ranges (whole pages, in order, apart) of all views that could be stored to: the kernel looks at each
        page of them, and at no others."""
        last = (0, 0)
        for low, high in sorted(self._lent):
            first, stop = low // pages.PAGE * pages.PAGE, pages.up(high)
            if first > last[1]:
                if last[1]:
                    yield last
                last = first, stop
            else:
                last = last[0], max(last[1], stop)
        if last[1]:
            yield last

    def drop(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Forget the stores in these ranges."""
        for low, high in ranges:
            pages.drop(self.base + low, high - low)


def _as_it_is(parts: tuple[Part, ...]) -> Part | None:
    """The one part that can be mapped from its file."""
    if len(parts) != 1 or parts[0].at or parts[0].offset % pages.PAGE or isinstance(parts[0].holder, Piece):
        return None
    return parts[0]


def _ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Sorted numbers as (first, stop) of consecutive ones."""
    first = stop = -1
    for number in numbers:
        if number != stop:
            if first < stop:
                yield first, stop
            first = number
        stop = number + 1
    if first < stop:
        yield first, stop


class _Unnamed:
    """A file without a name, made at first use; beside the lake's blobs where that is allowed."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file = -1
        self._size = 0

    def room(self, length: int) -> int:
        """Its descriptor; it is at least so long."""
        if self._file < 0:
            self._file = _unnamed(self._folder)
            weakref.finalize(self, os.close, self._file)
        if length > self._size:
            os.ftruncate(self._file, length)
            self._size = length
        return self._file


def _unnamed(folder: Path | None) -> int:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())
    except OSError:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
