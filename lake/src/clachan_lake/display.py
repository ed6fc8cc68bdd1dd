"""What a notebook shows of a lake, a stream or an array: `_repr_html_`.

Names, units and attributes are whoever wrote them's: all text is escaped, the HTML has no script and no link, and is
short whatever the lake holds. The picture is minimum and maximum of what is drawn, as `plots.envelope` finds them.
"""

import json
from collections.abc import Iterable, Mapping
from html import escape
from itertools import islice
from typing import Any

import numpy as np

from clachan_lake.interface import Array, Lake, Stream

WIDTH, HEIGHT = 480, 96
LISTED = 20
ATTRIBUTES = 12
CHARACTERS = 120
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
TABLE = "border-collapse:collapse;text-align:left"
CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top;overflow-wrap:anywhere"
NAME = "min-width:8em;font-weight:normal;opacity:.7"


def array_html(array: Array) -> str:
    """Shape, dtype, units, attributes, and a picture of its first numbers."""
    rows = [
        ("shape", " x ".join(f"{length:,}" for length in array.shape) or "without axes"),
        ("dtype", f"{array.dtype}, {_size(array.nbytes)}"),
        ("order", "F, grows along the last axis" if array.order == "F" else ""),
        ("units", array.units or ""),
        ("times", _times(array)),
        *_attributes(array.attrs, leave_out=("units",)),
    ]
    return _box(f"array {_text(array.name)}", rows, _picture(array))


def stream_html(stream: Stream) -> str:
    kept = f", kept from byte {stream.start:,}" if stream.start else ""
    rows = [
        ("size", f"{_size(stream.size)}{kept}"),
        ("state", "ended" if stream.final else "growing"),
        *_attributes(stream.attrs),
    ]
    return _box(f"stream {_text(stream.name)}", rows)


def lake_html(lake: Lake) -> str:
    """How many of each, and the first by name."""
    arrays, streams = lake.arrays, lake.streams
    shown = [_array_row(arrays[name]) for name in islice(arrays, LISTED)]
    shown += [_stream_row(streams[name]) for name in islice(streams, LISTED - len(shown))]
    count = len(arrays) + len(streams)
    more = f"<p>and {count - len(shown):,} more</p>" if count > len(shown) else ""
    return _box(f"lake: {len(arrays):,} arrays, {len(streams):,} streams", shown, more)


def _array_row(array: Array) -> tuple[str, str]:
    shape = " x ".join(f"{length:,}" for length in array.shape)
    units = f", {array.units}" if array.units else ""
    return array.name, f"array of {shape or 1} {array.dtype}{units}"


def _stream_row(stream: Stream) -> tuple[str, str]:
    return stream.name, f"stream of {_size(stream.size)}"


def _box(title: str, rows: Iterable[tuple[str, str]], below: str = "") -> str:
    """`title` and `below` are HTML, the rows are text."""
    cells = "".join(
        f'<tr><th style="{CELL};{NAME}">{_text(name)}</th><td style="{CELL}">{_text(value)}</td></tr>'
        for name, value in rows
        if value
    )
    return f'<div><b>{title}</b><table style="{TABLE}"><tbody>{cells}</tbody></table>{below}</div>'


def _attributes(attrs: Mapping[str, Any], leave_out: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    names = [name for name in attrs if name not in leave_out]
    shown = [(name, _value(attrs[name])) for name in names[:ATTRIBUTES]]
    left = len(names) - len(shown)
    return [*shown, ("", f"and {left:,} more attributes")] if left else shown


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text(text: str) -> str:
    """Escaped, on one line, and not longer than a notebook can show."""
    short = text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 1]}…"
    return escape("".join(letter if letter.isprintable() else "�" for letter in short), quote=True)


def _size(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {UNITS[unit]}" if unit else f"{count:,} bytes"


def _times(array: Array) -> str:
    """Of the first and the last row, where rows have one."""
    from clachan_lake.plots.series import time_field

    field = time_field(array)
    if field is None or not array.rows:
        return ""
    ends = (array.read_rows(row, row + 1)[field][0].astype("M8[s]") for row in (0, array.rows - 1))
    return " to ".join(str(end).replace("T", " ") for end in ends)


def _picture(array: Array) -> str:
    """A band from the minimum to the maximum of each column, as SVG; nothing where there are no numbers."""
    from clachan_lake.plots.envelope import envelope
    from clachan_lake.plots.series import SeriesError, find

    if not array.size:
        return ""
    try:
        series = find(array)
    except SeriesError:
        return ""
    found = envelope(array, series, (), range(array.rows), WIDTH)
    band = _band(found.low, found.high)
    if band is None:
        return ""
    path, lowest, highest = band
    said = f"{lowest:.6g} to {highest:.6g}{' ' + array.units if array.units else ''}"
    sampled = "" if found.exact else ", of a sample"
    column = f", column {series.name}" if series.name != "0" or array.ndim > 1 else ""
    caption = _text(f"{said}{column}{sampled}")
    return (
        f'<svg role="img" aria-label="{caption}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'style="max-width:100%;display:block;margin-top:4px"><path d="{path}" fill="#1f77b4" stroke="#1f77b4" '
        f'stroke-width="0.8"/></svg><small>{caption}</small>'
    )


def _band(low: Any, high: Any) -> tuple[str, float, float] | None:
    """(SVG path, lowest, highest); columns without a number are left out. None when there is none at all."""
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    if not len(known):
        return None
    lowest, highest = float(low[known].min()), float(high[known].max())
    # half of each, as the difference of two large numbers may be larger than any
    scale = (highest / 2 - lowest / 2) or 1.0
    across = (known + 0.5) * (WIDTH / len(low))

    def down(values: Any) -> Any:
        return HEIGHT - 2 - (values[known] / 2 - lowest / 2) / scale * (HEIGHT - 4)

    there = zip(across, down(high), strict=True)
    back = zip(across[::-1], down(low)[::-1], strict=True)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*there, *back))
    return f"M{points}Z", lowest, highest
