"""Comparing every chunk's bytes with their checksum."""

from collections.abc import Iterator

from clachan_lake.arrays.drafts import checksum
from clachan_lake.arrays.table import Table
from clachan_lake.errors import CorruptError
from clachan_lake.format import Entry


def verify(table: Table) -> Iterator[str]:
    """The faults of all chunks and of the tail, as messages."""
    for number, entry in table.entries():
        yield from _faults(table, number, entry)
    at = table.start
    for entry in table.record.state.tail:
        yield from _faults(table, table.grid.number(at), entry)
        at += entry[2]


def _faults(table: Table, number: int, entry: Entry) -> Iterator[str]:
    holder, offset, length, known = entry
    try:
        found = checksum(table.fetch(number, holder, offset, length))
    except CorruptError as error:
        yield str(error)
        return
    if found != known:
        yield f"{table.what(number)}: {length} bytes with another checksum {found:016x}, expected {known:016x}"
