"""Records to structured arrays: what `csv`, `jsonl` and `msgpack` have in common.

The option `columns` says what is made of a record, a list of objects:

    name    the column's
    dtype   bool, int8 ... uint64, float16 ... float64, S<n> (bytes of UTF-8), U<n>, datetime64[s|ms|us|ns]
    key     where the value is in the record: a key, or a list of keys that lead into records of records; by default
            the name. In msgpack `@time` is the time that fluentd gives each event
    unit    of times that are numbers: s (default), ms, us, ns since 1970 in UTC

A value that is missing or null is NaN, NaT or empty text; where a column has none of these it is an error, as is a
value that does not fit: text in a column of numbers, a fraction or a number too great for an integer, text that is too
long. Numbers may be written as text. Times are numbers or text of ISO 8601, in UTC where it names no zone. The option
`bad` says what is done with a record that has an error: `refuse` (default), then none of the chunk is taken; or
`skip`, then it is left out with a warning.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import numpy as np

from clachan_lake.interface import AnyArray
from clachan_lake.transform.batch import ContentError, Output

COLUMNS = 1024
ITEM_BYTES = 1 << 16
EVENT_TIME = "@time"
UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
Times = Sequence[int] | AnyArray
NONE = np.iinfo(np.int64).min
TROUBLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What records of others' making raise in numpy and Python."""


class RecordError(ContentError):
    """A record that does not become a row; says which value, and what was expected."""


@dataclass(frozen=True)
class Column:
    name: str
    dtype: np.dtype[Any]
    path: tuple[str, ...]
    unit: str = "s"


@dataclass(frozen=True)
class Columns:
    columns: tuple[Column, ...]
    skip: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype([(column.name, column.dtype) for column in self.columns])


def read_columns(value: Any) -> tuple[Column, ...]:
    """Of the option; raises ValueError."""
    if not isinstance(value, list) or not 0 < len(value) <= COLUMNS:
        raise ValueError(f"{value!r:.80}, expected a list of 1 to {COLUMNS} columns")
    columns = tuple(_read_column(one) for one in value)
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        raise ValueError(f"{names!r:.80}, expected each name once")
    return columns


def read_bad(value: Any) -> bool:
    """Whether records with an error are skipped."""
    if value not in ("refuse", "skip"):
        raise ValueError(f"{value!r:.80}, expected refuse or skip")
    return bool(value == "skip")


def _read_column(value: Any) -> Column:
    if not isinstance(value, dict) or not {"name", "dtype"} <= value.keys() <= {"name", "dtype", "key", "unit"}:
        raise ValueError(f"column {value!r:.80}, expected {{name, dtype, key, unit}}, the last two if needed")
    name, key, unit = value["name"], value.get("key", value["name"]), value.get("unit", "s")
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 200:
        raise ValueError(f"column name {name!r:.80}, expected 1-200 printable characters")
    path: list[Any] = key if isinstance(key, list) else [key]
    if not path or not all(isinstance(one, str) and one for one in path):
        raise ValueError(f"column {name}, key: {key!r:.80}, expected text or a list of texts")
    if unit not in UNITS:
        raise ValueError(f"column {name}, unit: {unit!r:.80}, expected one of {', '.join(UNITS)}")
    return Column(name, _read_dtype(name, value["dtype"]), tuple(path), unit)


def _read_dtype(name: str, value: Any) -> np.dtype[Any]:
    expected = "expected bool, an int, uint, float, S<n>, U<n> or datetime64[s|ms|us|ns]"
    try:
        dtype = np.dtype(value) if isinstance(value, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    known = dtype is not None and dtype.names is None and dtype.subdtype is None and 0 < dtype.itemsize <= ITEM_BYTES
    if dtype is None or not known or dtype.kind not in "biufSUM" or (dtype.itemsize == 16 and dtype.kind == "f"):
        raise ValueError(f"column {name}, dtype: {value!r:.80}, {expected}")
    if dtype.kind == "M" and np.datetime_data(dtype) not in {(unit, 1) for unit in UNITS}:
        raise ValueError(f"column {name}, dtype: {value!r:.80}, {expected}")
    return dtype.newbyteorder("<")


@contextmanager
def without_collection() -> Iterator[None]:
    """Many small objects without cycles: looking for cycles among them takes as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def rows(records: Sequence[Any], columns: Columns, output: Output, times: Times | None = None) -> AnyArray:
    """The records as a structured array; `times` are those of fluentd's events, in ns. Raises RecordError."""
    try:
        return _rows(records, columns, times)
    except TROUBLE as error:
        if not columns.skip:
            raise _named(records, columns, times, error) from None
    made = []
    for number, record in enumerate(records):
        try:
            made.append(_rows([record], columns, None if times is None else times[number : number + 1]))
        except TROUBLE as error:
            output.warn(f"record left out: {error!s:.200}")
    return np.concatenate(made) if made else np.empty(0, columns.dtype)


def _named(records: Sequence[Any], columns: Columns, times: Times | None, error: Exception) -> RecordError:
    """The error of the first record that has one."""
    for number, record in enumerate(records):
        try:
            _rows([record], columns, None if times is None else times[number : number + 1])
        except TROUBLE as one:
            return RecordError(f"record {number} of {len(records)}: {one!s:.300}")
    return RecordError(f"{len(records)} records: {error!s:.300}")


def _rows(records: Sequence[Any], columns: Columns, times: Times | None) -> AnyArray:
    if set(map(type, records)) - {dict}:
        other = next(record for record in records if type(record) is not dict)
        raise RecordError(f"{other!r:.60}, expected a record")
    out = np.empty(len(records), columns.dtype)
    for column in columns.columns:
        if times is not None and column.path == (EVENT_TIME,):
            out[column.name] = of_event_times(column, times)
        else:
            out[column.name] = convert(column, _values(records, column.path))
    return out


def _values(records: Sequence[Any], path: tuple[str, ...]) -> list[Any]:
    *way, key = path
    for step in way:
        records = [record.get(step) or {} for record in records]
        if any(type(record) is not dict for record in records):
            raise RecordError(f"key {step}: a value, expected a record")
    try:
        return list(map(itemgetter(key), records))
    except KeyError:
        return [record.get(key) for record in records]


def convert(column: Column, values: list[Any]) -> AnyArray:
    """The values of one column; raises RecordError, or numpy's ValueError, TypeError, OverflowError."""
    kind = column.dtype.kind
    try:
        if kind in "SU":
            found = _texts(column, values)
        elif kind == "M":
            found = _times(column, values)
        elif kind == "f":
            found = _floats(column, values)
        else:
            found = as_whole(column, np.asarray(_integers(values) if kind in "iu" else values))
    except RecordError:
        raise
    except (ValueError, TypeError, OverflowError):
        raise RecordError(f"column {column.name}: {_shown(values)}, expected {column.dtype}") from None
    if found.ndim != 1:
        raise RecordError(f"column {column.name}: {_shown(values)}, expected {column.dtype}")
    return found


def _shown(values: list[Any]) -> str:
    return f"{values[0]!r:.60}" if len(values) == 1 else "a value"


def _floats(column: Column, values: list[Any]) -> AnyArray:
    found = np.array(values, np.float64)
    if column.dtype.itemsize < 8:
        return fitting(column, found)
    return found


def fitting(column: Column, found: AnyArray) -> AnyArray:
    """Floats as narrower ones; raises RecordError where that makes infinity of a number."""
    with np.errstate(over="ignore"):
        narrow = found.astype(column.dtype)
    if (np.isinf(narrow) & ~np.isinf(found)).any():
        raise RecordError(f"column {column.name}: a number too great, expected {column.dtype}")
    return narrow


def _integers(values: list[Any]) -> list[Any]:
    """Texts and floats that are integers as such, each by itself: numpy would make floats or texts of all."""
    if set(map(type, values)) <= {int, bool}:
        return values
    return [_integer(value) for value in values]


def _integer(value: Any) -> Any:
    number = value
    if type(value) is str and "_" not in value:
        try:
            return int(value)
        except ValueError:
            number = float(value)
    return int(number) if type(number) is float and number.is_integer() and abs(number) < 2**64 else value


def as_whole(column: Column, found: AnyArray) -> AnyArray:
    """Numbers as the integers or booleans of a column; raises RecordError where they are none."""
    dtype = column.dtype
    if found.size == 0:
        return found.astype(dtype)
    if dtype.kind == "b" or found.dtype.kind == "b":
        whole = found.dtype.kind == "b" and dtype.kind in "biu"
    elif found.dtype.kind == "f":
        limits = np.iinfo(dtype)
        inside = (found >= limits.min) & (found < float(limits.max) + 1)
        whole = bool((inside & (found == np.rint(found))).all())
    else:
        limits = np.iinfo(dtype)
        whole = found.dtype.kind in "iu" and int(found.min()) >= limits.min and int(found.max()) <= limits.max
    return found.astype(dtype) if whole else _no(column, found)


def _no(column: Column, found: AnyArray) -> AnyArray:
    shown = _shown(found.tolist())
    raise RecordError(f"column {column.name}: {shown}, expected {column.dtype}")


def _texts(column: Column, values: list[Any]) -> AnyArray:
    as_bytes = column.dtype.kind == "S"
    found = np.array(_encoded(values) if as_bytes else [_text(value, False) for value in values])
    if found.size and found.dtype.itemsize > column.dtype.itemsize:
        width = 1 if as_bytes else 4
        raise RecordError(
            f"column {column.name}: text of {found.dtype.itemsize // width} {'bytes' if as_bytes else 'characters'}, "
            f"expected at most {column.dtype.itemsize // width}"
        )
    return found.astype(column.dtype)


def _encoded(values: list[Any]) -> list[bytes]:
    try:
        return list(map(str.encode, values))
    except (TypeError, UnicodeEncodeError):
        return [_text(value, True) for value in values]


def _text(value: Any, as_bytes: bool) -> Any:
    if type(value) is str:
        # what was no UTF-8 has come as it was so far
        return value.encode("utf-8", "surrogateescape") if as_bytes else _checked(value)
    if value is None:
        return b"" if as_bytes else ""
    if type(value) is bytes:
        return value if as_bytes else value.decode()
    if isinstance(value, dict | list | tuple):
        raise RecordError(f"{value!r:.60}, expected text")
    return str(value).encode() if as_bytes else str(value)


def _checked(value: str) -> str:
    if not value.isascii():
        value.encode()
    return value


def _times(column: Column, values: list[Any]) -> AnyArray:
    kinds = set(map(type, values))
    if kinds in ({int}, {float}):
        return since_1970(column, np.asarray(values))
    out = np.full(len(values), NONE).view(column.dtype)
    numbers: dict[type, list[int]] = {int: [], float: []}
    for place, value in enumerate(values):
        if type(value) in numbers:
            numbers[type(value)].append(place)
        elif isinstance(value, str) and value:
            out[place] = np.array([_parsed(column, value)], np.int64).view("M8[us]").astype(column.dtype)[0]
        elif value is not None and value != "":
            raise RecordError(f"column {column.name}: {value!r:.60}, expected a time")
    for places in numbers.values():
        if places:
            out[places] = since_1970(column, np.asarray([values[place] for place in places]))
    return out


def since_1970(column: Column, found: AnyArray) -> AnyArray:
    """Numbers, all integers or all floats, as times; raises RecordError."""
    given, kept = UNITS[column.unit], UNITS[np.datetime_data(column.dtype)[0]]
    up, down = max(1, given // kept), max(1, kept // given)
    if found.dtype.kind == "f":
        # in the column's own unit: so there is no digit more than the number has
        scaled = found * np.float64(up) if up > 1 else found / np.float64(down)
        np.rint(scaled, scaled)
        gaps = np.isnan(scaled)
        scaled[gaps] = 0
        if not -(2.0**63) < scaled.min(initial=0) <= scaled.max(initial=0) < 2.0**63:
            raise _no_time(column, found)
        whole = scaled.astype(np.int64)
        whole[gaps] = NONE
        return whole.view(column.dtype)
    limit = (2**63 - 1) // up
    if found.dtype.kind not in "iu" or int(np.min(found, initial=0)) < -limit or int(np.max(found, initial=0)) > limit:
        raise _no_time(column, found)
    return (found.astype(np.int64) * up // down).view(column.dtype)


def _no_time(column: Column, found: AnyArray) -> RecordError:
    return RecordError(f"column {column.name}: {_shown(found.tolist())}, expected a time")


def _parsed(column: Column, text: str) -> int:
    """Microseconds since 1970 in UTC."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise RecordError(f"column {column.name}: {text!r:.60}, expected a time in ISO 8601") from None
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    whole = when - datetime(1970, 1, 1, tzinfo=UTC)
    return (whole.days * 86_400 + whole.seconds) * 10**6 + whole.microseconds


def of_event_times(column: Column, times: Times) -> AnyArray:
    """fluentd's times, in ns, as values of a column."""
    found = np.asarray(times, np.int64)
    if column.dtype.kind == "M":
        return found.view("M8[ns]").astype(column.dtype)
    if column.dtype.kind == "f":
        return (found / 10**9).astype(column.dtype)
    if column.dtype.kind in "iu":
        return as_whole(column, found // (10**9))
    raise RecordError(f"column {column.name}: {column.dtype}, expected datetime64, a float or an integer for a time")
