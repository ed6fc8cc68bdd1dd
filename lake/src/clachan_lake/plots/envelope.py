"""Minimum and maximum of each column of pixels, by reading as little as shows them truly.

A range of up to `BUDGET` bytes is read as it is. A longer one is read from the finest level of the array's pyramid
(`transform.minmax`) that is short enough; what was appended since is read as it is. Without a pyramid a few rows of
each column are looked at; `source` says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clachan_lake.interface import AnyArray, Array
from clachan_lake.plots.pyramid import Level
from clachan_lake.plots.series import Series

BUDGET = 32 << 20
RUN_BYTES = 8192
RUN_ROWS = 512
ROWS, PYRAMID, SAMPLE = "rows", "pyramid", "sample"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Envelope:
    """Column i is of the rows from `start` + i * `step` on, `step` of them or those that are left before `stop`. NaN
    where a column has no number. `source` is rows, pyramid or sample; only a sample may miss something."""

    start: int
    stop: int
    step: int
    low: Floats
    high: Floats
    source: str

    @property
    def exact(self) -> bool:
        return self.source != SAMPLE


def envelope(array: Array, series: Series, levels: Sequence[Level], rows: range, width: int) -> Envelope:
    """Of these rows, which exist, in `width` columns or up to twice as many. From the pyramid columns begin and end at
    multiples of its factor, so the first may begin before these rows, and the last end behind them."""
    start, stop = rows.start, rows.stop
    step = max(1, (stop - start) // width)
    if (stop - start) * array.row_bytes <= BUDGET:
        return _of_rows(array, series, start, stop, step)
    for level in levels:
        fresh = max(0, stop - max(start, level.count * level.factor))
        if (stop - start) // level.factor * level.pair_bytes + fresh * array.row_bytes <= BUDGET:
            return _of_level(array, level, rows, width)
    return _of_sample(array, series, start, stop, step)


def _of_rows(array: Array, series: Series, start: int, stop: int, step: int) -> Envelope:
    return Envelope(start, stop, step, *_extremes(series.of(array.read_rows(start, stop), array.axis), step), ROWS)


def _of_level(array: Array, level: Level, rows: range, width: int) -> Envelope:
    factor = level.factor
    first, last = rows.start // factor, -(-rows.stop // factor)
    known = max(first, min(last, level.count))
    low, high = level.read(first, known)
    if known < last:
        values = level.series.of(array.read_rows(known * factor, min(last * factor, array.rows)), array.axis)
        low, high = (
            np.concatenate([low, _fold(np.fmin, values, factor)]),
            np.concatenate([high, _fold(np.fmax, values, factor)]),
        )
    each = max(1, (last - first) // width)
    least, most = _fold(np.fmin, low, each).astype(np.float64), _fold(np.fmax, high, each).astype(np.float64)
    return Envelope(first * factor, min(last * factor, array.rows), each * factor, least, most, PYRAMID)


def _of_sample(array: Array, series: Series, start: int, stop: int, step: int) -> Envelope:
    run = max(1, min(step, RUN_ROWS, RUN_BYTES // array.row_bytes))
    count = -(-(stop - start) // step)
    low, high = np.empty(count), np.empty(count)
    for column in range(count):
        begin = start + column * step
        values = series.of(array.read_rows(begin, min(stop, begin + run)), array.axis)
        low[column : column + 1], high[column : column + 1] = _extremes(values, run)
    return Envelope(start, stop, step, low, high, SAMPLE)


def _extremes(values: AnyArray, each: int) -> tuple[Floats, Floats]:
    """Minimum and maximum of each `each` values; of fewer at the end."""
    return _fold(np.fmin, values, each).astype(np.float64), _fold(np.fmax, values, each).astype(np.float64)


def _fold(which: np.ufunc, values: AnyArray, each: int) -> AnyArray:
    whole = len(values) // each
    table = values[: whole * each].reshape(whole, each) if values.flags.c_contiguous else _table(values, whole, each)
    # min and max are several times as fast as fmin and fmax, and agree where nothing is NaN
    quick = np.minimum if which is np.fmin else np.maximum
    found = quick.reduce(table, axis=1) if whole else values[:0]
    if values.dtype.kind == "f" and np.isnan(found).any():
        found = which.reduce(table, axis=1)
    return np.append(found, which.reduce(values[whole * each :])) if whole * each < len(values) else found


def _table(values: AnyArray, whole: int, each: int) -> AnyArray:
    (stride,) = values.strides
    return np.lib.stride_tricks.as_strided(values, (whole, each), (stride * each, stride), writeable=False)
