"""What is on disk, format 4.

A lake is a folder:

    format.json   {"clachan_lake": 4}: a reader refuses a greater number; formats 1 to 3 are migrated (`database`)
    data.fs       ZODB FileStorage: the records below (data.fs.index, .lock, .tmp belong to it; .index can be deleted)
    blobs/        ZODB blobs, layout `bushy`: 0xHH/.../0xHH/0xSSSSSSSSSSSSSSSS.blob, one file per revision; what a
                  commit refers to is never written again
    incoming/     bodies that are being received; emptied whenever the folder's owner starts

The database's root maps "format" -> 4 and

    "streams", "arrays"                               -> OOBTree: name -> StreamRecord, ArrayRecord
    "policies", "transformations", "tokens", "jobs"   -> OOBTree: name or id -> Document (of jobs, other keys of theirs
                                                         too: `jobs.document`)
    "positions"                                       -> OOBTree: (kind, source, transformation) -> Document: how far a
                                                         transformation is with a source; kind is stream or array
    "due"                                             -> OOTreeSet: those keys whose stream has something new for it
    "dead"                                            -> LOBTree: number -> Document: dead letters
    "growing"                                         -> Growing

Names are text (`names.check_name`); those that begin with `~` are the lake's own.

Document: `text` is a JSON object with sorted keys, whose form the module says that makes it; `body` is None, or bytes
beside it in a Blob or a Piece; `revision` counts its contents from 1; `created` and `modified` are milliseconds since
1970 in UTC.

StreamRecord: append-only bytes, `size` of them in `count` chunks, of which those before `start` are no longer kept.
`chunks` is a LOBTree: position of the chunk's first byte -> tuple

    (length, sha256, checksums, milliseconds, body, offset)

where sha256 is the digest (32 bytes) of the chunk's bytes, or b"" of one that came without an id; checksums is the
CRC-32 (zlib) of each `BLOCK` (1 MiB) of the chunk from its start, 4 bytes little endian each; milliseconds is when it
was appended, since 1970 in UTC; body is a Blob, or a Piece (bytes inside the database) for at most `PIECE_BYTES`;
offset is where in it the chunk's bytes begin, a multiple of 4,096. A chunk of format 3 has no offset: its blob is its
own. An empty chunk is never stored. `attrs` is JSON text. `followers` are the transformations that read the stream,
each a tuple (name, "chunk" or "end": what they wait for); `due` are the names of those whose keys are in the root's
"due". An append and the worker that has caught up both write this record: so neither misses the other.

Growing: `extents` are the blobs behind whose end the process that serves the lake may write, and commit, what comes
next (`streams.extents`). Nobody else may change what is behind the last chunk of such a file.

Ids: chunk ids that are recognised. `known` is an OOBTree: id -> (position, length, sha256, milliseconds); `order` is a
LOBTree: number -> id, in the order in which they came, `following` the next number. Ids that format 2 has left are in
`known` alone, without a time, and stay. A record's `contents`, if it has them, are such Ids of chunks without an id, by
what a token has sent (`ingest.storing`).

ArrayRecord: the array's bytes in the order of its `order` (C or F) and as its dtype says. `descr` is numpy's .npy
description of the dtype (text, or a list for a structured one), `attrs` is JSON text. One that an ingestion policy has
made has its name in `policy`, and chunk ids in `ids` as a stream does; positions in it are of bytes. The bytes are cut
into chunks: the first `GROWTH` (16,384) have `chunk_bytes` each, those behind `grown_bytes`. Both are multiples of
4,096.

`leaves` is a LOBTree: n -> Leaf, whose `slots` is a dict: number of a chunk (n * `LEAF` and the 255 that follow) ->
entry, a tuple

    (holder, offset, length, checksum)

holder is a Blob (an *extent*: one file with one or more chunks, each at a multiple of 4,096 bytes; it is never
written again) or a Piece; offset says where in it the chunk's bytes begin, length how many there are, checksum is
their XXH3 (64 bits). What lies behind a chunk's length, and a chunk without an entry, is zero.

`state` is an ArrayState. `shape` is the array's; its last bytes, from position `start` on, are not in chunks yet: they
are the *tail*, a tuple of entries one behind the other. So an append needs no chunk, and two appends at once are both
kept. Every commit that changes the array writes its state; `modified` is when, in milliseconds since 1970 in UTC.

Only the classes in `ADMITTED` are ever loaded from a record; the names of this module's classes are part of the format.
"""

import importlib
from typing import Any, Literal

from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from ZODB.POSException import ConflictError

from clachan_lake.errors import RefusedClassError

FORMAT = 4
BLOCK = 1 << 20
PIECE_BYTES = 32 << 10
CHUNK_BYTES = 2 << 20
GROWN_BYTES = 4 << 20
GROWTH = 16_384
LEAF = 256
EXTENT_BYTES = 256 << 20
"""An extent that has so many gets no more chunks."""
PAGE_BYTES = 4096
"""A chunk begins at a multiple of it in its extent: it can be mapped, and given back to the disk."""

Entry = tuple[Any, int, int, int]
"""Holder, offset, length, checksum."""
Change = Literal["append", "write", "fold", "whole"]
"""What a transaction did to an array: only appended; wrote chunks (and perhaps appended); moved the tail's bytes into
chunks; anything else, which goes with no other change at the same time."""

ADMITTED = frozenset(
    {("persistent.mapping", "PersistentMapping"), ("ZODB.blob", "Blob")}
    | {("BTrees.OOBTree", name) for name in ("OOBTree", "OOBucket", "OOTreeSet", "OOSet")}
    | {("BTrees.LOBTree", name) for name in ("LOBTree", "LOBucket")}
    | {("clachan_lake.format", name) for name in ("ArrayRecord", "ArrayState", "Leaf", "Piece")}
    | {("clachan_lake.format", name) for name in ("StreamRecord", "Ids", "Document", "Growing")}
)

DOCUMENTS = ("policies", "transformations", "tokens", "jobs", "positions")
"""The root's trees of documents."""


def admit(_connection: Any, module: str, name: str) -> Any:
    """ZODB's class factory: the class of a record, if a lake may contain it; raises RefusedClassError."""
    if (module, name) not in ADMITTED:
        raise RefusedClassError(f"record of class {module}.{name}, expected one that a lake contains")
    return getattr(importlib.import_module(module), name)


class Piece(Persistent):  # type: ignore[misc]
    """The bytes of a small chunk."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class Document(Persistent):  # type: ignore[misc]
    """See the module's description."""

    def __init__(self, text: str, body: Any, now: int) -> None:
        self.text = text
        self.body = body
        self.revision = 1
        self.created = self.modified = now


class Growing(Persistent):  # type: ignore[misc]
    """See the module's description."""

    extents: tuple[Any, ...] = ()


class Ids(Persistent):  # type: ignore[misc]
    """See the module's description."""

    def __init__(self) -> None:
        self.known = OOBTree()
        self.order = LOBTree()
        self.following = 0


class StreamRecord(Persistent):  # type: ignore[misc]
    """See the module's description. `ended` says by whom: sender or idle."""

    contents: Ids | None = None

    def __init__(self, name: str, policy: str, attrs: str, now: int) -> None:
        self.name = name
        self.policy = policy
        self.attrs = attrs
        self.created = self.modified = now
        self.size = self.count = self.start = 0
        self.ended: str | None = None
        self.sha256: str | None = None
        self.followers: tuple[tuple[str, str], ...] = ()
        self.due: tuple[str, ...] = ()
        self.chunks = LOBTree()
        self.ids = Ids()


class ArrayRecord(Persistent):  # type: ignore[misc]
    """See the module's description."""

    policy: str | None = None
    ids: Ids | None = None
    contents: Ids | None = None

    def __init__(
        self, name: str, *, descr: Any, order: str, chunk_bytes: int, grown_bytes: int, attrs: str, state: "ArrayState"
    ) -> None:
        self.name = name
        self.descr = descr
        self.order = order
        self.chunk_bytes = chunk_bytes
        self.grown_bytes = grown_bytes
        self.attrs = attrs
        self.created = state.modified
        self.state = state
        self.leaves = LOBTree()


class ArrayState(Persistent):  # type: ignore[misc]
    """See the module's description. `axis` is the one that grows when rows are appended: 0, or the last for order F.
    `change` says what the last commit did, `wholes` counts those that did more than append and write."""

    def __init__(self, shape: tuple[int, ...], axis: int, start: int, now: int) -> None:
        self.shape = shape
        self.axis = axis
        self.start = start
        self.tail: tuple[Entry, ...] = ()
        self.modified = now
        self.change: Change = "whole"
        self.wholes = 0

    def _p_resolveConflict(  # noqa: N802 - ZODB's name
        self, old: dict[str, Any], committed: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        """The state when `new`, begun from `old`, comes behind `committed`; raises ConflictError."""
        change, axis = new["change"], new["axis"]
        if change == "whole" or _others(committed) != _others(old):
            raise ConflictError
        if change != "append" and committed["wholes"] != old["wholes"]:
            raise ConflictError
        merged = {**committed, "modified": max(committed["modified"], new["modified"])}
        known = len(old["tail"])
        if change == "fold":
            if committed["start"] != old["start"] or committed["tail"][:known] != old["tail"]:
                raise ConflictError
            return {**merged, "start": new["start"], "tail": new["tail"] + committed["tail"][known:]}
        grown = list(committed["shape"])
        if new["shape"]:
            grown[axis] += new["shape"][axis] - old["shape"][axis]
        return {**merged, "change": change, "shape": tuple(grown), "tail": committed["tail"] + new["tail"][known:]}


def _others(state: dict[str, Any]) -> tuple[int, ...]:
    """The lengths of all axes but the one that grows."""
    return tuple(length for axis, length in enumerate(state["shape"]) if axis != state["axis"])


class Leaf(Persistent):  # type: ignore[misc]
    """See the module's description. Changes of different chunks at the same time are merged."""

    def __init__(self) -> None:
        self.slots: dict[int, Entry] = {}

    def _p_resolveConflict(  # noqa: N802 - ZODB's name
        self, old: dict[str, Any], committed: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        """The leaf with both changes; raises ConflictError when they are of one chunk."""
        before, theirs, ours = old["slots"], committed["slots"], new["slots"]
        merged = dict(theirs)
        for number in {*before, *ours}:
            if ours.get(number) == before.get(number):
                continue
            if theirs.get(number) != before.get(number):
                raise ConflictError
            if number in ours:
                merged[number] = ours[number]
            else:
                del merged[number]
        return {**committed, "slots": merged}
