"""What is known of a data set, read from its record: no byte of its content, whatever its size."""

import json
import statistics
from datetime import UTC, datetime
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from clachan_lake import following
from clachan_lake.errors import MissingError
from clachan_lake.exchange import dtypes
from clachan_lake.format import ArrayRecord, StreamRecord
from clachan_lake.local import LocalLake

KINDS = {"array": "arrays", "stream": "streams"}
"""The root's key of each."""
TEXT, TAGS = 300, 32
"""How much of a text, and how many tags, a list shows."""
RECENT, GAPS = 200, 10
"""Of so many commits or chunks the rate is told; so many gaps are told of."""
GAP_TIMES, GAP_SECONDS = 10, 1.0
"""A gap is so many times as long as is usual, and so long at least."""


def describe(lake: LocalLake, kind: str, name: str) -> dict[str, Any]:
    """All of it. JSON values; times are ISO 8601 in UTC, `gaps` pauses in what came last. Raises MissingError."""
    record = find(lake, kind, name)
    attrs = attributes(record)
    times, sizes = _stream_past(record) if kind == "stream" else _array_past(lake, record)
    return {
        **summary(kind, record),
        "description": text(attrs, "description", None),
        "license": text(attrs, "license"),
        "created": as_text(record.created),
        "bytes_per_second": _speed(times, sizes),
        "gaps": _gaps(times),
        "lineage": {
            "sources": sources(attrs),
            "transformation": text(attrs, "transformation"),
            "outputs": _outputs(lake, kind, name),
        },
        "attrs": attrs,
        **(_of_stream(record) if kind == "stream" else _of_array(record)),
    }


def summary(kind: str, record: Any) -> dict[str, Any]:
    """What lists show."""
    attrs = attributes(record)
    return {
        "kind": kind,
        "name": record.name,
        "path": record.name.split("/"),
        "title": text(attrs, "title"),
        "description": text(attrs, "description"),
        "tags": tags(attrs),
        "owner": text(attrs, "owner"),
        "units": text(attrs, "units"),
        "source": next(iter(sources(attrs)), None),
        "bytes": record.size - record.start if kind == "stream" else _bytes(record),
        "shape": None if kind == "stream" else list(record.state.shape),
        "dtype": None if kind == "stream" else dtypes.to_json(_dtype(record)),
        "last_ingest": as_text(record.modified if kind == "stream" else record.state.modified),
    }


def find(lake: LocalLake, kind: str, name: str) -> Any:
    """Its record; raises MissingError."""
    record = lake.root()[KINDS[kind]].get(name) if kind in KINDS else None
    if record is None:
        raise MissingError(
            f"{kind} {name!r:.1100}: none of this name"
            if kind in KINDS
            else f"kind: {kind!r:.80}, expected array or stream"
        )
    return record


def attributes(record: StreamRecord | ArrayRecord) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(record.attrs)
    if "\\ud" in record.attrs:
        # half a character, which JSON can have and no answer can
        values = json.loads(json.dumps(values, ensure_ascii=False).encode(errors="replace"))
    return values


def text(attrs: dict[str, Any], key: str, limit: int | None = TEXT) -> str:
    """An attribute that is to be text; what is something else is nothing."""
    found = attrs.get(key)
    if not isinstance(found, str):
        return ""
    return found if limit is None or len(found) <= limit else f"{found[: limit - 1]}…"


def tags(attrs: dict[str, Any]) -> list[str]:
    found = attrs.get("tags")
    return [one[:TEXT] for one in found if isinstance(one, str) and one][:TAGS] if isinstance(found, list) else []


def sources(attrs: dict[str, Any]) -> list[dict[str, str]]:
    """What it was made from, as a transformation has written it: `source`, or several `sources`, of one kind."""
    kind, many = text(attrs, "source_kind") or "stream", attrs.get("sources")
    named = many if isinstance(many, list) else [attrs.get("source")]
    if kind not in KINDS:
        return []
    return [{"kind": kind, "name": name} for name in named if isinstance(name, str) and name]


def as_text(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _of_stream(record: StreamRecord) -> dict[str, Any]:
    return {
        "size": record.size,
        "start": record.start,
        "chunks": record.count,
        "final": record.ended is not None,
        "policy": record.policy,
    }


def _of_array(record: ArrayRecord) -> dict[str, Any]:
    shape = tuple(record.state.shape)
    return {
        "order": record.order,
        "rows": shape[record.state.axis] if shape else 1,
    }


def _outputs(lake: LocalLake, kind: str, name: str) -> list[dict[str, Any]]:
    """What transformations make of it, and how they are."""
    return [
        {
            "transformation": transformation,
            "output": found.get("output"),
            "state": found.get("status"),
            "message": found.get("message"),
        }
        for transformation, found in following.positions(lake, kind, name).items()
    ]


def _dtype(record: ArrayRecord) -> np.dtype[Any]:
    kind: np.dtype[Any] = np.lib.format.descr_to_dtype(record.descr)
    return kind


def _bytes(record: ArrayRecord) -> int:
    return prod(record.state.shape) * _dtype(record).itemsize


def _stream_past(record: StreamRecord) -> tuple[list[float], list[int]]:
    """Times in seconds, and sizes then, of the last chunks; oldest first."""
    times: list[float] = []
    sizes: list[int] = []
    at = record.size
    while at > record.start and len(times) < RECENT:
        sizes.append(at)
        at = record.chunks.maxKey(at - 1)
        times.append(record.chunks[at][3] / 1000)
    return times[::-1], sizes[::-1]


def _array_past(lake: LocalLake, record: ArrayRecord) -> tuple[list[float], list[int]]:
    """The same of the last commits."""
    found = lake.history_of(record, RECENT // 4)[::-1]
    each = _dtype(record).itemsize
    return [one.time.timestamp() for one in found], [prod(one.shape) * each for one in found]


def _speed(times: list[float], sizes: list[int]) -> float | None:
    """Bytes a second; None when it cannot be said."""
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return round((sizes[-1] - sizes[0]) / (times[-1] - times[0]), 3)


def _gaps(times: list[float]) -> list[dict[str, Any]]:
    """The last pauses, oldest first."""
    pauses = [(first, second) for first, second in pairwise(times)]
    if len(pauses) < 2:
        return []
    usual = statistics.median(second - first for first, second in pauses)
    limit = max(GAP_SECONDS, GAP_TIMES * usual)
    return [
        {"from": as_text(int(first * 1000)), "to": as_text(int(second * 1000)), "seconds": round(second - first, 3)}
        for first, second in pauses
        if second - first > limit
    ][-GAPS:]
