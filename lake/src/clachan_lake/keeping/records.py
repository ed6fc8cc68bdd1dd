"""A lake's records as they are stored: read without making objects of them, and all that are reached from the root.

What a record says of the lake's bytes are *parts*: each a range of a holder (a blob or a Piece) with its checksum.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from BTrees.LLBTree import LLBTree, LLTreeSet
from isal.isal_zlib import crc32
from xxhash import xxh3_64_intdigest
from ZODB.POSException import POSKeyError
from ZODB.utils import u64, z64

from clachan_lake.errors import CorruptError
from clachan_lake.format import BLOCK
from clachan_lake.storage.resolving import Name, Reference
from clachan_lake.storage.resolving import read as read_record

Load = Callable[[bytes], tuple[bytes, bytes]]
"""Object id -> its record and its serial; raises POSKeyError."""
Report = Callable[[str], None]
BLOB = Name("ZODB.blob", "Blob")
GROWING = Name("clachan_lake.format", "Growing")


class Part(NamedTuple):
    """`digest` of the `length` bytes at `offset` of the holder gives `checksum`."""

    where: str
    holder: bytes
    offset: int
    length: int
    checksum: int
    digest: Callable[[memoryview], int]


@dataclass(frozen=True)
class Record:
    """`name` says of which stream or array it is, "" when of none; `references` are the ids that it refers to."""

    oid: bytes
    serial: bytes
    kind: Name
    state: Any
    references: tuple[bytes, ...]
    name: str = ""

    @property
    def is_blob(self) -> bool:
        return self.kind == BLOB


def parse(oid: bytes, serial: bytes, data: bytes, name: str = "") -> Record:
    """Raises CorruptError for what is no record, or one of a class that no lake contains."""
    known: dict[Any, Reference] = {}
    try:
        kind, state = read_record(data, known)
        references = tuple(_id(reference.oid) for reference in known.values())
    except MemoryError:
        raise
    except Exception as error:
        raise CorruptError(f"{_what(oid, name)}: {error or repr(error)}, expected one of a lake") from error
    if kind in _NAMED and isinstance(state, dict):
        name = f"{_NAMED[kind]} {state.get('name')}"
    return Record(oid, serial, kind, state, references, name)


_NAMED = {Name("clachan_lake.format", "ArrayRecord"): "array", Name("clachan_lake.format", "StreamRecord"): "stream"}


def _id(oid: bytes) -> bytes:
    if len(oid) != 8 or oid[0] >= 0x80:
        raise ValueError(f"reference to {oid.hex():.40}, expected an object's id")
    return oid


def walk(load: Load, report: Report) -> Iterator[Record]:
    """Every record that is reached from the root, each once, a record before what it refers to. What is missing or no
    record is reported, and passed over when that does not raise."""
    seen = LLTreeSet()
    waiting = [(z64, "")]
    while waiting:
        oid, name = waiting.pop()
        if not seen.insert(u64(oid)):
            continue
        try:
            data, serial = load(oid)
            record = parse(oid, serial, data, name)
        except POSKeyError:
            report(f"{_what(oid, name)}: missing, expected in the database")
            continue
        except CorruptError as error:
            report(str(error))
            continue
        waiting.extend((child, record.name) for child in reversed(record.references) if u64(child) not in seen)
        yield record


def ends(load: Load) -> LLBTree:
    """Of each blob that streams have their chunks in, or may: where the last byte ends that is reached from the root.
    What is behind is of later commits, or of none."""
    found = LLBTree()
    for record in walk(load, lambda _fault: None):
        if record.kind == GROWING:
            for oid in record.references:
                found.setdefault(u64(oid), 0)
        elif record.kind.module == "BTrees.LOBTree":
            with suppress(CorruptError):  # whoever compares it reports it
                for part in parts(record):
                    found[u64(part.holder)] = max(found.get(u64(part.holder), 0), part.offset + part.length)
    return found


def parts(record: Record) -> Iterator[Part]:
    """What the record says of the lake's bytes. Raises CorruptError for entries that are none."""
    try:
        if record.kind == Name("clachan_lake.format", "Leaf"):
            for number, entry in sorted(record.state["slots"].items()):
                yield _entry(f"chunk {number}", entry)
        elif record.kind == Name("clachan_lake.format", "ArrayState"):
            for number, entry in enumerate(record.state["tail"]):
                yield _entry(f"piece {number} of the tail", entry)
        elif record.kind.module == "BTrees.LOBTree":
            for key, value in _items(record.kind.name, record.state):
                if type(value) is tuple:  # and no reference
                    yield from _chunk(key, value)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CorruptError(f"{_what(record.oid, record.name)}: {error!r}, expected entries of chunks") from error


def _entry(where: str, entry: Any) -> Part:
    holder, offset, length, checksum = entry
    return Part(where, holder.oid, _count(offset), _count(length), _count(checksum), xxh3_64_intdigest)


def _chunk(key: int, value: tuple[Any, ...]) -> Iterator[Part]:
    """A stream's chunk, block by block; or the whole chunk of an array of format 1."""
    length = _count(value[0])
    if len(value) == 3:
        yield Part(f"chunk {key}", value[2].oid, 0, length, _count(value[1]), crc32)
        return
    _length, _sha256, checksums, _when, body, *begin = value
    start = _count(sum(begin))
    for number, offset in enumerate(range(0, length, BLOCK)):
        checksum = int.from_bytes(checksums[4 * number : 4 * number + 4], "little")
        size = min(BLOCK, length - offset)
        yield Part(f"chunk at {key}, block {number}", body.oid, start + offset, size, checksum, crc32)


def _items(kind: str, state: Any) -> Iterator[tuple[int, Any]]:
    """The keys and values inside a tree's or a bucket's own record: a small tree has its only bucket in it."""
    if state is None:
        return
    if kind == "LOBTree":
        if len(state) != 1:
            return
        state = state[0][0]
    flat = state[0]
    yield from zip(flat[::2], flat[1::2], strict=True)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40}, expected a count")
    return value


def _what(oid: bytes, name: str) -> str:
    return f"{name}, record {u64(oid):#x}" if name else f"record {u64(oid):#x}"
