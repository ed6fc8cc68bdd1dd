"""What is new in a source, as batches: several small chunks at once, and long ones in parts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from clachan_lake.arrays.array import LocalArray
from clachan_lake.interface import AnyArray
from clachan_lake.local import LocalLake
from clachan_lake.streams.stream import LocalStream
from clachan_lake.transform.batch import Batch
from clachan_lake.transform.document import Transformation
from clachan_lake.transform.position import Position

BATCH_BYTES = 16 << 20
PART_BYTES = 32 << 20
CHUNKS = 10_000
REVISIONS = (8, 1000)
"""So many changes of an array are looked through for what it was changed by; most are found among the first."""


@dataclass(frozen=True)
class Piece:
    """A part of a source that is to be run. `single`: a chunk alone, or less: when it fails, nothing else is to blame.
    `stop` is where the source ends now."""

    batch: Batch
    single: bool
    end: int


def of_stream(stream: LocalStream, position: Position, transformation: Transformation) -> Piece | None:
    """The next bytes, or None. What was truncated before it was read is a gap."""
    if transformation.whole:
        return _whole(stream, transformation)
    start = max(position.position, stream.start)
    gap = position.gap or start > position.position
    spans, stop = _spans(stream, start, start < position.careful)
    if stop == start and not (stream.final and position.status != "done" and start):
        return None
    parts = [stream.read(at, length) for at, length in spans]
    final = stream.final and stop == stream.size
    preceding = stream.read(start - 1, 1) if gap and start > stream.start else b""
    batch = Batch(
        stream.name, "stream", start, stop, parts, None, final, gap, preceding, dict(stream.attrs),
        transformation.options, _reader_of(stream),
    )  # fmt: skip
    return Piece(batch, len(spans) <= 1, stream.size)


def of_letter(lake: LocalLake, letter: dict[str, Any], transformation: Transformation) -> Piece:
    """What was given up, once more."""
    name, start = letter["source"], letter["position"]
    stop = start + letter["length"]
    if letter["source_kind"] == "array":
        array = lake.arrays[name]
        rows, chunks, reader, attrs = rows_of(array, start, stop), [], None, array.attrs
    else:
        stream = lake.streams[name]
        rows, chunks, reader, attrs = None, [stream.read(start, stop - start)], _reader_of(stream), stream.attrs
    preceding = b"\n"
    kind = letter["source_kind"]
    batch = Batch(
        name, kind, start, stop, chunks, rows, False, True, preceding, dict(attrs), transformation.options, reader
    )
    return Piece(batch, True, stop)


def _spans(stream: LocalStream, start: int, one: bool) -> tuple[list[tuple[int, int]], int]:
    """(position, length) of the chunks that make the batch, and where it ends."""
    spans: list[tuple[int, int]] = []
    at = start
    for first, length, _when in islice(stream.chunks(start), 1 if one else CHUNKS):
        stop = first + length
        if spans and stop - start > BATCH_BYTES:
            break
        if stop - at > PART_BYTES:
            return [*spans, (at, PART_BYTES)], at + PART_BYTES
        spans.append((at, stop - at))
        at = stop
    return spans, at


def _whole(stream: LocalStream, transformation: Transformation) -> Piece | None:
    if not stream.final:
        return None
    batch = Batch(
        stream.name, "stream", 0, stream.size, _Chunks(stream), None, True, False, b"", dict(stream.attrs),
        transformation.options, _reader_of(stream),
    )  # fmt: skip
    return Piece(batch, True, stream.size)


def _reader_of(stream: LocalStream) -> Callable[[int, int], bytes]:
    return lambda start, stop: stream.read(start, max(0, min(stop, stream.size) - start))


class _Chunks(Sequence[bytes]):
    """The chunks of a whole stream, each read when it is asked for."""

    def __init__(self, stream: LocalStream) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return int(self._stream.record.count)

    def __iter__(self) -> Iterator[bytes]:
        for at, length, _when in self._stream.chunks():
            yield self._stream.read(at, length)

    def __getitem__(self, number: Any) -> Any:
        return list(self)[number]


def of_array(array: LocalArray, position: Position, transformation: Transformation) -> Piece | None:
    """The next rows, or None."""
    if not array.shape:
        return None
    start = position.position
    count = max(1, BATCH_BYTES // max(1, array.row_bytes))
    stop = min(array.rows, start + count)
    if stop <= start:
        return None
    batch = Batch(
        array.name, "array", start, stop, (), rows_of(array, start, stop), False, position.gap, b"",
        dict(array.attrs), transformation.options, lambda low, high: rows_of(array, low, high),
    )  # fmt: skip
    return Piece(batch, True, array.rows)


def rows_of(array: LocalArray, start: int, stop: int) -> AnyArray:
    """Rows along the first axis, whatever the array's order; read-only."""
    found = np.moveaxis(array.read_rows(start, stop), array.axis, 0)
    found = found.view()
    found.flags.writeable = False
    return found


def serial(lake: LocalLake, name: str) -> str:
    """Of an array's state: another one after each change."""
    state = lake.root()["arrays"][name].state
    state._p_activate()
    return str(state._p_serial.hex())


def is_rewritten(lake: LocalLake, name: str, seen: str) -> bool:
    """Whether an array was changed otherwise than by appending since its state had the serial; also when nobody knows
    any more."""
    record = lake.root()["arrays"][name]
    if serial(lake, name) == seen:
        return False
    return not any(_only_appended(lake.changes_of(record, limit), seen) for limit in REVISIONS)


def _only_appended(changes: Iterable[tuple[str, str]], seen: str) -> bool:
    for commit, change in changes:
        if commit <= seen:
            return commit == seen
        if change not in {"append", "fold"}:
            return False
    return False
