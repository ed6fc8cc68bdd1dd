"""An array that a session works with: reads and stores in its region, and what is to be committed of them.

Three zones follow each other in the array's bytes: what is in chunks (up to the table's `start`), the tail (up to its
`covered`), and what this transaction appended. Stores into the first become chunks again, what was appended becomes
more of the tail; a store into the tail, or another shape, turns all of it into chunks (`settle`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clachan_lake.arrays.drafts import Bytes, Draft, Writer, draft_blocks, runs
from clachan_lake.arrays.region import Region
from clachan_lake.arrays.table import Table
from clachan_lake.errors import LakeError
from clachan_lake.format import EXTENT_BYTES, ArrayRecord

AnyArray = npt.NDArray[Any]
Changes = tuple[bool, bool, bool, bool]
USES = 16
BLOCK_BYTES = 1 << 20
ALL_BYTES = 1 << 40


class OpenArray:
    def __init__(self, record: ArrayRecord, jar: Any, drafts: Path | None) -> None:
        self.record = record
        self.name = str(record.name)
        self.table = Table(record)
        self.region = Region(self.table, drafts)
        self.writer = Writer(jar, drafts)
        self.dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(record.descr)
        self.drafts: list[Draft] = []
        self.rewritten: set[int] = set()
        """Chunks to be written whatever the kernel says of their pages."""
        self.touched: set[int] = set()
        """Chunks whose mapping or entry this transaction changed; until it ends, as it may return to each savepoint."""
        self.whole = False
        self.wrote = False
        self.appended = False
        self.described = False
        """Its attributes were changed."""
        self._all: dict[bool, AnyArray] = {}
        self._uses = 0

    # -- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.record.state.shape)

    @property
    def axis(self) -> int:
        """The one along which rows lie behind each other: the first, or the last in order F."""
        return int(self.record.state.axis)

    @property
    def rows(self) -> int:
        return self.shape[self.axis] if self.shape else 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    @property
    def row_bytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.row_shape:
            size *= length
        return size

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    # -- views

    def everything(self, writable: bool) -> AnyArray | None:
        """The whole array as one view, once it is used so often that mapping all of it pays; None until then, and when
        it cannot be mapped."""
        found = self._all.get(writable)
        if found is not None and found.shape == self.record.state.shape:
            return found
        self._uses += 1
        if self._uses != USES:
            return None
        self._uses = 0
        if not 0 < self.nbytes <= ALL_BYTES:
            return None
        try:
            self._all[writable] = self.view(0, self.rows, writable)
        except LakeError:
            return None
        return self._all[writable]

    def view(self, start: int, stop: int, writable: bool) -> AnyArray:
        """The rows start <= i < stop of the growing axis: a numpy array onto the mapped bytes."""
        low, high = start * self.row_bytes, stop * self.row_bytes
        raw = self.region.view(low, high, writable)
        return self._shaped(raw, stop - start, writable)

    def _shaped(self, raw: Bytes, count: int, writable: bool) -> AnyArray:
        shape = self.shape
        if shape:
            shape = (*shape[: self.axis], count, *shape[self.axis + 1 :])
        order: Any = self.record.order
        if len(raw):
            return np.ndarray(shape, self.dtype, buffer=raw, order=order)
        empty = np.empty(shape, self.dtype, order=order)
        empty.flags.writeable = writable
        return empty

    # -- stores

    def overwrite(self, start: int, stop: int, values: AnyArray) -> None:
        """Store whole rows; `values` has their shape. Chunks that lie in them are not read: they go to a draft, and
        take its place when all values are converted."""
        low, high = start * self.row_bytes, stop * self.row_bytes
        inside = [number for number in self.table.grid.inside(low, high) if number not in self.region.drafts]
        if not inside or self.writer.folder is None or not self._is_consecutive(inside):
            self.view(start, stop, True)[...] = values
            return
        if self._is_in_place(values, low):
            return
        if self.region.overlaps(values):
            values = values.copy("K")
        edges = (low, self.table.grid.start(inside[0])), (self.table.grid.stop(inside[-1]), high)
        self.region.reserve(high)
        for a, b in edges:
            self.region.ensure(a, b)
        known = self._continued(inside[0])
        room = EXTENT_BYTES - (known.size if known else 0)
        groups = [range(run[0], run[-1] + 1) for run in runs(inside, self.table.grid.size, room)]
        spans = [(self.table.grid.start(group.start), self.table.grid.stop(group.stop - 1)) for group in groups]
        placed, rest = draft_blocks(self.writer.folder, spans, self._blocks(values), low, known)
        self.drafts += [draft for draft, _offset in placed if draft is not known]
        for numbers, (draft, offset) in zip(groups, placed, strict=True):
            self._attach(numbers, draft, offset)
        for at, data in rest:
            self.region.view(at, at + len(data), True)[:] = data

    def _continued(self, number: int) -> Draft | None:
        """The last draft, when this chunk comes right behind its end: one long file is read faster than many."""
        draft, offset = self.region.drafts.get(number - 1, (None, 0))
        if draft is None or draft is not self.drafts[-1] or offset + self.table.grid.size(number - 1) != draft.size:
            return None
        return draft if draft.size + self.table.grid.size(number) <= EXTENT_BYTES else None

    def _is_consecutive(self, numbers: list[int]) -> bool:
        return numbers[-1] - numbers[0] + 1 == len(numbers)

    def _is_in_place(self, values: AnyArray, low: int) -> bool:
        """Whether the values are a view of where they are to go, as in `a[:] += 1`."""
        return values.ctypes.data == self.region.base + low and self._bytes(values) is not None

    def _bytes(self, values: AnyArray) -> Bytes | None:
        """The values' bytes as they would lie in the array; None when they must be converted."""
        lying = values.T if self.record.order == "F" else values
        if values.dtype != self.dtype or not lying.flags.c_contiguous:
            return None
        return lying.reshape(-1).view(np.uint8)

    def _blocks(self, values: AnyArray) -> Iterator[Bytes]:
        """The values' bytes as they would lie in the array, some at a time; each block is good until the next."""
        source = self._bytes(values)
        if source is not None:
            yield source
            return
        order: Any = self.record.order
        contiguous: Any = [["readonly", "contig"]]
        blocks = np.nditer(
            [values],
            ["external_loop", "buffered", "zerosize_ok"],
            contiguous,
            [self.dtype],
            order,
            "unsafe",
            buffersize=max(1, BLOCK_BYTES // self.dtype.itemsize),
        )
        for block in blocks:
            yield np.ascontiguousarray(block).view(np.uint8)

    def _attach(self, numbers: range, draft: Draft, offset: int) -> None:
        self.region.attach(numbers, draft, offset)
        # the mapping stays; a transaction may have more drafts than a process open files
        draft.close()
        self.touched.update(numbers)
        self.rewritten.difference_update(numbers)

    def append(self, values: AnyArray) -> None:
        """Add rows behind the last; their other axes are the array's."""
        before, count = self.shape, self.rows
        added = values.shape[self.axis]
        self._reshape((*before[: self.axis], count + added, *before[self.axis + 1 :]))
        self.appended = True
        self._all = {}
        try:
            self.region.reserve(self.nbytes)
            self.overwrite(count, count + added, values)
        except BaseException:
            self._reshape(before)
            raise

    def _reshape(self, shape: tuple[int, ...]) -> None:
        self.record.state.shape = shape

    def resize(self, shape: tuple[int, ...]) -> None:
        """Another shape of the same bytes, cut or followed by zeros."""
        before = self.nbytes
        self._all = {}
        self.settle()
        axis = self.axis if self.record.order == "C" else max(0, len(shape) - 1)
        length = self.dtype.itemsize
        for one in shape:
            length *= one
        if length < before:
            self._cut(length, before)
        self.record.state.axis = axis
        self._reshape(shape)
        self.record.state.start = length
        self.table.prepare(length)

    def settle(self) -> None:
        """All that is behind the chunks becomes chunks, when this transaction commits."""
        state = self.record.state
        if state.tail:
            numbers = self.table.grid.spanned(self.table.start, self.table.covered)
            self.region.ensure(self.table.start, self.table.covered)
            self.rewritten.update(number for number in numbers if number not in self.region.drafts)
            self.touched.update(numbers)
            state.tail = ()
        state.start = self.nbytes
        self.whole = True

    def _cut(self, length: int, before: int) -> None:
        grid = self.table.grid
        count = grid.count(length)
        if count and grid.stop(count - 1) > length:
            rest = self.region.view(length, min(grid.stop(count - 1), before), True)
            if rest.any():
                rest[:] = 0
                self.rewritten.add(count - 1)
                self.touched.add(count - 1)
        self.table.cut(count)
        self.touched.update(self.region.clear(count))
        self.rewritten = {number for number in self.rewritten if number < count}

    # -- boundaries

    @property
    def changes(self) -> Changes:
        """What the transaction did, for a savepoint to return to: (whole, wrote, appended, described)."""
        return self.whole, self.wrote, self.appended, self.described

    @changes.setter
    def changes(self, changes: Changes) -> None:
        self.whole, self.wrote, self.appended, self.described = changes

    @property
    def is_touched(self) -> bool:
        """Whether there may be something to commit."""
        return (
            self.region.is_lent or self.whole or self.appended or self.described or bool(self.drafts or self.rewritten)
        )

    def written(self) -> list[tuple[int, int]]:
        """Ranges of positions that were stored to."""
        return self.region.written() if self.region.size else []

    def discard(self) -> None:
        """After an abort, or a return to a savepoint: what the record says now is what is there."""
        self.region.drop(self.written())
        for draft in self.drafts:
            draft.discard()
        self.finish()

    def finish(self) -> None:
        """Nothing is left to commit; what is mapped is what the record says."""
        self._all = {}
        self.region.sync(self.touched | self.rewritten | self.region.drafts.keys())
        self.drafts, self.rewritten = [], set()
        self.region.settle()
        self.whole = self.wrote = self.appended = self.described = False

    def stray(self) -> int:
        """Bytes (whole pages) that were stored outside a transaction, through a view that was kept; forgets them."""
        self._all.pop(True, None)
        ranges = self.written()
        self.region.drop(ranges)
        self.region.settle()
        return sum(high - low for low, high in ranges)
