"""Putting scattered neighbours into one extent again: fewer mappings, and longer reads."""

from collections.abc import Iterator

import numpy as np

from clachan_lake.arrays.drafts import Writer, runs
from clachan_lake.arrays.table import Table
from clachan_lake.format import Entry

SCATTERED = 8


def scattered(table: Table) -> Iterator[list[int]]:
    """Runs of consecutive chunks, of one extent's size, that lie in more pieces than one for each `SCATTERED`."""
    entries = dict(table.entries())
    for run in runs(sorted(entries), table.grid.size):
        pieces = 1 + sum(not _follows(entries[at], entries[at + 1]) for at in run[:-1])
        if pieces > max(1, len(run) // SCATTERED):
            yield run


def merge(table: Table, writer: Writer, numbers: list[int]) -> int:
    """Write these chunks, but those that are no more, into one extent, and say how many; the transaction is the
    caller's. Raises CorruptError."""
    known = {number: entry for number in numbers if (entry := table.entry(number)) is not None}
    parts = [np.frombuffer(table.fetch(number, *entry[:3]), np.uint8) for number, entry in known.items()]
    for number, entry in zip(known, writer.extent(parts) if parts else (), strict=True):
        table.put(number, entry)
    return len(known)


def _follows(before: Entry, entry: Entry) -> bool:
    return entry[0] is before[0] and entry[1] == before[1] + before[2]
