"""What a plot is told: JSON of an envelope, with the numbers of its horizontal axis."""

import math
from typing import Any

import numpy as np

from clachan_lake.errors import LakeError
from clachan_lake.interface import Array
from clachan_lake.plots.envelope import Envelope, envelope
from clachan_lake.plots.pyramid import levels
from clachan_lake.plots.series import SeriesError, find, names, rate, time_field, whole

FURTHEST = 8_640_000_000_000_000
"""Milliseconds from 1970: no browser knows a later time."""


class RangeError(LakeError, ValueError):
    """Rows that the array does not have."""


def plot(
    arrays: Any, name: str, start: int = 0, stop: int | None = None, *, width: int = 1200, column: str = ""
) -> dict[str, Any]:
    """Of the rows start <= i < stop of the array, all by default. `x` is what the horizontal axis counts: rows, seconds
    (rows by the attribute `rate`), or time (of a field, in milliseconds since 1970); `low` and `high` are the columns'
    minimum and maximum, null where a column has no number. Raises SeriesError, RangeError, MissingError."""
    array: Array = arrays[name]
    series = find(array, column)
    end = array.rows if stop is None else stop
    if not 0 <= start <= end <= array.rows:
        raise RangeError(f"array {name!r}, rows: {start} to {end}, expected inside 0 to {array.rows}")
    found = envelope(array, series, levels(arrays, array, series), range(start, end), width)
    return {
        "name": name,
        "column": series.name,
        "columns": names(array),
        "units": whole(array.units or ""),
        "rows": array.rows,
        "start": found.start,
        "stop": found.stop,
        "step": found.step,
        "source": found.source,
        "exact": found.exact,
        **_axis(array, found),
        "low": _as_json(found.low),
        "high": _as_json(found.high),
    }


def _axis(array: Array, found: Envelope) -> dict[str, Any]:
    count = len(found.low)
    field = time_field(array)
    if field is not None and count:
        first = array.read_rows(found.start, found.stop)[field][:: found.step][:count]
        times = first.astype("M8[ms]")
        known = np.flatnonzero(~np.isnat(times))
        if len(known):
            # a row without a time stands where one beside it does; a plot's axis never goes back
            nearest = known[np.clip(np.searchsorted(known, np.arange(count), "right") - 1, 0, None)]
            places = np.maximum.accumulate(np.clip(times[nearest].astype(np.int64), -FURTHEST, FURTHEST))
            return {"x_kind": "time", "x_label": field, "x": places.tolist()}
    per_second = rate(array)
    places = (found.start + found.step * np.arange(count, dtype=np.float64)) / (per_second or 1)
    kind = "seconds" if per_second else "rows"
    return {"x_kind": kind, "x_label": kind, "x": places.tolist() if per_second else places.astype(np.int64).tolist()}


def _as_json(values: Any) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


__all__ = ["RangeError", "SeriesError", "plot"]
