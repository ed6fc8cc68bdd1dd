"""The options of the built-in transformations, read where they are declared: nothing here needs what runs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clachan_lake import settings
from clachan_lake.transform.records import Column, Columns, read_bad, read_columns

LINE_BYTES = 1 << 20
RECORD_BYTES = 16 << 20
MAXIMUM_BYTES = 64 << 20


@dataclass(frozen=True)
class NoOptions:
    """Of `wav` and `minmax`."""


@dataclass(frozen=True)
class JsonOptions:
    columns: tuple[Column, ...]
    bad: bool = False
    line_bytes: int = LINE_BYTES
    """A line may be so long."""


@dataclass(frozen=True)
class CsvOptions:
    columns: tuple[Column, ...]
    bad: bool = False
    line_bytes: int = LINE_BYTES
    header: tuple[str, ...] | bool = True
    """Whether the stream's first line names the fields; or their names. Without, the columns are the fields."""
    delimiter: str = ","
    quote: str = '"'


@dataclass(frozen=True)
class MsgpackOptions:
    columns: tuple[Column, ...]
    bad: bool = False
    record_bytes: int = RECORD_BYTES
    """A record may be so long."""


def table(options: JsonOptions | CsvOptions | MsgpackOptions) -> Columns:
    return Columns(options.columns, options.bad)


def read_json(value: Any) -> JsonOptions:
    return settings.read(value, JsonOptions, {**RECORDS, "line_bytes": _read_bytes}, "options")


def read_csv(value: Any) -> CsvOptions:
    readers = {
        **RECORDS,
        "line_bytes": _read_bytes,
        "header": _read_header,
        "delimiter": _read_mark,
        "quote": _read_mark,
    }
    options = settings.read(value, CsvOptions, readers, "options")
    for column in options.columns:
        if len(column.path) > 1:
            raise ValueError(f"options, key columns: column {column.name}, key: {column.path}, expected text for csv")
        if isinstance(options.header, tuple) and column.path[0] not in options.header:
            raise ValueError(
                f"options, key columns: column {column.name}, key: {column.path[0]}, expected one of header"
            )
    if options.delimiter == options.quote:
        raise ValueError(f"options, key quote: {options.quote!r}, expected another character than the delimiter")
    return options


def read_msgpack(value: Any) -> MsgpackOptions:
    return settings.read(value, MsgpackOptions, {**RECORDS, "record_bytes": _read_bytes}, "options")


def read_none(value: Any) -> NoOptions:
    return settings.read(value, NoOptions, {}, "options")


def _read_bytes(value: Any) -> int:
    if type(value) is not int or not 16 <= value <= MAXIMUM_BYTES:
        raise ValueError(f"{value!r:.80}, expected a whole number from 16 to {MAXIMUM_BYTES}")
    return value


def _read_header(value: Any) -> tuple[str, ...] | bool:
    if isinstance(value, bool):
        return value
    good = isinstance(value, list) and value and all(isinstance(one, str) and one for one in value)
    if not good or len(set(value)) < len(value):
        raise ValueError(f"{value!r:.80}, expected true, false or a list of names, each once")
    return tuple(value)


def _read_mark(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 1 or not value.isascii() or value.isalnum() or value in "\r\n\0.+- ":
        raise ValueError(f"{value!r:.80}, expected one ASCII character that stands in no number")
    return value


RECORDS: Mapping[str, settings.Reader] = {"columns": read_columns, "bad": read_bad}
READERS: Mapping[str, Callable[[Any], Any]] = {
    "wav": read_none,
    "minmax": read_none,
    "csv": read_csv,
    "jsonl": read_json,
    "msgpack": read_msgpack,
}
"""Of each built-in's options; they raise ValueError that names the key."""
