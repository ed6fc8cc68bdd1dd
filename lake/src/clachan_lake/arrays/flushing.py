"""What a transaction stored, as entries: the step before the database's commit, and at each savepoint."""

from collections.abc import Iterator
from contextlib import ExitStack

from ZODB.blob import Blob

from clachan_lake.arrays.drafts import Base, checksum, runs
from clachan_lake.arrays.opened import OpenArray
from clachan_lake.arrays.pages import PAGE, up
from clachan_lake.arrays.table import now
from clachan_lake.format import Change, Entry

Ranges = list[tuple[int, int]]


def flush(array: OpenArray) -> bool:
    """Make entries of the array's stores; whether there were some. When it raises, the transaction must be aborted."""
    if not array.is_touched:
        return False
    written = array.written()
    if array.record.state.tail and _tail_is_changed(array, written):
        array.settle()
    chunks = _changed_chunks(array, written)
    pending = array.table.covered < array.nbytes
    if not (chunks or pending or array.whole or array.appended or array.described):
        array.region.drop(written)
        return False
    _store(array, chunks, pending, written)
    array.wrote |= bool(chunks) or array.described
    _note(array)
    array.region.drop(written)
    array.region.sync(array.touched)
    array.drafts, array.rewritten = [], set()
    array.region.settle()
    return True


def _note(array: OpenArray) -> None:
    state = array.record.state
    change: Change = "whole" if array.whole else "write" if array.wrote else "append"
    state.change = change
    state.wholes += array.whole
    state.modified = now()


def _store(array: OpenArray, chunks: list[int], pending: bool, written: Ranges) -> None:
    blobs = {}
    kept = {id(draft): draft for draft, _offset in array.region.drafts.values()}
    for draft in array.drafts:
        if id(draft) in kept:
            blobs[id(draft)] = draft.publish(array.writer.jar)
        else:
            draft.discard()
    drafted = {number: (blobs[id(draft)], offset) for number, (draft, offset) in array.region.drafts.items()}
    _store_chunks(array, chunks, drafted, written)
    if pending:
        array.record.state.tail += tuple(_pending_entries(array, drafted))
    array.touched.update(drafted)


Drafted = dict[int, tuple[object, int]]


def _store_chunks(array: OpenArray, numbers: list[int], drafted: Drafted, written: Ranges) -> None:
    grid, region, limit = array.table.grid, array.region, array.table.start
    array.touched.update(numbers)
    for number in numbers:
        if number in drafted:
            data = region.raw(grid.start(number), min(grid.stop(number), limit), False)
            array.table.put(number, (*drafted[number], len(data), checksum(data)))
    plain = [number for number in numbers if number not in drafted]
    for run in runs(plain, grid.size):
        parts = [region.raw(grid.start(number), min(grid.stop(number), limit), False) for number in run]
        with ExitStack() as files:
            bases = [_base(array, number, written, files) for number in run] if array.writer.clones else []
            entries = array.writer.extent(parts, bases)
        for number, entry in zip(run, entries, strict=True):
            array.table.put(number, entry)


def _base(array: OpenArray, number: int, written: Ranges, files: ExitStack) -> Base | None:
    """What the chunk is a changed copy of, where its bytes are the same but for the written pages."""
    grid, entry = array.table.grid, array.table.entry(number)
    start, stop = grid.start(number), min(grid.stop(number), array.table.start)
    if entry is None or not isinstance(entry[0], Blob) or entry[2] != stop - start or number in array.rewritten:
        return None
    file = files.enter_context(array.table.file(number, entry[0]))
    changed = [(max(low, start) - start, min(high, stop) - start) for low, high in written]
    return Base(file.fileno(), entry[1], [(low, high) for low, high in changed if low < high])


def _pending_entries(array: OpenArray, drafted: Drafted) -> Iterator[Entry]:
    """Of what was appended, in order: a draft's chunks as they are, the rest by chunk."""
    grid, region = array.table.grid, array.region
    for number, low, high in grid.clipped(array.table.covered, array.nbytes):
        region.ensure(low, high)
        data = region.raw(low, high, False)
        array.touched.add(number)
        if number in drafted and low == grid.start(number):
            yield (*drafted[number], len(data), checksum(data))
        else:
            yield array.writer.small(data)


def _changed_chunks(array: OpenArray, written: Ranges) -> list[int]:
    """The chunks in front of the tail that differ from what is committed, or may."""
    grid, limit = array.table.grid, array.table.start
    numbers = set(array.rewritten)
    for low, high in _changed(array, written, 0, limit):
        numbers.update(grid.spanned(low, high))
    numbers.update(number for number in array.region.drafts if grid.start(number) < limit)
    return sorted(number for number in numbers if grid.start(number) < limit)


def _tail_is_changed(array: OpenArray, written: Ranges) -> bool:
    grid, low, high = array.table.grid, array.table.start, array.table.covered
    if any(grid.start(number) < high and grid.stop(number) > low for number in array.region.drafts):
        return True
    return any(True for _range in _changed(array, written, low, high))


def _changed(array: OpenArray, written: Ranges, low: int, high: int) -> Iterator[tuple[int, int]]:
    """The written ranges inside low <= position < high. A page that reaches over one of these edges may have been
    stored to on the other side only: it counts when its bytes on this side differ from the committed ones."""
    for begin, end in written:
        first, stop = max(begin, low), min(end, high)
        if first < stop and begin < low and _is_as_committed(array, first, min(up(low), stop)):
            first = min(up(low), stop)
        if first < stop and end > high and _is_as_committed(array, max(high // PAGE * PAGE, first), stop):
            stop = max(high // PAGE * PAGE, first)
        if first < stop:
            yield first, stop


def _is_as_committed(array: OpenArray, low: int, high: int) -> bool:
    return bool(array.region.raw(low, high, False).tobytes() == array.table.read(low, high))
