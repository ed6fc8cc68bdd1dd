"""Streams of a local lake: the rules of a record, and the interface over it.

A chunk whose id is known and whose content is the same changes nothing; the same id with other content is refused. A
chunk after the end opens the stream again: nothing that a sender was told is stored may be refused or lost later, and
what waits for the end runs again when the stream ends again.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from isal.isal_zlib import crc32
from ZODB.POSException import POSKeyError

from clachan_lake import following, holders
from clachan_lake.attributes import Attributes
from clachan_lake.documents import Session
from clachan_lake.errors import ChunkError, CorruptError, TruncatedError
from clachan_lake.format import BLOCK, Ids, StreamRecord
from clachan_lake.interface import Stream
from clachan_lake.names import check_chunk_id
from clachan_lake.streams.chunk import Chunk
from clachan_lake.streams.extents import Room

AHEAD = 64
BODY = 4
"""Where in a chunk's entry its holder is."""


def is_known(record: StreamRecord, chunk: Chunk, chunk_id: str | None, offset: int | None) -> bool:
    """Whether the chunk is there already. Raises ChunkError: same id, other content; not at the stream's end."""
    if chunk_id is not None:
        check_chunk_id(chunk_id)
        known = record.ids.known.get(chunk_id)
        if known is not None:
            if known[1:3] != (chunk.length, chunk.sha256):
                raise ChunkError(
                    f"stream {record.name}, chunk {chunk_id}: {chunk.length} bytes with sha256 {chunk.sha256.hex()}, "
                    f"expected the {known[1]} bytes that are stored under this id",
                    record.size,
                )
            return True
    if offset is not None and offset != record.size:
        raise ChunkError(f"stream {record.name}, offset: {offset}, expected its size {record.size}", record.size)
    return False


def append(record: StreamRecord, chunk: Chunk, chunk_id: str | None, due: Any) -> None:
    """Add a chunk that is not known; an ended stream is open again. `due` is the root's."""
    now = _now()
    if chunk_id is not None:
        remember(record.ids, chunk_id, (record.size, chunk.length, chunk.sha256, now))
    if chunk.length:
        body, offset = _place(record, chunk)
        record.chunks[record.size] = (chunk.length, chunk.sha256, chunk.checksums, now, body, offset)
        record.size += chunk.length
        record.count += 1
        record.sha256 = None
        if record.ended is not None:
            record.ended = None
            for transformation, wants in record.followers:
                if wants == "end":
                    following.caught_up(record, due, transformation)
        following.mark(record, due, "chunk")
    record.modified = now


def _place(record: StreamRecord, chunk: Chunk) -> tuple[Any, int]:
    """The holder of the chunk's bytes, and where in it they begin."""
    if isinstance(chunk.source, Room):
        return chunk.source.place(record._p_jar, awaited=bool(record.followers))
    return holders.hold(record._p_jar, chunk.source, chunk.length), 0


def end(record: StreamRecord, by: Literal["sender", "idle"], due: Any) -> None:
    """Mark the end; what waited for it is due, and what reads chunk by chunk, for what it still holds."""
    if record.ended is None:
        following.mark(record, due, "end")
        following.mark(record, due, "chunk")
    if record.ended != "sender":
        record.ended = by


def remember(ids: Ids, chunk_id: str, entry: tuple[int, int, bytes, int]) -> None:
    ids.known[chunk_id] = entry
    ids.order[ids.following] = chunk_id
    ids.following += 1


def forget(ids: Ids, before: int, limit: int = 10_000) -> int:
    """Recognise no longer the ids that came before a time (milliseconds since 1970, UTC), at most `limit` of them; how
    many."""
    done = 0
    while done < limit and ids.order:
        number = ids.order.minKey()
        chunk_id = ids.order[number]
        if ids.known[chunk_id][3] >= before:
            break
        del ids.order[number], ids.known[chunk_id]
        done += 1
    return done


def truncate(record: StreamRecord, before: int, limit: int = 10_000) -> int:
    """Forget whole chunks that end at or before the position, at most `limit` of them; how many bytes. The disk has
    their room back after a pack."""
    if before > record.size:
        raise ValueError(f"stream {record.name}, before: {before}, expected at most its size {record.size}")
    start = record.start
    for _ in range(limit):
        if record.start >= before:
            break
        stop = record.start + record.chunks[record.start][0]
        if stop > before:
            break
        del record.chunks[record.start]
        record.start = stop
        record.count -= 1
    if record.start != start:
        record.sha256 = None
    return int(record.start - start)


def read(record: StreamRecord, offset: int, count: int) -> bytes:
    """At most `count` bytes from `offset`; raises CorruptError that names the chunk, TruncatedError."""
    if offset < 0 or count < 0:
        raise ValueError(f"stream {record.name}, offset and count: {offset}, {count}, expected at least 0")
    if offset < record.start and count:
        raise TruncatedError(
            f"stream {record.name}, offset: {offset}, expected at least {record.start}: what was before is not kept",
            record.start,
        )
    stop = min(offset + count, record.size)
    parts = []
    if offset < stop:
        for start, entry in _ahead(record, record.chunks.maxKey(offset), stop):
            end = min(stop, start + entry[0])
            while offset < end:
                data = _read_block(record, start, entry, (offset - start) // BLOCK)
                inside = (offset - start) % BLOCK
                parts.append(data[inside : inside + end - offset])
                offset += len(parts[-1])
    return b"".join(parts)


def _ahead(record: StreamRecord, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """The chunks between, whose holders are asked for together: each would else be a question to a server of its own,
    and the wait for its answer."""
    found = iter(record.chunks.items(start, stop, excludemax=True))
    while batch := list(islice(found, AHEAD)):
        # what is new in this transaction has no id yet, and is no ghost
        absent = {id(holder): holder for _, entry in batch if (holder := entry[BODY])._p_changed is None}
        if len(absent) > 1:
            record._p_jar.prefetch(list(absent.values()))
        yield from batch


def verify(record: StreamRecord) -> list[str]:
    """The faults of all chunks, as messages."""
    faults = []
    for start, entry in record.chunks.items():
        try:
            for block in range(-(-entry[0] // BLOCK)):
                _read_block(record, start, entry, block)
        except CorruptError as error:
            faults.append(str(error))
    return faults


def describe(record: StreamRecord, followers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What lists show of a stream; JSON values. Times are milliseconds since 1970, UTC. `followers` are the positions
    of its transformations."""
    return {
        "name": record.name,
        "size": record.size,
        "start": record.start,
        "chunks": record.count,
        "final": record.ended is not None,
        "ended_by": record.ended,
        "policy": record.policy,
        "attrs": json.loads(record.attrs),
        "created": record.created,
        "modified": record.modified,
        "sha256": record.sha256,
        "transformations": [
            {
                "name": name,
                "state": found["status"],
                "position": found["position"],
                "lag_bytes": record.size - found["position"],
                "message": found["message"],
                "warnings": found["warnings"],
                "output": found["output"],
            }
            for name, found in followers.items()
        ],
    }


def _read_block(record: StreamRecord, start: int, entry: Any, block: int) -> bytes:
    length, _digest, checksums, _when, body, *offset = entry
    size = min(BLOCK, length - block * BLOCK)
    what = f"stream {record.name}, chunk at {start}"
    try:
        data = holders.read(body, sum(offset) + block * BLOCK, size)
    except (POSKeyError, FileNotFoundError) as error:
        raise CorruptError(f"{what}: its file is missing, expected {length} bytes ({error})") from error
    expected = checksums[4 * block : 4 * block + 4]
    if len(data) != size or crc32(data).to_bytes(4, "little") != expected:
        raise CorruptError(f"{what}, block {block}: another checksum, expected {expected[::-1].hex()}")
    return data


def _now() -> int:
    return time.time_ns() // 10**6


class LocalStream(Stream):
    def __init__(self, record: StreamRecord, lake: Session) -> None:
        self._record = record
        self._lake = lake
        self.name = record.name

    @property
    def record(self) -> StreamRecord:
        return self._record

    @property
    def size(self) -> int:
        return int(self._record.size)

    @property
    def start(self) -> int:
        return int(self._record.start)

    @property
    def final(self) -> bool:
        return self._record.ended is not None

    @property
    def attrs(self) -> Attributes:
        return Attributes(self._record, f"stream {self.name}", self._lake.writing)

    def read(self, offset: int | None = None, count: int | None = None) -> bytes:
        at = self.start if offset is None else offset
        return read(self._record, at, max(0, self.size - at) if count is None else count)

    def chunks(self, offset: int = 0) -> Iterator[tuple[int, int, int]]:
        chunks = self._record.chunks
        if offset >= self.size or not chunks:
            return
        for start, entry in chunks.items(min=chunks.maxKey(max(offset, self.start))):
            yield start, entry[0], entry[3]

    def append(self, data: bytes, chunk_id: str | None = None, final: bool = False) -> bool:
        return self.append_chunk(Chunk.of(data), chunk_id, final)

    def append_chunk(
        self, chunk: Chunk, chunk_id: str | None = None, final: bool = False, offset: int | None = None
    ) -> bool:
        """`append` of bytes that may be in a file; `offset`, if given, must be the stream's size."""
        self._lake.writing(f"stream {self.name}: append")
        due = self._lake.root()["due"]
        known = is_known(self._record, chunk, chunk_id, offset)
        if not known:
            append(self._record, chunk, chunk_id, due)
        if final:
            end(self._record, "sender", due)
        return not known

    def end(self, by: Literal["sender", "idle"] = "sender") -> None:
        self._lake.writing(f"stream {self.name}: end")
        end(self._record, by, self._lake.root()["due"])

    def truncate(self, before: int) -> int:
        self._lake.writing(f"stream {self.name}: truncate")
        return truncate(self._record, before)

    def forget_ids(self, before: int) -> int:
        """See `forget`."""
        self._lake.writing(f"stream {self.name}: forget ids")
        return forget(self._record.ids, before)

    def sha256(self) -> str:
        return self._record.sha256 or self.sha256_of(self.size)

    def sha256_of(self, size: int) -> str:
        """Of the bytes before the position `size`. Raises TruncatedError when the first ones are not kept."""
        digest = hashlib.sha256()
        for offset in range(0, size, BLOCK):
            digest.update(self.read(offset, min(BLOCK, size - offset)))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        return describe(self._record, following.positions(self._lake, "stream", self.name))

    def verify(self) -> list[str]:
        """Faults found by reading every chunk, as messages; none when all checksums hold."""
        return verify(self._record)
