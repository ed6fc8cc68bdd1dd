"""Arrays of format 1, made arrays of format 2: their chunks' files stay as they are."""

from math import prod
from typing import Any

import numpy as np
from ZODB.POSException import POSKeyError

from clachan_lake.arrays.drafts import Writer, checksum
from clachan_lake.arrays.table import Table
from clachan_lake.format import CHUNK_BYTES, GROWN_BYTES, ArrayState


def migrate(root: Any) -> int:
    """Migrate every array of a lake, in the transaction that is open; how many there were. Raises CorruptError when a
    chunk of an array whose chunks must be copied is not there."""
    done = 0
    for record in root["arrays"].values():
        record._p_activate()
        if "chunks" in record.__dict__:
            _migrate(record)
            done += 1
    return done


def _migrate(record: Any) -> None:
    """In format 1 a record had `shape`, `chunk_bytes`, `modified` and `chunks`, a LOBTree: number -> (length, crc32,
    blob), all chunks of one size, which could be any."""
    old = dict(record.__dict__)
    size = np.lib.format.descr_to_dtype(old["descr"]).itemsize
    length = prod(old["shape"]) * size
    keeps = old["chunk_bytes"] % 4096 == 0
    record.order = "C"
    record.chunk_bytes = old["chunk_bytes"] if keeps else CHUNK_BYTES
    record.grown_bytes = old["chunk_bytes"] if keeps else GROWN_BYTES
    record.state = ArrayState(tuple(old["shape"]), 0, length, old["modified"])
    record.leaves = type(old["chunks"])()
    for name in ("chunks", "shape", "modified"):
        delattr(record, name)
    table = Table(record)
    table.prepare(length)
    if keeps:
        for number, (stored, _crc, blob) in old["chunks"].items():
            if stored:
                table.put(number, (blob, 0, stored, _checksum(blob, stored)))
    else:
        _copy(table, old, length)


def _checksum(blob: Any, length: int) -> int:
    """Of what is there; 0 for a file that is missing or short, which verifying will name."""
    try:
        with blob.open("r") as file:
            data = file.read(length)
    except (POSKeyError, FileNotFoundError):
        return 0
    return checksum(data) if len(data) == length else 0


def _copy(table: Table, old: dict[str, Any], length: int) -> None:
    writer = Writer(table.record._p_jar, None)
    for number, low, high in table.grid.clipped(0, length):
        data = bytearray(high - low)
        for at in range(low // old["chunk_bytes"], -(-high // old["chunk_bytes"])):
            if at in old["chunks"]:
                _fill(data, low, at * old["chunk_bytes"], old["chunks"][at])
        if any(data):
            table.put(number, writer.piece(np.frombuffer(data, np.uint8)))


def _fill(data: bytearray, low: int, start: int, chunk: tuple[int, int, Any]) -> None:
    with chunk[2].open("r") as file:
        stored = file.read(chunk[0])
    first, last = max(start, low), min(start + len(stored), low + len(data))
    if first < last:
        data[first - low : last - low] = stored[first - start : last - start]
