"""The transformation `msgpack`: msgpack objects one behind the other become rows of a structured array (see `records`).

An object is a record, or as fluentd sends them an array `[time, record]`, where the time is an integer (seconds) or an
EventTime: extension type 0 of 8 bytes, seconds and nanoseconds as 32 bits each, big endian
(https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1). The key `@time` of a column is that time; of
a record without one it is missing. An object that is cut at the end of a chunk waits for the rest. Options: `columns`,
`bad`, `record_bytes` (how long an object may be, 16 MiB by default).

After bytes that are no msgpack nobody knows where the next object begins: the chunk is refused, also with `skip`.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgpack  # type: ignore[import-untyped,unused-ignore]
import numpy as np

from clachan_lake.transform.batch import Batch, Output, State
from clachan_lake.transform.options import read_msgpack, table
from clachan_lake.transform.records import EVENT_TIME, NONE, RecordError, Times, rows, without_collection

SECONDS_NANOSECONDS = struct.Struct(">II")
OBJECTS = 4096
ARRAY_ITEMS = 1 << 14
"""At most, in any array of an object: memory for them is taken when its length is read, at up to 1,024 levels."""


def transform(batch: Batch, output: Output, state: State) -> None:
    options = read_msgpack(batch.options)
    rest = str(state.pop("rest", "")).encode("latin-1")
    data = b"".join(((b"" if batch.gap else rest), *batch.chunks))
    columns = table(options)
    timed = any(column.path == (EVENT_TIME,) for column in columns.columns)
    made = [np.empty(0, columns.dtype)]
    end = 0
    with without_collection():
        for objects, end in _blocks(data, options.record_bytes):  # noqa: B007 - the last one is used
            records, times = split(objects, timed)
            made.append(rows(records, columns, output, times))
    if end < len(data):
        _leave(batch, output, state, data[end:], options.record_bytes)
    output.append(np.concatenate(made))


def _leave(batch: Batch, output: Output, state: State, rest: bytes, limit: int) -> None:
    if batch.final:
        output.warn(f"object left out: {len(rest)} bytes at the end, expected more of them")
    elif len(rest) > limit:
        raise RecordError(f"object: {len(rest)} bytes without an end, expected at most {limit}")
    else:
        state["rest"] = rest.decode("latin-1")


def _blocks(data: bytes, limit: int) -> Iterator[tuple[list[Any], int]]:
    """Whole objects, some at a time, and where they end. Raises RecordError."""
    unpacker, end = _unpacker(data, limit), 0
    while True:
        objects = _some(unpacker)
        if len(objects) < OBJECTS:
            break
        end = unpacker.tell()
        yield objects, end
    # the unpacker has begun with one that is cut, and no longer knows where it begins
    yield objects, end + _end(data[end:], limit, len(objects))


def _end(data: bytes, limit: int, count: int) -> int:
    """Where so many objects end."""
    unpacker = _unpacker(data, limit)
    for _ in range(count):
        unpacker.skip()
    return int(unpacker.tell())


def _unpacker(data: bytes, limit: int) -> Any:
    unpacker = msgpack.Unpacker(
        raw=False,
        use_list=False,
        strict_map_key=False,
        ext_hook=_extension,
        unicode_errors="surrogateescape",
        max_buffer_size=0,
        max_str_len=limit,
        max_bin_len=limit,
        max_array_len=ARRAY_ITEMS,
        max_map_len=limit // 2,
        max_ext_len=limit,
    )
    unpacker.feed(data)
    return unpacker


def _some(unpacker: Any) -> list[Any]:
    """The next whole objects; less than `OBJECTS` when there are no more. Raises RecordError."""
    try:
        return list(islice(unpacker, OBJECTS))
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise RecordError(f"byte {unpacker.tell()}: {error!s:.100}, expected msgpack objects") from None


def _extension(code: int, data: bytes) -> Any:
    if code == 0 and len(data) == SECONDS_NANOSECONDS.size:
        seconds, nanoseconds = SECONDS_NANOSECONDS.unpack(data)
        return EventTime(seconds * 10**9 + nanoseconds)
    return msgpack.ExtType(code, data)


class EventTime(int):
    """In ns since 1970."""


def split(objects: list[Any], timed: bool = True) -> tuple[Sequence[Any], Times | None]:
    """Records and their times in ns; None unless `timed`."""
    if not objects:
        return (), () if timed else None
    if set(map(type, objects)) == {tuple} and set(map(len, objects)) == {2}:
        times, records = zip(*objects, strict=True)
    else:
        pairs = [found if type(found) is tuple and len(found) == 2 else (None, found) for found in objects]
        times, records = zip(*pairs, strict=True)
    return records, _nanoseconds(times) if timed else None


def _nanoseconds(times: tuple[Any, ...]) -> Times:
    kinds = set(map(type, times))
    if kinds == {EventTime}:
        return np.array(times, np.int64)
    return [int(when) if type(when) is EventTime else when * 10**9 if type(when) is int else NONE for when in times]
