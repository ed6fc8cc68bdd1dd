"""The plain twin of an array of a lake, in memory: for tests of what works with arrays, without a folder.

It has no transactions: every change is there at once. As in a lake, what is new is zero and takes no memory until it is
stored to, and an ndarray that was taken of it stays a part of it while it grows.
"""

import json
import mmap
from collections.abc import Iterator, Mapping, MutableMapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from clachan_lake.arrays.array import check_shape, new_record, new_rows
from clachan_lake.attributes import json_text
from clachan_lake.interface import AnyArray, Array

NAME = "memory"
ROOM = 4 << 30
MOST = 1 << 45
GROWTH = 4
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)


class MemoryArray(Array):
    """As `lake.arrays.create`: zeros of a shape and dtype; raises what that raises."""

    def __init__(
        self,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike,
        order: str = "C",
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        record = new_record(NAME, shape, dtype, attrs or {}, chunk_bytes=None, order=order)
        self.name = NAME
        self._shape: tuple[int, ...] = record.state.shape
        self._dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(record.descr)
        self._order = order
        self._attrs = MemoryAttributes(record.attrs)
        self._bytes = _zeros(self.nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def order(self) -> str:
        return self._order

    @property
    def attrs(self) -> "MemoryAttributes":
        return self._attrs

    def read_rows(self, start: int, stop: int) -> AnyArray:
        shape = (*self.shape[: self.axis], stop - start, *self.shape[self.axis + 1 :]) if self.shape else ()
        offset = start * self.row_bytes
        order: Any = self.order
        if not prod(shape):
            return np.empty(shape, self.dtype, order=order)
        return np.ndarray(shape, self.dtype, self._bytes.data, offset, order=order)

    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None:
        self.read_rows(0, self.rows)[key] = value

    def append(self, rows: npt.ArrayLike) -> None:
        new, count = new_rows(self, rows), self.rows
        self.resize((*self.shape[: self.axis], count + new.shape[self.axis], *self.shape[self.axis + 1 :]))
        self.read_rows(count, self.rows)[...] = new

    def resize(self, *shape: Any) -> None:
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        sizes, before = check_shape(self.name, tuple(wanted), self.dtype), self.nbytes
        length = prod(sizes) * self.dtype.itemsize
        if length > len(self._bytes):
            grown = _zeros(length)
            grown[:before] = self._bytes[:before]
            self._bytes = grown
        self._bytes[length:before] = 0
        self._shape = sizes


class MemoryAttributes(MutableMapping[str, Any]):
    """JSON values by name, as a lake keeps them: a list or dict is a copy, to be assigned anew."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __getitem__(self, key: str) -> Any:
        return json.loads(self._text)[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._text = json_text(f"array {NAME}", {**self, key: value})

    def __delitem__(self, key: str) -> None:
        rest = dict(self)
        del rest[key]
        self._text = json.dumps(rest)

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(self._text))

    def __len__(self) -> int:
        return len(json.loads(self._text))

    def __repr__(self) -> str:
        return f"MemoryAttributes({dict(self)!r})"


def _zeros(length: int) -> npt.NDArray[np.uint8]:
    """At least so many bytes, with addresses to grow; only what is stored to takes memory."""
    room = max(min(length * GROWTH, MOST), length, ROOM)
    return np.frombuffer(mmap.mmap(-1, room, flags=PRIVATE), np.uint8)
