"""What all formats share: blocks of an array as bytes, and telling how far it is."""

from collections.abc import Callable, Iterator

import numpy as np

from clachan_lake.arrays.array import LocalArray
from clachan_lake.errors import CorruptError
from clachan_lake.interface import AnyArray, Array, memory

BLOCK_BYTES = 16 << 20
Tell = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes of all."""


def silent(_done: int, _total: int) -> None:
    """Tells nobody."""


def rows_of(
    array: Array, size: int = BLOCK_BYTES, multiple: int = 1, *, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, AnyArray]]:
    """(first row, rows) of about `size` bytes, `multiple` rows at a time or more."""
    step = max(1, size // max(1, array.row_bytes) // multiple) * multiple
    if not start and stop is None:
        yield from array.blocks(step * array.row_bytes) if array.nbytes else ()
        return
    end = array.rows if stop is None else stop
    for first in range(start, end if array.nbytes else start, step):
        yield first, array.read_rows(first, min(first + step, end))


def chunk_shape(array: Array, size: int) -> tuple[int, ...]:
    """Of about `size` bytes: long along the axes that lie together in memory."""
    room = max(1, size // array.dtype.itemsize)
    lengths: list[int] = []
    for length in array.shape if array.order == "F" else reversed(array.shape):
        lengths.append(max(1, min(length, room)))
        room //= lengths[-1]
    return tuple(lengths if array.order == "F" else reversed(lengths))


def in_order(rows: AnyArray, order: str) -> memoryview:
    """The bytes of rows as they lie in an array of this order."""
    return memory(np.ascontiguousarray(rows.T if order == "F" else rows))


def check(array: Array) -> None:
    """Compare every chunk with its checksum, where the lake's chunks are at hand; raises CorruptError."""
    for fault in array.verify() if isinstance(array, LocalArray) else ():
        raise CorruptError(f"{fault}; nothing was written")
