"""Arrays of a local lake: the interface over `chunks`."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clachan_lake.arrays import chunks
from clachan_lake.arrays.index import plan
from clachan_lake.format import ArrayRecord
from clachan_lake.interface import AnyArray, Array, memory


def new_record(
    name: str, shape: int | tuple[int, ...], dtype: npt.DTypeLike, attrs: Mapping[str, Any], chunk_bytes: int
) -> ArrayRecord:
    """A record of zeros; raises TypeError for a dtype with objects, ValueError for a shape or size that cannot be."""
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"array {name}, dtype: {kind}, expected one without Python objects")
    sizes = tuple(int(n) for n in shape) if isinstance(shape, tuple | list) else (int(shape),)
    if any(n < 0 for n in sizes) or kind.itemsize == 0:
        raise ValueError(
            f"array {name}, shape and dtype: {sizes} of {kind}, expected sizes of at least 0 and some bytes"
        )
    if not 4096 <= chunk_bytes <= 1 << 30:
        raise ValueError(f"array {name}, chunk_bytes: {chunk_bytes}, expected 4096 to {1 << 30}")
    descr = np.lib.format.dtype_to_descr(kind)
    now = time.time_ns() // 10**6
    return ArrayRecord(name, shape=sizes, descr=descr, chunk_bytes=chunk_bytes, attrs=_json(name, attrs), now=now)


class LocalArray(Array):
    def __init__(self, record: ArrayRecord, writing: Callable[[str], None]) -> None:
        self._record = record
        self._writing = writing
        self.name = record.name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._record.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.lib.format.descr_to_dtype(self._record.descr)

    @property
    def attrs(self) -> "Attributes":
        return Attributes(self._record, self._writing)

    def read_rows(self, start: int, stop: int) -> AnyArray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if out.nbytes:
            chunks.read(self._record, start * self.row_bytes, memory(out))
        return out

    def _read_all(self) -> AnyArray:
        if self.shape:
            return self.read_rows(0, len(self))
        out = np.empty((), self.dtype)
        chunks.read(self._record, 0, memory(out))
        return out

    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None:
        self._write("write")
        if not self.shape:
            whole = self._read_all()
            whole[key] = value
            chunks.write(self._record, 0, memory(whole))
            return
        start, stop, rest = plan(key, self.shape)
        rows = self.read_rows(start, stop)
        rows[rest] = value
        if rows.nbytes:
            chunks.write(self._record, start * self.row_bytes, memory(rows))

    def append(self, rows: npt.ArrayLike) -> None:
        self._write("append")
        new = np.ascontiguousarray(np.asarray(rows).astype(self.dtype, casting="same_kind", copy=False))
        if not self.shape or new.shape[1:] != self.shape[1:] or new.ndim != self.ndim:
            raise ValueError(f"array {self.name}, appended rows: shape {new.shape}, expected (n, *{self.shape[1:]})")
        if new.nbytes:
            chunks.write(self._record, self.nbytes, memory(new))
        self._record.shape = (len(self) + len(new), *self.shape[1:])

    def resize(self, *shape: int) -> None:
        self._write("resize")
        if not self.shape or shape[1:] != self.shape[1:] or len(shape) != self.ndim or shape[0] < 0:
            raise ValueError(f"array {self.name}, new shape: {shape}, expected (n, *{self.shape[1:]})")
        if shape[0] < len(self):
            chunks.cut(self._record, shape[0] * self.row_bytes)
        self._record.shape = shape

    def verify(self) -> list[str]:
        """Faults found by reading every chunk, as messages; none when all checksums hold."""
        return chunks.verify(self._record)

    def _write(self, what: str) -> None:
        self._writing(f"array {self.name}: {what}")
        self._record.modified = time.time_ns() // 10**6


class Attributes(MutableMapping[str, Any]):
    """JSON values by name. A change belongs to a transaction; a list or dict is a copy: assign it anew to change it."""

    def __init__(self, record: ArrayRecord, writing: Callable[[str], None]) -> None:
        self._record = record
        self._writing = writing

    def __getitem__(self, key: str) -> Any:
        return json.loads(self._record.attrs)[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._store({**self, key: value})

    def __delitem__(self, key: str) -> None:
        rest = dict(self)
        del rest[key]
        self._store(rest)

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(self._record.attrs))

    def __len__(self) -> int:
        return len(json.loads(self._record.attrs))

    def __repr__(self) -> str:
        return f"Attributes({json.loads(self._record.attrs)!r})"

    def _store(self, values: dict[str, Any]) -> None:
        self._writing(f"array {self._record.name}: set attributes")
        self._record.attrs = _json(self._record.name, values)


def _json(name: str, attrs: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(attrs), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"array {name}, attributes: {error}, expected JSON values") from error
