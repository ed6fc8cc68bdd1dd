"""Which rows of the growing axis a numpy key touches, so that only those are mapped or read."""

from operator import index
from typing import Any

import numpy as np

_FULL = (slice(None), slice(None, None, 1))


def plan(key: Any, shape: tuple[int, ...], axis: int = 0) -> tuple[int, int, Any]:
    """(start, stop, rest) with `a[key] == a[start:stop][rest]`, the slice being of `axis`, which must be the first or
    the last of `shape`.

    An integer or a slice for that axis narrows the rows; any other key (masks, lists, new axes before it) needs them
    all. Raises IndexError as numpy does for an integer outside the axis.
    """
    keys = key if isinstance(key, tuple) else (key,)
    place = _place(keys, shape, axis)
    if place is None:
        return 0, shape[axis], key
    wanted = keys[place]
    if isinstance(wanted, slice):
        start, stop, inner = _narrow(wanted, shape[axis])
        return start, stop, (*keys[:place], inner, *keys[place + 1 :])
    row = _integer(wanted)
    if row is None:
        return 0, shape[axis], key
    if not -shape[axis] <= row < shape[axis]:
        raise IndexError(f"index {row} is out of bounds for axis {axis} with size {shape[axis]}")
    row %= shape[axis]
    return row, row + 1, (*keys[:place], 0, *keys[place + 1 :])


def _place(keys: tuple[Any, ...], shape: tuple[int, ...], axis: int) -> int | None:
    """Where in the key the axis is spoken of; None when it is not, or not simply."""
    if axis == 0:
        return 0 if keys and keys[0] is not Ellipsis else None
    plain = all(one is Ellipsis or isinstance(one, slice) or _integer(one) is not None for one in keys)
    if not plain or not keys or keys[-1] is Ellipsis:
        return None
    named = sum(one is not Ellipsis for one in keys)
    whole = named == len(shape) or (named < len(shape) and len(keys) != named)
    return len(keys) - 1 if whole else None


def takes_all(rest: Any, dimensions: int) -> bool:
    """Whether `rest` of a plan takes every row of so many dimensions and all of each, in order."""
    keys = rest if isinstance(rest, tuple) else (rest,)
    dots = sum(one is Ellipsis for one in keys)
    # a key that numpy refuses takes nothing
    return (
        dots <= 1
        and len(keys) - dots <= dimensions
        and all(one is Ellipsis or (isinstance(one, slice) and one in _FULL) for one in keys)
    )


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
