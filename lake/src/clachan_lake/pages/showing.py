"""Numbers, times and bytes as people read them."""

import json
from datetime import datetime
from typing import Any

import numpy as np

PREVIEW_BYTES = 1024
LINE = 100
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """Bytes, with their unit."""
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return (
        f"{value:.0f} B"
        if unit == 0
        else f"{value:.3g} {UNITS[unit]}"
        if value < 1000
        else f"{value:.0f} {UNITS[unit]}"
    )


def moment(text: str | None) -> str:
    """An ISO time, to the second."""
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S UTC") if text else ""


def span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def shape(lengths: list[int] | None) -> str:
    return " × ".join(f"{length:,}" for length in lengths) if lengths else ""


def dtype(value: Any) -> str:
    """numpy's own name; the fields of a structured one."""
    if isinstance(value, str):
        kind = np.dtype(value)
        return kind.name if kind.kind in "biufcMm" else value
    return "{" + ", ".join(f"{field[0]}: {dtype(field[1])}{_inner(field)}" for field in value) + "}"


def _inner(field: Any) -> str:
    return "[" + ",".join(map(str, field[2])) + "]" if len(field) > 2 else ""


def as_json(value: Any) -> str:
    """On one line where there is room for it."""
    short = json.dumps(value, ensure_ascii=False)
    return short if len(short) <= LINE else json.dumps(value, ensure_ascii=False, indent=1)


def preview(data: bytes) -> str:
    """The beginning of a stream: as text where it is some, else as numbers and letters."""
    head = data[:PREVIEW_BYTES]
    try:
        # a letter may be cut at the end
        text = head.decode() if len(data) < PREVIEW_BYTES else head.decode("utf-8", "ignore")
    except UnicodeDecodeError:
        text = ""
    if text and len(text.encode()) >= len(head) - 3 and all(one.isprintable() or one in "\n\r\t" for one in text):
        return text
    return "\n".join(_line(at, head[at : at + 16]) for at in range(0, min(len(head), 512), 16))


def _line(at: int, part: bytes) -> str:
    letters = "".join(chr(one) if 32 <= one < 127 else "." for one in part)
    return f"{at:06x}  {part.hex(' '):<47}  {letters}"
