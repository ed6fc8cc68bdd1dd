"""The transformation `csv`: lines of fields become rows of a structured array (see `records`).

A line that is cut at the end of a chunk waits for the rest. Options: `columns`, whose keys are names of the header or
of their own where there is none; `header`: true (default), the stream's first line names the fields; false, the columns
are the fields; or a list of the fields' names; `delimiter` (`,`), `quote` (`"`, doubled inside of itself; line ends
between quotes are text), `bad`, `line_bytes` (1 MiB). A line with more fields than names is a record with an error; in
one with fewer the last are missing, as are empty fields. Empty lines are passed over.
"""

import csv
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clachan_lake.interface import AnyArray
from clachan_lake.transform import lines
from clachan_lake.transform.batch import Batch, Output, State
from clachan_lake.transform.options import CsvOptions, read_csv, table
from clachan_lake.transform.records import TROUBLE, Column, RecordError, as_whole, convert, fitting, rows, since_1970

BOOLEAN = re.compile(rb"true|false", re.IGNORECASE)
FAST_BYTES = 4096
"""Below, starting pandas' parser takes longer than Python's."""


def transform(batch: Batch, output: Output, state: State) -> None:
    options = read_csv(batch.options)
    data = lines.take(batch, state, options.line_bytes, options.quote.encode())
    names, data = _names(options, batch, state, data)
    found = parse(data, names, options, output) if names else np.empty(0, table(options).dtype)
    output.append(found)


def _names(options: CsvOptions, batch: Batch, state: State, data: bytes) -> tuple[Sequence[str], bytes]:
    """Of the fields, and what is behind the header; no names while the header is not there yet."""
    if isinstance(options.header, tuple):
        return options.header, data
    if not options.header:
        return [column.path[0] for column in options.columns], data
    if "names" in state:
        return state["names"], data
    if not data:
        return (), data
    if batch.start and (batch.gap or ("rest" not in state and not batch.chunks)):
        raise RecordError("header: in what was given up, expected the option header to name the fields")
    head, _, data = data.partition(b"\n")
    names = next(_split([head.decode("utf-8-sig").rstrip("\r")], options), [])
    for column in options.columns:
        if column.path[0] not in names:
            raise RecordError(f"header: {names!r:.200}, expected {column.path[0]} among its names")
    state["names"] = names
    return names, data


def parse(data: bytes, names: Sequence[str], options: CsvOptions, output: Output) -> AnyArray:
    """The lines as a structured array; raises RecordError."""
    if len(data) >= FAST_BYTES:
        try:
            return _parse_fast(data, names, options)
        except (*TROUBLE, Warning):
            pass  # what it is says the other
    return rows(list(_records(data, names, options, output)), table(options), output)


def _parse_fast(data: bytes, names: Sequence[str], options: CsvOptions) -> AnyArray:
    """By pandas' parser; raises something when there is anything unusual."""
    import pandas  # type: ignore[import-untyped,unused-ignore]

    if b"\0" in data or (b"\r" in data and b"\r" in data.replace(b"\r\n", b"")):
        raise RecordError("NUL or CR: left to Python's parser")
    wanted = {column.path[0]: column for column in options.columns}
    kinds = _kinds(data, names, wanted, options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # without `usecols`, with which it would take a line with more fields than names
        frame = pandas.read_csv(
            io.BytesIO(data),
            sep=options.delimiter,
            quotechar=options.quote,
            header=None,
            names=list(names),
            dtype={**dict.fromkeys(names, "S1"), **kinds},
            index_col=False,
            engine="c",
            encoding="utf-8",
            keep_default_na=False,
            na_values={key: [""] for key, kind in kinds.items() if kind[0] not in "sS"},
            low_memory=True,
        )
    # pandas takes a column of nothing but truth values for numbers
    numbers = (frame[key].to_numpy() for key, kind in kinds.items() if kind[0] in "iuf")
    if any(map(_only_bits, numbers)) and BOOLEAN.search(data):
        raise RecordError("true or false: left to Python's parser")
    out = np.empty(len(frame), table(options).dtype)
    for column in options.columns:
        out[column.name] = _column(column, frame[column.path[0]])
    return out


def _only_bits(values: AnyArray) -> bool:
    """Whether there are no other numbers than 0 and 1."""
    return all(((part == 0) | (part == 1) | np.isnan(part)).all() for part in (values[:1], values))


def _kinds(data: bytes, names: Sequence[str], wanted: dict[str, Column], options: CsvOptions) -> dict[str, str]:
    """pandas' dtypes. A column of times is of numbers or of text, as its first one is."""
    first = next(_split([data[: data.index(b"\n")].decode()], options))
    found = dict(zip(names, first, strict=True))
    return {key: _kind(column, found[key].strip()) for key, column in wanted.items()}


def _kind(column: Column, first: str) -> str:
    kind = column.dtype.kind
    if kind == "S":
        # one more, so that longer texts are seen
        return f"S{column.dtype.itemsize + 1}"
    if kind == "M" and _is_number(first):
        return "int64" if first.lstrip("-").isdigit() else "float64"
    return {"f": "float64", "i": "int64", "u": "uint64"}.get(kind, "str")


def _column(column: Column, series: Any) -> AnyArray:
    import pandas  # type: ignore[import-untyped,unused-ignore]

    kind = column.dtype.kind
    if kind in "biuUM" and series.dtype.kind not in "iuf":
        if kind == "M":
            moments = pandas.to_datetime(series, utc=True, format="ISO8601").dt.tz_localize(None)
            return np.asarray(moments.to_numpy().astype(column.dtype))
        return convert(column, _typed(column, series.tolist()))
    found = series.to_numpy()
    if kind == "S":
        # NUL there is none
        if np.ascontiguousarray(found).view(np.uint8).reshape(-1, found.dtype.itemsize)[:, -1].any():
            raise RecordError("a text too long")
        return np.asarray(found.astype(column.dtype))
    if kind == "M":
        return since_1970(column, found)
    if kind == "f":
        return np.asarray(found) if column.dtype.itemsize == 8 else fitting(column, found)
    return as_whole(column, found)


def _records(data: bytes, names: Sequence[str], options: CsvOptions, output: Output) -> Iterator[dict[str, Any]]:
    """By Python's parser, line by line."""
    typed = {column.path[0]: column for column in options.columns}
    text = data.decode("utf-8", "surrogateescape")
    for fields in _split(io.StringIO(text, newline=""), options):
        if len(fields) > len(names):
            message = f"line {fields!r:.60}: {len(fields)} fields, expected at most {len(names)}"
            if not options.bad:
                raise RecordError(message)
            output.warn(f"record left out: {message}")
        elif fields:
            yield {name: _value(typed[name], value) for name, value in zip(names, fields) if name in typed}  # noqa: B905


def _split(text: Any, options: CsvOptions) -> Iterator[list[str]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(text, delimiter=options.delimiter, quotechar=options.quote, strict=False)
    try:
        yield from reader
    except csv.Error as error:
        raise RecordError(f"line {reader.line_num}: {error!s:.100}, expected fields") from None


def _typed(column: Column, values: list[str]) -> list[Any]:
    return [_value(column, value) for value in values]


def _value(column: Column, value: str) -> Any:
    """A field as JSON would have it."""
    kind = column.dtype.kind
    if kind in "SU":
        return value
    if not value.strip():
        return None
    if kind == "b":
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower(), value)
    if kind == "M" and _is_number(value):
        return int(value) if value.strip().lstrip("-").isdigit() else float(value)
    return value


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
