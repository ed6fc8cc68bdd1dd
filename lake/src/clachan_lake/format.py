"""What is on disk, format 1.

A lake is a folder:

    format.json   {"clachan_lake": 1}: written once; a reader refuses any other number
    data.fs       ZODB FileStorage: the records below (data.fs.index, .lock, .tmp belong to it; .index can be deleted)
    blobs/        ZODB blobs, layout `bushy`: 0xHH/.../0xHH/0xSSSSSSSSSSSSSSSS.blob, one file per revision, immutable
    incoming/     bodies that are being received; emptied whenever the folder's owner starts

The database's root maps "format" -> 1, "streams" and "arrays" -> OOBTree of name -> record, "pending" -> OOTreeSet of
the names of the ended streams whose transformation is due. Names are text (`names.check_name`).

StreamRecord: append-only bytes, `size` of them in `count` chunks. `chunks` is a LOBTree: position of the
chunk's first byte -> tuple

    (length, sha256, checksums, milliseconds, body)

where sha256 is the digest (32 bytes) of the chunk's bytes; checksums is the CRC-32 (zlib) of each `BLOCK` (1 MiB) of
the chunk from its start, 4 bytes little endian each; milliseconds is when it was appended, since 1970 in UTC; body is
a Blob, or a Piece (bytes inside the database) for at most `PIECE_BYTES`. An empty chunk is never stored. `ids` is an
OOBTree: chunk id -> (position, length, sha256).

ArrayRecord: the array's bytes in C order, little endian or as its dtype says, cut every `chunk_bytes`. `chunks` is a
LOBTree: number -> (length, crc32, blob). What lies behind a chunk's length, and a chunk that is not there, is zero.
`descr` is numpy's .npy description of the dtype (text, or a list for a structured one), `attrs` is JSON text.

Only the classes in `ADMITTED` are ever loaded from a record; the names of this module's classes are part of the format.
"""

import importlib
from typing import Any, Literal

from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent import Persistent

from clachan_lake.errors import RefusedClassError

FORMAT = 1
BLOCK = 1 << 20
PIECE_BYTES = 32 << 10
CHUNK_BYTES = 2 << 20

ADMITTED = frozenset(
    {("persistent.mapping", "PersistentMapping"), ("ZODB.blob", "Blob")}
    | {("BTrees.OOBTree", name) for name in ("OOBTree", "OOBucket", "OOTreeSet", "OOSet")}
    | {("BTrees.LOBTree", name) for name in ("LOBTree", "LOBucket")}
    | {("clachan_lake.format", name) for name in ("StreamRecord", "ArrayRecord", "Piece")}
)

State = Literal["none", "waiting", "pending", "done", "failed"]


def admit(_connection: Any, module: str, name: str) -> Any:
    """ZODB's class factory: the class of a record, if a lake may contain it; raises RefusedClassError."""
    if (module, name) not in ADMITTED:
        raise RefusedClassError(f"record of class {module}.{name}, expected one that a lake contains")
    return getattr(importlib.import_module(module), name)


class Piece(Persistent):  # type: ignore[misc]
    """The bytes of a small chunk."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class StreamRecord(Persistent):  # type: ignore[misc]
    """See the module's description. `state`: none (no transformation), waiting (for the stream's end), pending, done,
    failed; `message` says why it failed, `warnings` what was mended; `transformed` is the position it has reached."""

    def __init__(self, name: str, policy: str, transformation: str | None, now: int) -> None:
        self.name = name
        self.policy = policy
        self.transformation = transformation
        self.created = self.modified = now
        self.size = self.count = 0
        self.ended: str | None = None
        self.sha256: str | None = None
        self.state: State = "waiting" if transformation else "none"
        self.message = ""
        self.warnings: tuple[str, ...] = ()
        self.transformed = 0
        self.chunks = LOBTree()
        self.ids = OOBTree()


class ArrayRecord(Persistent):  # type: ignore[misc]
    """See the module's description."""

    def __init__(
        self, name: str, *, shape: tuple[int, ...], descr: Any, chunk_bytes: int, attrs: str, now: int
    ) -> None:
        self.name = name
        self.shape = shape
        self.descr = descr
        self.chunk_bytes = chunk_bytes
        self.attrs = attrs
        self.created = self.modified = now
        self.chunks = LOBTree()
