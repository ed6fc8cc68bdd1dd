"""Settings files: a JSON object read into a dataclass. What is unknown, missing or of the wrong type is named."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")
Reader = Callable[[Any], Any]
"""Makes a field's value of its JSON; raises ValueError that says what was expected."""


def load(path: Path, kind: type[T], readers: Mapping[str, Reader] = MappingProxyType({})) -> T:
    """`read` of a file. Raises ValueError that names file and key, OSError when the file cannot be read."""
    return read(_document(path), kind, readers, f"file {path}")


def read(document: Any, kind: type[T], readers: Mapping[str, Reader] = MappingProxyType({}), what: str = "") -> T:
    """An instance of the dataclass `kind`, whose fields are bool, int, float, str, Path, perhaps with None; for other
    fields there is a reader. Raises ValueError that begins with `what` and names the key."""
    if not isinstance(document, dict):
        raise ValueError(f"{what}: {type(document).__name__}, expected an object")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for key in document:
        if key not in known:
            raise ValueError(f"{what}, key {key!s:.80}: unknown, expected one of {', '.join(known)}")
    values = {}
    for key, spec in known.items():
        if key in document:
            values[key] = _value(what, key, document[key], readers.get(key) or _reader(hints[key]))
        elif _required(spec):
            raise ValueError(f"{what}, key {key}: missing, expected a value")
    return kind(**values)


def read_token(path: Path) -> str:
    """The first line of a token file; raises ValueError when there is none, OSError when it cannot be read."""
    token = path.read_text().partition("\n")[0].strip()
    if len(token) < 8 or not token.isascii():
        raise ValueError(f"file {path}: a token of {len(token)} characters, expected at least 8, ASCII")
    return token


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"file {path}: {error}, expected JSON") from error


def _required(spec: "Field[Any]") -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING


def _value(what: str, key: str, value: Any, reader: Reader) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise ValueError(f"{what}, key {key}: {error}") from error


def _reader(hint: Any) -> Reader:
    if isinstance(hint, UnionType):
        inner = _reader(next(kind for kind in get_args(hint) if kind is not type(None)))
        return lambda value: None if value is None else inner(value)
    return _READERS[hint]


def _integer(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.80}, expected a whole number of at least 0")
    return value


def _number(value: Any) -> float:
    if type(value) not in {int, float} or value < 0:
        raise ValueError(f"{value!r:.80}, expected a number of at least 0")
    return float(value)


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r:.80}, expected true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r:.80}, expected text")
    return value


def positive(value: Any) -> int | None:
    """Reader of a count that may be left out."""
    if value is not None and (type(value) is not int or not 0 < value < 1 << 62):
        raise ValueError(f"{value!r:.80}, expected a whole number of at least 1, or null")
    return value


def choice(*choices: str) -> Reader:
    """Reader of one of these texts."""

    def one_of(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{value!r:.80}, expected {' or '.join(choices)}")
        return value

    return one_of


_READERS: dict[Any, Reader] = {
    bool: _truth,
    int: _integer,
    float: _number,
    str: _text,
    Path: lambda value: Path(_text(value)),
}
