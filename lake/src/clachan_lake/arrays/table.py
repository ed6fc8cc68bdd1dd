"""Where an array's bytes are: the entries of its chunks and of its tail."""

import time
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from ZODB.blob import Blob
from ZODB.POSException import POSKeyError

from clachan_lake.arrays.grid import Grid
from clachan_lake.errors import CorruptError, FormatError
from clachan_lake.format import LEAF, ArrayRecord, Entry, Leaf, Piece

PREPARED_LEAVES = 4096


class Part(NamedTuple):
    """Some bytes of a chunk: at `at` in the chunk stand the `length` bytes of the holder from `offset` on."""

    at: int
    holder: Any
    offset: int
    length: int

    @property
    def key(self) -> tuple[int, bytes, int, int]:
        """Tells parts with the same bytes in the same place: a holder is never written again."""
        return self.at, self.holder._p_oid, self.offset, self.length


def now() -> int:
    return time.time_ns() // 10**6


class Table:
    """The entries of one record, as the record's session sees them."""

    def __init__(self, record: ArrayRecord) -> None:
        if "state" not in record.__dict__ and not _is_current(record):
            raise FormatError("array: of format 1, expected format 2; open the lake for writing once to migrate it")
        self.record = record
        self.grid = Grid(record.chunk_bytes, record.grown_bytes)

    @property
    def name(self) -> str:
        return str(self.record.name)

    @property
    def length(self) -> int:
        """Bytes of the array, also of what is not committed yet."""
        kind = np.lib.format.descr_to_dtype(self.record.descr)
        return int(prod(self.record.state.shape) * kind.itemsize)

    # -- chunks

    def entry(self, number: int) -> Entry | None:
        leaf = self.record.leaves.get(number // LEAF)
        return None if leaf is None else leaf.slots.get(number)

    def entries(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, Entry]]:
        """(number, entry) of the chunks first <= number < stop that have one, in order."""
        last = None if stop is None else (stop - 1) // LEAF
        for leaf in self.record.leaves.values(min=first // LEAF, max=last):
            for number, entry in sorted(leaf.slots.items()):
                if number >= first and (stop is None or number < stop):
                    yield number, entry

    def leaves(self) -> Iterator[int]:
        return iter(self.record.leaves)

    def revision(self, leaf: int) -> bytes | None:
        """Of a leaf, the id of the commit that wrote it; None when it is not there."""
        found = self.record.leaves.get(leaf)
        if found is None:
            return None
        found._p_activate()
        return bytes(found._p_serial)

    def put(self, number: int, entry: Entry) -> None:
        leaf = self.record.leaves.get(number // LEAF)
        if leaf is None:
            leaf = self.record.leaves[number // LEAF] = Leaf()
        leaf.slots[number] = entry
        leaf._p_changed = True

    def cut(self, count: int) -> None:
        """Forget the chunks from number `count` on."""
        for at in list(self.record.leaves.keys(min=count // LEAF)):
            leaf = self.record.leaves[at]
            kept = {number: entry for number, entry in leaf.slots.items() if number < count}
            if len(kept) != len(leaf.slots):
                leaf.slots = kept

    def prepare(self, length: int) -> None:
        """Make the leaves for `length` bytes, so that two writers of different chunks never both make one. An array
        beyond `PREPARED_LEAVES` (2 TiB) gets those behind when they are first written."""
        for at in range(min(-(-self.grid.count(length) // LEAF), PREPARED_LEAVES)):
            if at not in self.record.leaves:
                self.record.leaves[at] = Leaf()

    # -- the tail

    @property
    def start(self) -> int:
        return int(self.record.state.start)

    @property
    def covered(self) -> int:
        """Position behind the last byte of the tail."""
        return self.start + sum(entry[2] for entry in self.record.state.tail)

    @property
    def tail(self) -> range:
        """The chunks that have some of it."""
        return self.grid.spanned(self.start, self.covered)

    def tail_parts(self, low: int, high: int) -> Iterator[tuple[int, Entry]]:
        """(position, entry) of the tail's bytes in low <= position < high, cut to them."""
        at = self.start
        for holder, offset, length, checksum in self.record.state.tail:
            if at >= high:
                return
            first, last = max(at, low), min(at + length, high)
            if first < last:
                yield first, (holder, offset + first - at, last - first, checksum)
            at += length

    def parts(self, number: int) -> tuple[Part, ...]:
        """What a chunk's bytes are made of; the rest of it is zero."""
        return dict(self.spread(number, number + 1)).get(number, ())

    def spread(self, first: int, stop: int) -> Iterator[tuple[int, tuple[Part, ...]]]:
        """(number, parts) of the chunks first <= number < stop that have some, in order."""
        tail = self.tail
        for number, entry in self.entries(first, min(stop, tail.start) if tail else stop):
            yield number, (Part(0, *entry[:3]),)
        for number in range(max(first, tail.start), min(stop, tail.stop)):
            yield number, tuple(self._mixed(number))
        if tail:
            for number, entry in self.entries(max(first, tail.stop), stop):
                yield number, (Part(0, *entry[:3]),)

    def _mixed(self, number: int) -> Iterator[Part]:
        begin = self.grid.start(number)
        entry = self.entry(number)
        if entry is not None:
            yield Part(0, *entry[:3])
        for at, piece in self.tail_parts(begin, self.grid.stop(number)):
            yield Part(at - begin, *piece[:3])

    def read(self, low: int, high: int) -> bytes:
        """The committed bytes from `low` to `high`; raises CorruptError when a file is missing or too short."""
        out = bytearray(high - low)
        for number, first, last in self.grid.clipped(low, high):
            for part in self.parts(number):
                begin = self.grid.start(number) + part.at
                a, b = max(begin, first), min(begin + part.length, last)
                if a < b:
                    out[a - low : b - low] = self.fetch(number, part.holder, part.offset + a - begin, b - a)
        return bytes(out)

    def fetch(self, number: int, holder: Any, offset: int, length: int) -> bytes:
        """Bytes of a holder, which belong to the chunk."""
        if isinstance(holder, Piece):
            data = bytes(holder.data[offset : offset + length])
        else:
            with self.file(number, holder) as file:
                file.seek(offset)
                data = file.read(length)
        if len(data) != length:
            raise CorruptError(f"{self.what(number)}: {len(data)} bytes, expected {length}")
        return data

    def file(self, number: int, blob: Blob) -> Any:
        """The open file of an extent; raises CorruptError that names the chunk when it is missing."""
        try:
            return blob.open("r")
        except (POSKeyError, FileNotFoundError) as error:
            raise CorruptError(f"{self.what(number)}: its file is missing ({error})") from error

    def what(self, number: int) -> str:
        return f"array {self.record.name}, chunk {number}"


def _is_current(record: ArrayRecord) -> bool:
    record._p_activate()
    return "state" in record.__dict__
