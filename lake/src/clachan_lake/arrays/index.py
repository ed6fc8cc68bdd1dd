"""Which rows of the first axis a numpy key touches, so that only those are read."""

from operator import index
from typing import Any

import numpy as np


def plan(key: Any, shape: tuple[int, ...]) -> tuple[int, int, Any]:
    """(start, stop, rest) with `a[key] == a[start:stop][rest]` for an array of `shape`, which has an axis.

    Integers and slices first in the key narrow the rows; any other key (masks, lists, new axes) reads them all.
    Raises IndexError as numpy does for an integer outside the axis.
    """
    keys = key if isinstance(key, tuple) else (key,)
    if not keys or keys[0] is Ellipsis:
        return 0, shape[0], key
    first, others = keys[0], keys[1:]
    if isinstance(first, slice):
        start, stop, inner = _narrow(first, shape[0])
        return start, stop, (inner, *others)
    row = _integer(first)
    if row is None:
        return 0, shape[0], key
    if not -shape[0] <= row < shape[0]:
        raise IndexError(f"index {row} is out of bounds for axis 0 with size {shape[0]}")
    row %= shape[0]
    return row, row + 1, (0, *others)


def _integer(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_, np.ndarray)):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def _narrow(key: slice, length: int) -> tuple[int, int, slice]:
    rows = range(*key.indices(length))
    if not rows:
        return 0, 0, slice(0, 0)
    low, high = min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1
    if rows.step > 0:
        return low, high, slice(None, None, rows.step)
    return low, high, slice(high - low - 1, None, rows.step)
