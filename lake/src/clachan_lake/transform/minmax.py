"""The transformation `minmax`: pyramids of the extremes of an array, for plots of any width.

Of an array `x` it makes the arrays `~minmax/x/256`, `~minmax/x/65536`, `~minmax/x/16777216`, ...: one for each factor,
a power of 256, of which the array has at least one whole bucket. Row i of the array with factor f covers the rows
i * f <= row < (i + 1) * f of x: `level[i, 0]` is their minimum, `level[i, 1]` their maximum. So the shape of a level is
(buckets, 2, *the shape of a row of x); its dtype is that of x, or of a structured x a structured one with those fields
that are numbers. Only whole buckets are there. What lies behind the last one is fewer than f rows of x, and is read
from the level below, in the end from x itself. Levels are made of what was committed, so they may be a moment behind.

NaN and NaT are passed over: a bucket has one only where it has nothing else. Of booleans the extremes are booleans.
Arrays of text or complex numbers, and those without axes, have no pyramid. Rows of order F lie along the last axis of
x, and along the first of a level.

When x was changed otherwise than by appending, its pyramid is made anew from the start; it grows while that goes on.

`pyramid(arrays, name)` gives the levels that there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from clachan_lake.interface import AnyArray, Array
from clachan_lake.transform.batch import Batch, Output, State

STEP = 256
LEVELS = 5
PREFIX = "~minmax/"
BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Level:
    factor: int
    array: Array


def level_name(name: str, factor: int) -> str:
    return f"{PREFIX}{name}/{factor}"


def pyramid(arrays: Mapping[str, Array], name: str) -> list[Level]:
    """The levels of an array, from the finest to the coarsest; none when it has no pyramid (yet)."""
    found = []
    for exponent in range(1, LEVELS + 1):
        factor = STEP**exponent
        if level_name(name, factor) not in arrays:
            break
        found.append(Level(factor, arrays[level_name(name, factor)]))
    return found


def is_plottable(dtype: np.dtype[Any]) -> bool:
    """Whether it has extremes: numbers, booleans, times, or a structured one with such a field."""
    return extreme_dtype(dtype) is not None


def extreme_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Of the levels of an array with this dtype."""
    if dtype.names is None:
        return dtype if dtype.kind in "biufmM" else None
    assert dtype.fields is not None
    fields = [(name, dtype.fields[name][0]) for name in dtype.names if dtype.fields[name][0].kind in "biufmM"]
    return np.dtype(fields) if fields else None


def extremes(rows: AnyArray, factor: int, wanted: np.dtype[Any]) -> AnyArray:
    """(buckets, 2, ...) of rows (first axis) that are a multiple of `factor`."""
    out = np.empty((len(rows) // factor, 2, *rows.shape[1:]), wanted)
    for name in wanted.names or (None,):
        values, target = (rows, out) if name is None else (rows[name], out[name])
        grouped = values.reshape(-1, factor, *rows.shape[1:])
        target[:, 0], target[:, 1] = _least(grouped), _greatest(grouped)
    return out


def folded(level: AnyArray, factor: int) -> AnyArray:
    """The next level of one: extremes of extremes."""
    out = np.empty((len(level) // factor, *level.shape[1:]), level.dtype)
    for name in level.dtype.names or (None,):
        values, target = (level, out) if name is None else (level[name], out[name])
        grouped = values.reshape(-1, factor, *level.shape[1:])
        target[:, 0], target[:, 1] = _least(grouped[:, :, 0]), _greatest(grouped[:, :, 1])
    return out


def _least(grouped: AnyArray) -> AnyArray:
    found: AnyArray = grouped.min(axis=1)
    return _without_gaps(found, grouped, np.fmin)


def _greatest(grouped: AnyArray) -> AnyArray:
    found: AnyArray = grouped.max(axis=1)
    return _without_gaps(found, grouped, np.fmax)


def _without_gaps(found: AnyArray, grouped: AnyArray, choose: np.ufunc) -> AnyArray:
    """min and max are many times faster than fmin and fmax, which pass over NaN: these only where there is one."""
    if found.dtype.kind in "fmM":
        gaps = np.isnan(found) if found.dtype.kind == "f" else np.isnat(found)
        touched = gaps.reshape(len(found), -1).any(axis=1)
        if touched.any():
            found[touched] = choose.reduce(grouped[touched], axis=1)
    return found


def transform(batch: Batch, output: Output, state: State) -> None:
    """Add the buckets that the new rows complete; needs no state."""
    assert batch.rows is not None
    wanted = extreme_dtype(batch.rows.dtype)
    if wanted is None:
        return
    _first_level(batch, output, wanted)
    for exponent in range(2, LEVELS + 1):
        if not _next_level(batch, output, exponent):
            break


def _first_level(batch: Batch, output: Output, wanted: np.dtype[Any]) -> None:
    name = level_name(batch.source, STEP)
    made = output.array(name)
    start, stop = (0 if made is None else len(made)) * STEP, batch.stop // STEP * STEP
    while start < stop:
        end = min(start + BLOCK_ROWS, stop)
        output.append(extremes(batch.read(start, end), STEP, wanted), name, {"factor": STEP})
        start = end


def _next_level(batch: Batch, output: Output, exponent: int) -> bool:
    name, below = (
        level_name(batch.source, STEP**exponent),
        output.array(level_name(batch.source, STEP ** (exponent - 1))),
    )
    made = output.array(name)
    start = (0 if made is None else len(made)) * STEP
    stop = 0 if below is None else len(below) // STEP * STEP
    if below is None or stop <= start:
        return made is not None
    output.append(folded(below.read_rows(start, stop), STEP), name, {"factor": STEP**exponent})
    return True
