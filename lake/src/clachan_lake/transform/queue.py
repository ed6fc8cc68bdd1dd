"""Which keys of "positions" have something to do: those in "due", and arrays whose state is another one than it was
when they were caught up."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clachan_lake.documents import LocalDocuments
from clachan_lake.following import Key
from clachan_lake.transform import position
from clachan_lake.transform.position import Position

if TYPE_CHECKING:
    from clachan_lake.local import LocalLake


@dataclass(frozen=True)
class Ready:
    """`seconds` until the next one that waits is ready; None: nothing waits."""

    keys: list[Key]
    seconds: float | None


Known = dict[Key, tuple[bytes, str | None]]
"""Of positions of arrays: the serial of their document, and that which the document names."""


def ready(lake: "LocalLake", known: Known | None = None) -> Ready:
    """As the session sees it. `known` is kept by the caller from call to call."""
    keys, soonest = [], None
    now = position.now()
    paused: dict[str, bool] = {}
    for key in _candidates(lake, {} if known is None else known):
        found = position.get(lake, key)
        if found is not None and _is_paused(lake, key[2], paused):
            continue
        if found is None or is_ready(found, now):
            keys.append(key)
        elif soonest is None or (found.next_try or 0) < soonest:
            soonest = found.next_try
    return Ready(keys, None if soonest is None else max(0.0, (soonest - now) / 1000))


def is_ready(found: Position, now: int | None = None) -> bool:
    return found.next_try is None or found.next_try <= (position.now() if now is None else now)


def _is_paused(lake: "LocalLake", name: str, known: dict[str, bool]) -> bool:
    if name not in known:
        documents = LocalDocuments(lake, "transformations")
        known[name] = name in documents and bool(documents[name].get("paused"))
    return known[name]


def _candidates(lake: "LocalLake", known: Known) -> Iterator[Key]:
    root = lake.root()
    yield from list(root["due"].keys())
    positions, arrays = root["positions"], root["arrays"]
    for key in list(positions.keys(min=("array",), max=("array~",))):
        record = arrays.get(key[1])
        if record is None:
            yield key
            continue
        state = record.state
        state._p_activate()
        if _caught_up(positions[key], key, known) != state._p_serial.hex():
            yield key


def _caught_up(document: Any, key: Key, known: Known) -> str | None:
    """The serial of the array's state when it was."""
    document._p_activate()
    found = known.get(key)
    if found is None or found[0] != document._p_serial:
        found = known[key] = (document._p_serial, json.loads(document.text).get("serial"))
    return found[1]


def revision(lake: "LocalLake") -> bytes:
    """Another one after each declaration."""
    tree = lake.root()["transformations"]
    tree._p_activate()
    return bytes(tree._p_serial)


def forget(lake: "LocalLake", key: Key) -> None:
    """Nobody needs the key any more; in the open transaction."""
    root = lake.root()
    if key in root["due"]:
        root["due"].remove(key)
    if key in root["positions"]:
        del root["positions"][key]
    record = root["streams"].get(key[1]) if key[0] == "stream" else None
    if record is not None and (key[2] in record.due or any(one[0] == key[2] for one in record.followers)):
        record.due = tuple(one for one in record.due if one != key[2])
        record.followers = tuple(one for one in record.followers if one[0] != key[2])
