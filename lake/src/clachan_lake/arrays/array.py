"""Arrays of a local lake: the interface over what a session has open."""

from collections.abc import Mapping
from datetime import datetime
from math import prod
from operator import index
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clachan_lake.arrays import verifying
from clachan_lake.arrays.index import plan, takes_all
from clachan_lake.arrays.layout import Layout, layout
from clachan_lake.arrays.opened import OpenArray
from clachan_lake.arrays.table import now
from clachan_lake.attributes import Attributes, json_text
from clachan_lake.format import CHUNK_BYTES, GROWN_BYTES, ArrayRecord, ArrayState
from clachan_lake.interface import AnyArray, Array, Revision

MAXIMUM_BYTES = 1 << 46


class Session(Protocol):
    """What an array needs of its lake."""

    @property
    def active(self) -> bool:
        """Whether a transaction is open."""

    def writing(self, what: str) -> None:
        """Raises TransactionError outside a transaction."""

    def writing_to(self, opened: OpenArray, what: str) -> None:
        """And MissingError for an array that is deleted."""

    def array_at(self, name: str, when: str | datetime) -> Array: ...

    def history_of(self, record: ArrayRecord, limit: int) -> list[Revision]: ...

    def merge(self, record: ArrayRecord) -> int: ...

    def now(self) -> str: ...

    @property
    def address(self) -> tuple[str, str | None] | None:
        """Where another process finds the lake."""


def new_record(
    name: str,
    shape: int | tuple[int, ...],
    dtype: npt.DTypeLike,
    attrs: Mapping[str, Any],
    *,
    chunk_bytes: int | None,
    order: str,
) -> ArrayRecord:
    """A record of zeros; raises TypeError for a dtype with objects, ValueError for a shape or size that cannot be."""
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"array {name}, dtype: {kind}, expected one without Python objects")
    if order not in {"C", "F"}:
        raise ValueError(f"array {name}, order: {order!r:.80}, expected C or F")
    sizes = check_shape(name, shape, kind)
    small, large = _chunks(name, chunk_bytes)
    axis = len(sizes) - 1 if order == "F" and sizes else 0
    state = ArrayState(sizes, axis, prod(sizes) * kind.itemsize, now())
    return ArrayRecord(
        name,
        descr=np.lib.format.dtype_to_descr(kind),
        order=order,
        chunk_bytes=small,
        grown_bytes=large,
        attrs=json_text(f"array {name}", attrs),
        state=state,
    )


def check_shape(name: str, shape: Any, kind: np.dtype[Any]) -> tuple[int, ...]:
    """The shape as a tuple; raises ValueError, TypeError."""
    try:
        sizes = tuple(index(n) for n in shape) if isinstance(shape, tuple | list) else (index(shape),)
    except TypeError:
        raise TypeError(f"array {name}, shape: {shape!r:.80}, expected whole numbers") from None
    if any(n < 0 for n in sizes) or kind.itemsize == 0 or len(sizes) > 64:
        raise ValueError(
            f"array {name}, shape and dtype: {sizes} of {kind}, expected up to 64 sizes of at least 0 and some bytes"
        )
    # as numpy, which makes no array whose rows would be too long, even when it has none
    if prod(n or 1 for n in sizes) * kind.itemsize > MAXIMUM_BYTES:
        raise ValueError(
            f"array {name}, shape: {sizes} of {kind}, expected at most {MAXIMUM_BYTES} bytes: the room of a process"
        )
    return sizes


def _chunks(name: str, chunk_bytes: int | None) -> tuple[int, int]:
    if chunk_bytes is None:
        return CHUNK_BYTES, GROWN_BYTES
    if not isinstance(chunk_bytes, int):
        raise TypeError(f"array {name}, chunk_bytes: {chunk_bytes!r:.80}, expected a whole number")
    if not 4096 <= chunk_bytes <= 1 << 30 or chunk_bytes % 4096:
        raise ValueError(f"array {name}, chunk_bytes: {chunk_bytes}, expected a multiple of 4096 up to {1 << 30}")
    return chunk_bytes, chunk_bytes


def new_rows(array: Array, rows: npt.ArrayLike) -> AnyArray:
    """The rows as they are to be appended to the array; raises ValueError for another shape, TypeError for a dtype that
    does not fit."""
    new = np.asarray(rows)
    if new.dtype.kind == "i" and not hasattr(rows, "dtype"):
        # Python's integers have no size: those that fit are of the array's dtype
        new = np.asarray(rows, array.dtype)
    new = new.astype(array.dtype, casting="same_kind", copy=False)
    before, after = array.shape[: array.axis], array.shape[array.axis + 1 :]
    if (
        not array.shape
        or new.ndim != array.ndim
        or new.shape[: array.axis] + new.shape[array.axis + 1 :] != before + after
    ):
        expected = f"({', '.join(map(str, (*before, 'n', *after)))})"
        raise ValueError(f"array {array.name}, appended rows: shape {new.shape}, expected {expected}")
    check_shape(array.name, (*before, array.rows + new.shape[array.axis], *after), array.dtype)
    return new


class LocalArray(Array):
    """Its slices are numpy arrays onto mapped files, not copies: what another session commits is in them after the
    next `refresh()` or transaction. They can be stored to inside a transaction only."""

    def __init__(self, opened: OpenArray, session: Session) -> None:
        self._opened = opened
        self._session = session
        self.name = opened.name

    @property
    def lake(self) -> Session:
        """The session that it is of."""
        return self._session

    @property
    def shape(self) -> tuple[int, ...]:
        return self._opened.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._opened.dtype

    @property
    def order(self) -> str:
        return str(self._opened.record.order)

    @property
    def attrs(self) -> Attributes:
        return Attributes(self._opened.record, f"array {self.name}", self._session.writing, self._described)

    def _described(self) -> None:
        self._opened.described = True

    def __getitem__(self, key: Any) -> Any:
        whole = self._opened.everything(self._session.active)
        return super().__getitem__(key) if whole is None else whole[key]

    def read_rows(self, start: int, stop: int) -> AnyArray:
        return self._opened.view(start, stop, self._session.active)

    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None:
        self._writing("write")
        if not self.shape:
            self.read_rows(0, 1)[key] = value
            return
        start, stop, rest = plan(key, self.shape, self.axis)
        if not takes_all(rest, self.ndim):
            self.read_rows(start, stop)[rest] = value
            return
        shape = (*self.shape[: self.axis], stop - start, *self.shape[self.axis + 1 :])
        values = np.asarray(value)
        if values.dtype.hasobject:
            values = values.astype(self.dtype)
        while values.ndim > len(shape) and values.shape[0] == 1:
            values = values[0]
        self._opened.overwrite(start, stop, np.broadcast_to(values, shape))

    def append(self, rows: npt.ArrayLike, *, alone: bool = False) -> None:
        """As `Array.append`. What others append at the same time comes before it, or with `alone` is a conflict."""
        self._writing("append")
        self._opened.whole |= alone
        self._opened.append(new_rows(self, rows))

    def resize(self, *shape: Any) -> None:
        self._writing("resize")
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        self._opened.resize(check_shape(self.name, tuple(wanted), self.dtype))

    @property
    def version(self) -> str:
        """Tells what it has now from all that it had or will have, also under this name."""
        state = self._opened.record.state
        state._p_activate()
        return f"{state._p_oid.hex()}{state._p_serial.hex()}"

    def layout(self, low: int, high: int, most: int) -> Layout:
        """Where its bytes are, with the files open: see `layout`. Of what is committed."""
        return layout(self._opened.table, low, high, most)

    @property
    def chunk_bytes(self) -> tuple[int, int]:
        """Of its first chunks, and of those behind."""
        grid = self._opened.table.grid
        return grid.small, grid.large

    def verify(self) -> list[str]:
        """The faults that are found by reading every chunk, as messages; none when all checksums hold."""
        return list(verifying.verify(self._opened.table))

    def merge(self) -> int:
        """Write chunks that lie scattered over many files into common ones, in transactions of its own, one for each
        256 MiB; how many chunks were moved. The array's content and history stay. For arrays that were written chunk by
        chunk: the kernel allows a process about 65,000 mappings."""
        return self._session.merge(self._opened.record)

    def at(self, when: str | datetime) -> Array:
        """As it was: `when` is a time, its ISO text, or the id of a revision. Read-only; keeps that past from being
        packed away until it is let go. Raises MissingError when it was not there, PackedError."""
        return self._session.array_at(self.name, when)

    def snapshot(self) -> Array:
        """As it is now, whatever is committed later. Read-only."""
        return self.at(self._session.now())

    def history(self, limit: int = 1000) -> list[Revision]:
        """The commits that changed it, the latest first, as far as they were not packed away."""
        return self._session.history_of(self._opened.record, limit)

    def _writing(self, what: str) -> None:
        self._session.writing_to(self._opened, what)
