"""Streams of a local lake: the rules of a record, and the interface over it.

A chunk whose id is known and whose content is the same changes nothing; the same id with other content is refused. A
chunk after the end opens the stream again: nothing that a sender was told is stored may be refused or lost later, and
the transformation runs again when the stream ends again.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from BTrees.OOBTree import OOTreeSet
from ZODB.blob import Blob
from ZODB.interfaces import IBlobStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import mktemp

from clachan_lake.errors import ChunkError, CorruptError
from clachan_lake.format import BLOCK, PIECE_BYTES, Piece, State, StreamRecord
from clachan_lake.interface import Stream
from clachan_lake.names import check_chunk_id
from clachan_lake.streams.chunk import Chunk


def is_known(record: StreamRecord, chunk: Chunk, chunk_id: str | None, offset: int | None) -> bool:
    """Whether the chunk is there already. Raises ChunkError: same id, other content; not at the stream's end."""
    if chunk_id is not None:
        check_chunk_id(chunk_id)
        known = record.ids.get(chunk_id)
        if known is not None:
            if known[1:] != (chunk.length, chunk.sha256):
                raise ChunkError(
                    f"stream {record.name}, chunk {chunk_id}: {chunk.length} bytes with sha256 {chunk.sha256.hex()}, "
                    f"expected the {known[1]} bytes that are stored under this id",
                    record.size,
                )
            return True
    if offset is not None and offset != record.size:
        raise ChunkError(f"stream {record.name}, offset: {offset}, expected its size {record.size}", record.size)
    return False


def append(record: StreamRecord, chunk: Chunk, chunk_id: str | None, pending: OOTreeSet) -> None:
    """Add a chunk that is not known; an ended stream is open again."""
    if chunk_id is not None:
        record.ids[chunk_id] = (record.size, chunk.length, chunk.sha256)
    now = time.time_ns() // 10**6
    if chunk.length:
        entry = (chunk.length, chunk.sha256, chunk.checksums, now, _store(record, chunk))
        record.chunks[record.size] = entry
        record.size += chunk.length
        record.count += 1
        record.sha256 = record.ended = None
        if record.transformation:
            record.state = "waiting"
            pending.discard(record.name)
    record.modified = now


def end(record: StreamRecord, by: Literal["sender", "idle"], pending: OOTreeSet) -> None:
    """Mark the end; what is due then is in `pending`."""
    if record.ended is None and record.transformation:
        record.state = "pending"
        pending.add(record.name)
    if record.ended != "sender":
        record.ended = by


def read(record: StreamRecord, offset: int, count: int) -> bytes:
    """At most `count` bytes from `offset`; raises CorruptError that names the chunk."""
    if offset < 0 or count < 0:
        raise ValueError(f"stream {record.name}, offset and count: {offset}, {count}, expected at least 0")
    stop = min(offset + count, record.size)
    parts = []
    while offset < stop:
        start = record.chunks.maxKey(offset)
        data = _read_block(record, start, (offset - start) // BLOCK)
        inside = (offset - start) % BLOCK
        parts.append(data[inside : inside + stop - offset])
        offset += len(parts[-1])
    return b"".join(parts)


def verify(record: StreamRecord) -> list[str]:
    """The faults of all chunks, as messages."""
    faults = []
    for start, entry in record.chunks.items():
        try:
            for block in range(-(-entry[0] // BLOCK)):
                _read_block(record, start, block)
        except CorruptError as error:
            faults.append(str(error))
    return faults


def describe(record: StreamRecord) -> dict[str, Any]:
    """What lists show of a stream; JSON values. Times are milliseconds since 1970, UTC."""
    return {
        "name": record.name,
        "size": record.size,
        "chunks": record.count,
        "final": record.ended is not None,
        "ended_by": record.ended,
        "policy": record.policy,
        "created": record.created,
        "modified": record.modified,
        "sha256": record.sha256,
        "transformation": {
            "name": record.transformation,
            "state": record.state,
            "position": record.transformed,
            "message": record.message,
            "warnings": list(record.warnings),
        },
    }


def _store(record: StreamRecord, chunk: Chunk) -> Any:
    jar = record._p_jar
    if chunk.length <= PIECE_BYTES or not IBlobStorage.providedBy(jar.db().storage):
        return Piece(chunk.source if isinstance(chunk.source, bytes) else chunk.source.read_bytes())
    blob = Blob()
    jar.add(blob)
    if isinstance(chunk.source, bytes):
        with blob.open("w") as file:
            file.write(chunk.source)
    else:
        # a second link: the blob consumes it, and the sender's file is still there if the transaction must be repeated
        link = mktemp(dir=jar.db().storage.temporaryDirectory(), prefix="IN")
        Path(link).unlink()
        os.link(chunk.source, link)
        blob.consumeFile(link)
    return blob


def _read_block(record: StreamRecord, start: int, block: int) -> bytes:
    length, _digest, checksums, _when, body = record.chunks[start]
    size = min(BLOCK, length - block * BLOCK)
    what = f"stream {record.name}, chunk at {start}"
    try:
        if isinstance(body, Piece):
            data: bytes = body.data[block * BLOCK : block * BLOCK + size]
        else:
            with body.open("r") as file:
                file.seek(block * BLOCK)
                data = file.read(size)
    except (POSKeyError, FileNotFoundError) as error:
        raise CorruptError(f"{what}: its file is missing, expected {length} bytes ({error})") from error
    expected = checksums[4 * block : 4 * block + 4]
    if len(data) != size or crc32(data).to_bytes(4, "little") != expected:
        raise CorruptError(f"{what}, block {block}: another checksum, expected {expected[::-1].hex()}")
    return data


class LocalStream(Stream):
    def __init__(self, record: StreamRecord, pending: OOTreeSet, writing: Callable[[str], None]) -> None:
        self._record = record
        self._pending = pending
        self._writing = writing
        self.name = record.name

    @property
    def size(self) -> int:
        return int(self._record.size)

    @property
    def final(self) -> bool:
        return self._record.ended is not None

    def read(self, offset: int = 0, count: int | None = None) -> bytes:
        return read(self._record, offset, self.size if count is None else count)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(position, length) of each chunk as it came."""
        for start, entry in self._record.chunks.items():
            yield start, entry[0]

    def append(self, data: bytes, chunk_id: str | None = None, final: bool = False) -> bool:
        self._writing(f"stream {self.name}: append")
        return self.append_chunk(Chunk.of(data), chunk_id, final)

    def append_chunk(
        self, chunk: Chunk, chunk_id: str | None = None, final: bool = False, offset: int | None = None
    ) -> bool:
        """`append` of bytes that may be in a file; `offset`, if given, must be the stream's size."""
        known = is_known(self._record, chunk, chunk_id, offset)
        if not known:
            append(self._record, chunk, chunk_id, self._pending)
        if final:
            end(self._record, "sender", self._pending)
        return not known

    def end(self, by: Literal["sender", "idle"] = "sender") -> None:
        self._writing(f"stream {self.name}: end")
        end(self._record, by, self._pending)

    def due(self) -> bool:
        """Whether its transformation is to be run now."""
        return self.name in self._pending

    def transformed(self, state: State, message: str, warnings: tuple[str, ...]) -> None:
        """Record the outcome of its transformation, in the transaction of the output."""
        self._writing(f"stream {self.name}: transformed")
        self._pending.remove(self.name)
        self._record.state = state
        self._record.message = message
        self._record.warnings = warnings
        self._record.transformed = self.size
        self._record.sha256 = self.sha256_of(self.size)

    def sha256(self) -> str:
        return self._record.sha256 or self.sha256_of(self.size)

    def sha256_of(self, size: int) -> str:
        """Of the first `size` bytes."""
        digest = hashlib.sha256()
        for offset in range(0, size, BLOCK):
            digest.update(self.read(offset, min(BLOCK, size - offset)))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        return describe(self._record)

    def verify(self) -> list[str]:
        """Faults found by reading every chunk, as messages; none when all checksums hold."""
        return verify(self._record)
