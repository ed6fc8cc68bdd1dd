"""The streams and arrays that a call of a transformation's function adds to, in the transaction that is open."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from transaction.interfaces import TransientError

from clachan_lake import following
from clachan_lake.errors import LakeError
from clachan_lake.interface import AnyArray
from clachan_lake.local import LocalLake
from clachan_lake.names import check_name
from clachan_lake.streams.stream import LocalStream
from clachan_lake.transform.batch import Kind, Output
from clachan_lake.transform.document import SYSTEM, Transformation

SOURCES = 100
"""So many are named in the attributes of what is made of many."""

DESCRIPTION = ("title", "description", "tags", "owner", "license")
LINEAGE = frozenset({"source", "source_kind", "transformation", "sources"})
"""Attributes that a function does not set."""


class OutputError(LakeError, ValueError):
    """What a function gave out cannot be added to its output."""


class LocalOutput(Output):
    """`anew`: what the transformation made of this source before is replaced. `trouble` is what the lake itself raised,
    the disk's or another writer's, which is not the function's fault."""

    def __init__(
        self, lake: LocalLake, name: str, transformation: Transformation, kind: Kind, source: str, *, anew: bool
    ) -> None:
        self._lake = lake
        self._name = name
        self._transformation = transformation
        self._kind = kind
        self._source = source
        self._anew = anew
        self.default = transformation.output_name(source)
        self.used: dict[tuple[str, str], None] = {}
        self.warnings: list[str] = []
        self.trouble: BaseException | None = None

    def append(self, what: Any, name: str | None = None, attrs: Mapping[str, Any] | None = None) -> None:
        name = self._checked(name)
        try:
            if isinstance(what, bytes | bytearray | memoryview):
                self._append_bytes(name, bytes(what), attrs or {})
            else:
                self._append_rows(name, _as_rows(name, what), attrs or {})
        except (TransientError, OSError, MemoryError) as error:
            self.trouble = error
            raise

    def warn(self, text: str) -> None:
        self.warnings.append(str(text))

    def array(self, name: str) -> Any:
        if name not in self._lake.arrays:
            return None
        self._check_own("array", name, self._lake.arrays[name].attrs)
        return self._lake.arrays[name]

    def end(self) -> None:
        """The streams have no more to come."""
        for kind, name in self.used:
            if kind == "stream":
                self._lake.streams[name].end()

    def _checked(self, name: str | None) -> str:
        if name is None:
            name = self.default
        check_name("output", name)
        if name.startswith(SYSTEM) and self._transformation.function != "minmax":
            raise OutputError(f"output {name!r:.80}: expected a name that does not begin with {SYSTEM}")
        return name

    def _append_bytes(self, name: str, data: bytes, attrs: Mapping[str, Any]) -> None:
        if not data and not attrs:
            return
        stream = self._stream(name)
        if data:
            stream.append(data)
        _set(stream.attrs, attrs)

    def _stream(self, name: str) -> LocalStream:
        streams, kept = self._lake.streams, {}
        if name in streams:
            self._check_own("stream", name, streams[name].attrs)
            if self._anew and ("stream", name) not in self.used:
                kept = _described(streams[name].attrs)
                del streams[name]
        if name not in streams:
            self._check_new("stream", name)
            made = streams.create(name, f"{SYSTEM}{self._name}"[:100], {**kept, **self._lineage()})
            following.unfollow(self._lake, "stream", made.record, self._name)
        self.used["stream", name] = None
        self._add_source(streams[name].attrs)
        return streams[name]

    def _append_rows(self, name: str, rows: AnyArray, attrs: Mapping[str, Any]) -> None:
        arrays, kept = self._lake.arrays, {}
        if name in arrays:
            self._check_own("array", name, arrays[name].attrs)
            if self._anew and ("array", name) not in self.used:
                kept = _described(arrays[name].attrs)
                del arrays[name]
        if name not in arrays:
            self._check_new("array", name)
            arrays.create(name, (0, *rows.shape[1:]), rows.dtype, {**kept, **attrs, **self._lineage()})
            following.unfollow(self._lake, "array", self._lake.root()["arrays"][name], self._name)
        array = arrays[name]
        if rows.dtype != array.dtype or rows.shape[1:] != array.shape[1:]:
            wanted = f"({', '.join(map(str, ('n', *array.shape[1:])))})"
            raise OutputError(
                f"output {name}: rows of {rows.dtype}, shape {rows.shape}, expected {array.dtype}, shape {wanted}"
            )
        self.used["array", name] = None
        if len(rows):
            array.append(rows)
        self._add_source(array.attrs)
        _set(array.attrs, attrs)

    def _lineage(self) -> dict[str, Any]:
        return {"source": self._source, "source_kind": self._kind, "transformation": self._name}

    def _check_own(self, kind: str, name: str, attrs: Mapping[str, Any]) -> None:
        maker = attrs.get("transformation")
        # before format 3 its arrays named only their source
        if maker == self._name or (maker is None and attrs.get("source") == self._source and "source_bytes" in attrs):
            return
        raise OutputError(f"{kind} {name!r}: exists, expected a free name or what this transformation made")

    def _check_new(self, kind: str, name: str) -> None:
        """Raises OutputError for what is made of what this transformation made: that would have no end."""
        at: tuple[str, Any] = (self._kind, self._source)
        for _ in range(32):
            records = self._lake.arrays if at[0] == "array" else self._lake.streams
            attrs = records[at[1]].attrs if at[1] in records else {}
            if attrs.get("transformation") == self._name:
                raise OutputError(f"{kind} {name!r}: of what this transformation made itself, expected another source")
            if not isinstance(attrs.get("source"), str):
                return
            at = (str(attrs.get("source_kind", "stream")), attrs["source"])

    def _add_source(self, attrs: Any) -> None:
        """Of what is made of several sources."""
        if attrs.get("source") == self._source:
            return
        known = attrs.get("sources", [attrs.get("source")])
        if self._source not in known and len(known) < SOURCES:
            attrs["sources"] = [*known, self._source]


def _as_rows(name: str, what: Any) -> AnyArray:
    rows = np.asarray(what)
    if rows.dtype.hasobject or rows.dtype.itemsize == 0 or rows.ndim == 0:
        raise OutputError(
            f"output {name}: {rows.dtype} of shape {rows.shape}, expected bytes, or rows of numbers, texts of a fixed "
            "size or structures of them"
        )
    return rows


def _described(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What people say of a data set, which stays when it is made anew."""
    return {key: attrs[key] for key in DESCRIPTION if key in attrs}


def _set(attrs: Any, wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if key in LINEAGE:
            continue
        if key not in attrs or attrs[key] != value:
            attrs[key] = value
