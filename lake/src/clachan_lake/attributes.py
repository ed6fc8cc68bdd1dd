"""Attributes of streams and arrays: JSON values by name, kept as text in the record."""

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any


class Attributes(MutableMapping[str, Any]):
    """A change belongs to a transaction; a list or dict is a copy: assign it anew to change it. `what` is the array or
    stream, `writing` raises outside a transaction, `changed` is told of each change."""

    def __init__(
        self, record: Any, what: str, writing: Callable[[str], None], changed: Callable[[], None] = lambda: None
    ) -> None:
        self._record = record
        self._what = what
        self._writing = writing
        self._changed = changed

    def __getitem__(self, key: str) -> Any:
        return self._values()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._store({**self, key: value})

    def __delitem__(self, key: str) -> None:
        rest = self._values()
        del rest[key]
        self._store(rest)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __repr__(self) -> str:
        return f"Attributes({self._values()!r})"

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self._record.attrs)
        return values

    def _store(self, values: dict[str, Any]) -> None:
        self._writing(f"{self._what}: set attributes")
        self._record.attrs = json_text(self._what, values)
        self._changed()


def json_text(what: str, attrs: Mapping[str, Any]) -> str:
    """Of attributes; raises TypeError for what is no JSON."""
    try:
        return json.dumps(dict(attrs), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what}, attributes: {error}, expected JSON values") from error
