"""Forgetting what a transformation made of a source, to make it again from the start."""

from collections.abc import Set
from typing import Any

from clachan_lake.errors import LakeError
from clachan_lake.following import Key
from clachan_lake.transform.position import Position


class SharedError(LakeError, ValueError):
    """An output is made of other sources as well."""


def reset(lake: Any, key: Key, found: Position, among: Set[str] = frozenset()) -> None:
    """Delete what was made of the source, and set its position to the start, in the open transaction of a local lake.
    What is made of several sources is deleted when it is all `among` these; else raises SharedError."""
    for kind, name in found.outputs:
        records = lake.arrays if kind == "array" else lake.streams
        if name not in records or records[name].attrs.get("transformation") != key[2]:
            continue
        others = set(records[name].attrs.get("sources", [])) - {key[1], *among}
        if others:
            raise SharedError(
                f"{kind} {name!r}: made of {key[1]!r} and {len(others)} others, expected a back-fill of all sources"
            )
        del records[name]
    fresh, kept = Position(), {"revision", "dead", "updated"}
    for name in Position.__dataclass_fields__:
        if name not in kept:
            setattr(found, name, getattr(fresh, name))
