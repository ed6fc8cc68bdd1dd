"""Moving the tail's bytes into chunks, in a transaction of its own: nothing that anyone reads changes by it.

It is done after a commit, when the tail has become as long as some chunks or has many pieces. An append that another
session commits at the same time goes with it; when two sessions fold at once, one of them gives up.
"""

from collections.abc import Iterator

import numpy as np

from clachan_lake.arrays.drafts import Writer, checksum
from clachan_lake.arrays.pages import PAGE
from clachan_lake.arrays.table import Table
from clachan_lake.format import Entry

PIECES = 256
CHUNKS = 4
"""A tail of so many is moved: what is appended in parts about as long as a chunk would else be two commits each."""


def is_due(table: Table) -> bool:
    """Whether the tail is long enough."""
    state = table.record.state
    if not state.tail:
        return False
    number = table.grid.number(table.start)
    return len(state.tail) >= PIECES or table.covered >= table.grid.stop(number + CHUNKS - 1)


def fold(table: Table, writer: Writer) -> None:
    """Put the tail's bytes into chunks: the whole chunks, or where they have too many pieces all."""
    state, grid = table.record.state, table.grid
    covered = table.covered
    stop = grid.start(grid.number(covered)) if covered else 0
    if stop <= table.start or len(list(table.tail_parts(stop, covered))) >= PIECES:
        stop = covered
    for number in grid.spanned(table.start, stop):
        table.put(number, _entry(table, writer, number, min(grid.stop(number), stop)))
    state.tail = tuple(_rest(table, stop, covered))
    state.start = stop
    state.change = "fold"


def _entry(table: Table, writer: Writer, number: int, stop: int) -> Entry:
    """The chunk's entry: one of the tail as it is, where it has exactly the chunk's bytes."""
    start = table.grid.start(number)
    for at, entry in table.tail_parts(start, stop):
        if at == start and entry[2] == stop - start and entry[1] % PAGE == 0 and _is_whole(table, entry):
            return entry
    data = np.frombuffer(table.read(start, stop), np.uint8)
    return writer.extent([data])[0]


def _is_whole(table: Table, part: Entry) -> bool:
    """Whether these bytes are an entry of the tail, not a part of one: then its checksum is theirs."""
    return any(entry[0] is part[0] and entry[1:] == part[1:] for entry in table.record.state.tail)


def _rest(table: Table, low: int, high: int) -> Iterator[Entry]:
    for at, part in table.tail_parts(low, high):
        holder, offset, length, _known = part
        whole = _is_whole(table, part)
        yield part if whole else (holder, offset, length, checksum(table.read(at, at + length)))
