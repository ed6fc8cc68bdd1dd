"""One chunk into the lake, inside the writer's transaction: into a stream or an array, or to the dead letters.

All is checked before anything is changed, so what is refused leaves no trace in a transaction shared with others.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from clachan_lake import following
from clachan_lake.errors import ChunkError, LakeError, TakenError
from clachan_lake.exchange import dtypes
from clachan_lake.format import ArrayRecord, Ids, StreamRecord
from clachan_lake.ingest.registry import Registry, Target
from clachan_lake.ingest.usage import QuotaError
from clachan_lake.local import LocalLake
from clachan_lake.names import check_chunk_id
from clachan_lake.policies.dead import INGEST, LocalDead
from clachan_lake.streams import stream as streams
from clachan_lake.streams.chunk import Chunk

DEAD = "~dead"
"""As which the dead letters are counted in `Usage`."""
PRUNED = 100
"""So many ids at most are forgotten for one that comes."""


class RowsError(LakeError, ValueError):
    """A body that is not whole rows of its array."""


@dataclass(frozen=True)
class Arrival:
    """A chunk on its way."""

    target: Target
    chunk: Chunk
    chunk_id: str | None = None
    offset: int | None = None
    final: bool = False
    content_type: str = ""


@dataclass(frozen=True)
class Stored:
    """`new` is False for a repeat; `size` is the stream's in bytes, or the array's in rows, after it; `dead` the number
    of a dead letter."""

    new: bool
    size: int
    kind: str = "stream"
    dead: int | None = None

    def headers(self) -> dict[str, str]:
        """What the sender is told."""
        if self.dead is not None:
            return {"Clachan-Dead-Letter": str(self.dead)}
        name = "Clachan-Array-Rows" if self.kind == "array" else "Clachan-Stream-Size"
        return {name: str(self.size), "Clachan-Repeat": "false" if self.new else "true"}


def store(lake: LocalLake, registry: Registry, arrival: Arrival) -> Stored:
    """Raises ChunkError for what contradicts, TakenError for a name or an id that cannot be, RowsError, QuotaError."""
    target = arrival.target
    if target.kind == "dead":
        return _bury(lake, registry, arrival, target.refused)
    try:
        check_chunk_id(arrival.chunk_id)
        return _into_array(lake, registry, arrival) if target.kind == "array" else _into_stream(lake, registry, arrival)
    except (ChunkError, TakenError, RowsError) as error:
        if not target.lenient:
            raise
        return _bury(lake, registry, arrival, str(error))


def _into_stream(lake: LocalLake, registry: Registry, arrival: Arrival) -> Stored:
    target, chunk = arrival.target, arrival.chunk
    found = lake.streams.find(target.name)
    if found is None:
        if arrival.offset:
            raise ChunkError(f"stream {target.name}, offset: {arrival.offset}, expected its size 0", 0)
        registry.usage.check_room(target.policy_name, target.policy, chunk.length)
        found = lake.streams.create(target.name, target.policy_name, target.attrs)
    elif found.record.policy != target.policy_name:
        raise ChunkError(
            f"stream {target.name}, policy: {target.policy_name}, expected {found.record.policy}, which made it",
            found.size,
        )
    record = found.record
    known = streams.is_known(record, chunk, arrival.chunk_id, arrival.offset) or _is_repeat(record, arrival)
    if not known:
        registry.usage.check_room(target.policy_name, target.policy, chunk.length)
        _remember_content(record, registry, arrival, record.size)
        streams.append(record, chunk, arrival.chunk_id, lake.root()["due"])
        _forget_old(record.ids, arrival)
        _count(registry, target, record, record.size - record.start)
    if arrival.final:
        found.end()
    return Stored(not known, found.size)


def _into_array(lake: LocalLake, registry: Registry, arrival: Arrival) -> Stored:
    target, chunk = arrival.target, arrival.chunk
    what, row_bytes = f"array {target.name}", target.policy.row_bytes
    if chunk.length % row_bytes:
        raise RowsError(f"{what}, body: {chunk.length} bytes, expected whole rows of {row_bytes} bytes")
    present = target.name in lake.arrays
    if not present and arrival.offset:
        raise ChunkError(f"{what}, offset: {arrival.offset}, expected its size 0", 0)
    if present:
        _check_array(lake, target)
    record = lake.root()["arrays"].get(target.name)
    size = 0 if record is None else lake.arrays[target.name].nbytes
    if record is not None and (_is_known(record, arrival, size) or _is_repeat(record, arrival)):
        return Stored(False, size // row_bytes, "array")
    registry.usage.check_room(target.policy_name, target.policy, chunk.length)
    if record is None:
        record = _make_array(lake, target)
    array = lake.arrays[target.name]
    _remember_content(record, registry, arrival, size)
    if arrival.chunk_id is not None:
        if record.ids is None:
            record.ids = Ids()
        streams.remember(record.ids, arrival.chunk_id, (size, chunk.length, chunk.sha256, _now()))
        _forget_old(record.ids, arrival)
    if chunk.length:
        array.append(_rows(target, chunk), alone=arrival.offset is not None)
    _count(registry, target, record, array.nbytes)
    return Stored(True, array.rows, "array")


def _check_array(lake: LocalLake, target: Target) -> None:
    """Raises ChunkError for an array that another policy made, or that has not the policy's rows. One that was made by
    hand takes the rows of any."""
    array, policy = lake.arrays[target.name], target.policy
    maker = lake.root()["arrays"][target.name].policy
    if maker not in {None, target.policy_name}:
        raise ChunkError(f"array {target.name}, policy: {target.policy_name}, expected {maker}, which made it")
    shape = [*array.shape[1:]]
    if not array.shape or array.order != "C" or array.dtype != policy.row_dtype or shape != policy.row_shape:
        raise ChunkError(
            f"array {target.name}: rows of {shape} {dtypes.to_json(array.dtype)}, order {array.order}, "
            f"expected {policy.row_shape} {policy.dtype}, order C, as policy {target.policy_name} says"
        )


def _make_array(lake: LocalLake, target: Target) -> ArrayRecord:
    policy = target.policy
    lake.arrays.create(target.name, (0, *policy.row_shape), policy.row_dtype, target.attrs)
    record: ArrayRecord = lake.root()["arrays"][target.name]
    record.policy = target.policy_name
    # those followers that look at the policy
    following.attach(lake, "array", record)
    return record


def _is_known(record: ArrayRecord, arrival: Arrival, size: int) -> bool:
    """As of a stream, whose size is the array's bytes."""
    chunk = arrival.chunk
    known = record.ids.known.get(arrival.chunk_id) if record.ids is not None and arrival.chunk_id else None
    if known is not None:
        if known[1:3] != (chunk.length, chunk.sha256):
            raise ChunkError(
                f"array {record.name}, chunk {arrival.chunk_id}: {chunk.length} bytes with sha256 "
                f"{chunk.sha256.hex()}, expected the {known[1]} bytes that are stored under this id"
            )
        return True
    if arrival.offset is not None and arrival.offset != size:
        raise ChunkError(f"array {record.name}, offset: {arrival.offset}, expected its size {size} bytes", size)
    return False


def _rows(target: Target, chunk: Chunk) -> np.ndarray[Any, np.dtype[Any]]:
    """The chunk's rows; a file is mapped, not read."""
    dtype, source = target.policy.row_dtype, chunk.apart
    raw = np.frombuffer(source, dtype) if isinstance(source, bytes) else np.memmap(source, dtype, "r")
    return raw.reshape(-1, *target.policy.row_shape)


def _content_key(arrival: Arrival) -> str | None:
    """Under which equal content of this sender is known; None when nothing is to be recognised by content. No chunk id
    is like it: those are printable."""
    sender, chunk = arrival.target.principal, arrival.chunk
    if not sender.same_content_seconds or not chunk.length:
        return None
    if arrival.chunk_id is not None or arrival.offset is not None:
        return None
    return f"\0{sender.id}\0{chunk.sha256.hex()}"


def _is_repeat(record: StreamRecord | ArrayRecord, arrival: Arrival) -> bool:
    key = _content_key(arrival)
    if key is None or record.contents is None:
        return False
    known = record.contents.known.get(key)
    return known is not None and _now() - known[3] < 1000 * arrival.target.principal.same_content_seconds


def _remember_content(record: StreamRecord | ArrayRecord, registry: Registry, arrival: Arrival, position: int) -> None:
    key = _content_key(arrival)
    if key is None:
        return
    if record.contents is None:
        record.contents = Ids()
    entry = (position, arrival.chunk.length, arrival.chunk.sha256, _now())
    streams.forget(record.contents, int(_now() - 1000 * registry.window), PRUNED)
    if key in record.contents.known:
        record.contents.known[key] = entry
    else:
        streams.remember(record.contents, key, entry)


def _forget_old(ids: Ids, arrival: Arrival) -> None:
    seconds = arrival.target.policy.ids_seconds
    if seconds is not None and arrival.chunk_id is not None:
        streams.forget(ids, _now() - 1000 * seconds, PRUNED)


def _bury(lake: LocalLake, registry: Registry, arrival: Arrival, reason: str) -> Stored:
    target, chunk = arrival.target, arrival.chunk
    held = registry.usage.total(DEAD)
    if held + chunk.length > registry.dead_bytes:
        raise QuotaError(
            f"dead letters: {held} bytes held and {chunk.length} more, expected at most {registry.dead_bytes}; replay "
            f"or delete some ({reason})"
        )
    document = {
        "kind": INGEST,
        "policy": target.policy_name,
        "tag": target.tag,
        "chunk_id": arrival.chunk_id,
        "offset": arrival.offset,
        "final": arrival.final,
        "position": 0,
        "length": chunk.length,
        "reason": reason,
        "content_type": arrival.content_type,
    }
    number = LocalDead(lake).add(document, chunk.apart, chunk.length)
    registry.usage.set(DEAD, ("dead", str(number)), chunk.length)
    return Stored(True, chunk.length, "dead", number)


def _count(registry: Registry, target: Target, record: StreamRecord | ArrayRecord, held: int) -> None:
    if target.policy.quota_bytes is not None and record.policy == target.policy_name:
        registry.usage.set(target.policy_name, (target.kind, target.name), held)


def _now() -> int:
    return time.time_ns() // 10**6
