"""One series of numbers of an array: an element of each row, or of one of its fields."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from clachan_lake.errors import LakeError
from clachan_lake.interface import AnyArray, Array

LISTED = 64
NUMBERS = "biufcMm"


class SeriesError(LakeError, ValueError):
    """An array, or a part of it, that cannot be drawn as a line."""


@dataclass(frozen=True)
class Series:
    """`name` is what a request calls it; `index` is its place in a row, counted in C's order."""

    name: str
    field: str | None
    index: int

    def of(self, rows: AnyArray, axis: int) -> AnyArray:
        """Its numbers in these rows, as floats or integers: a view where that is possible."""
        picked = np.moveaxis(rows, axis, 0)
        if self.field is not None:
            picked = picked[self.field]
        if picked.ndim > 1:
            place: tuple[Any, ...] = np.unravel_index(self.index, picked.shape[1:])
            picked = picked[(slice(None), *place)]
        return as_numbers(picked)


def as_numbers(values: AnyArray) -> AnyArray:
    """Times as numbers of their unit, truths as 0 and 1, complex numbers as their magnitude."""
    kind = values.dtype.kind
    if kind in "Mm":
        return np.where(np.isnat(values), np.nan, values.astype(np.int64))
    if kind == "b":
        return values.view(np.uint8)
    return np.abs(values) if kind == "c" else values


def find(array: Array, name: str = "") -> Series:
    """The series of this name, or the first; raises SeriesError."""
    if not array.shape:
        raise SeriesError(f"array {array.name!r}: without axes, expected rows to draw")
    if not name:
        first = next(_series(array), None)
        if first is None:
            raise SeriesError(f"array {array.name!r}, dtype: {array.dtype}, expected numbers to draw")
        return first
    field, number = _split(array, name)
    size = _size(array, field)
    if size is None or not number.isascii() or not number.isdigit() or len(number) > 18 or int(number) >= size:
        raise SeriesError(f"array {array.name!r}, column: {name!r:.80}, expected one of {_some(array)}")
    return Series(name, field, int(number))


def names(array: Array) -> list[dict[str, str]]:
    """The first series that can be drawn: `name`, and `label` for people."""
    if not array.shape:
        return []
    channels = array.attrs.get("channels")
    labels = channels if isinstance(channels, list) and array.ndim == 2 and array.dtype.names is None else []
    found = []
    for number, one in enumerate(_series(array)):
        if number == LISTED:
            break
        label = labels[number] if number < len(labels) else one.name
        found.append({"name": one.name, "label": whole(str(label)[:80])})
    return found


def whole(text: str) -> str:
    """Text without halves of characters, which JSON can have and no answer can."""
    return text.encode(errors="replace").decode()


def time_field(array: Array) -> str | None:
    """The field whose times are the plot's horizontal axis: the one that the attribute `time` names, or the first."""
    fields = array.dtype.names or () if array.ndim == 1 else ()
    times = [name for name in fields if array.dtype[name].kind == "M"]
    wanted = array.attrs.get("time")
    return wanted if wanted in times else next(iter(times), None)


def rate(array: Array) -> float | None:
    """Rows a second: the attribute `rate`."""
    found = array.attrs.get("rate")
    if isinstance(found, bool) or not isinstance(found, int | float) or not 1e-12 < found < 1e15:
        return None
    return float(found)


def _series(array: Array) -> Iterator[Series]:
    """All that can be drawn, but for the times of the horizontal axis where there is something else."""
    if array.dtype.names is None:
        for index in range(_size(array, None) or 0):
            yield Series(str(index), None, index)
        return
    axis, fields = time_field(array), array.dtype.names
    for field in [name for name in fields if name != axis] or [name for name in fields if name == axis]:
        size = _size(array, field) or 0
        for index in range(size):
            yield Series(field if size == 1 else f"{field}.{index}", field, index)


def _split(array: Array, name: str) -> tuple[str | None, str]:
    fields = array.dtype.names
    if fields is None:
        return None, name
    if name in fields:
        return name, "0"
    field, _, number = name.rpartition(".")
    return field, number if field in fields else ""


def _size(array: Array, field: str | None) -> int | None:
    """How many numbers a row has there; None where they are none."""
    inner: tuple[int, ...] = array.shape[: array.axis] + array.shape[array.axis + 1 :]
    kind: np.dtype[Any] = array.dtype
    if field is not None:
        if field not in (kind.names or ()):
            return None
        kind = kind[field]
        inner += kind.shape
        kind = kind.base
    return prod(inner) if kind.kind in NUMBERS and kind.names is None else None


def _some(array: Array) -> str:
    shown = [one["name"] for one in names(array)[:8]]
    return ", ".join(shown) or "none: it has no numbers"
