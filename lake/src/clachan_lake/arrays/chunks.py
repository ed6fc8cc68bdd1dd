"""An array's bytes in chunks of one size, each a blob with a checksum.

The rest of the package only calls `read`, `write` and `cut`: what is inside may change with the format.
"""

from zlib import crc32

from ZODB.blob import Blob
from ZODB.POSException import POSKeyError

from clachan_lake.errors import CorruptError
from clachan_lake.format import ArrayRecord


def read(record: ArrayRecord, start: int, out: memoryview) -> None:
    """Fill `out` (writable bytes) from position `start`; raises CorruptError that names the chunk."""
    size, done = record.chunk_bytes, 0
    while done < len(out):
        number, offset = divmod(start + done, size)
        part = out[done : done + size - offset]
        _read_chunk(record, number, offset, part)
        done += len(part)


def write(record: ArrayRecord, start: int, data: memoryview) -> None:
    """Store `data` (bytes) from position `start`; the chunks that it covers in part are read first."""
    size, done = record.chunk_bytes, 0
    while done < len(data):
        number, offset = divmod(start + done, size)
        part = data[done : done + size - offset]
        _write_chunk(record, number, offset, part)
        done += len(part)


def cut(record: ArrayRecord, length: int) -> None:
    """Forget what lies behind `length` bytes."""
    number, offset = divmod(length, record.chunk_bytes)
    if offset:
        if number in record.chunks:
            _store(record, number, _load(record, number)[:offset])
        number += 1
    for gone in list(record.chunks.keys(min=number)):
        del record.chunks[gone]


def verify(record: ArrayRecord) -> list[str]:
    """The faults of all chunks, as messages."""
    faults = []
    for number in record.chunks:
        try:
            _load(record, number)
        except CorruptError as error:
            faults.append(str(error))
    return faults


def _read_chunk(record: ArrayRecord, number: int, offset: int, out: memoryview) -> None:
    data = memoryview(_load(record, number))[offset : offset + len(out)] if number in record.chunks else memoryview(b"")
    out[: len(data)] = data
    if len(data) < len(out):
        out[len(data) :] = bytes(len(out) - len(data))


def _write_chunk(record: ArrayRecord, number: int, offset: int, part: memoryview) -> None:
    if number not in record.chunks:
        _store(record, number, part if not offset else bytes(offset) + bytes(part))
        return
    length = record.chunks[number][0]
    if offset == 0 and len(part) >= length:
        _store(record, number, part)
        return
    old = bytearray(_load(record, number))
    old.extend(bytes(max(0, offset + len(part) - len(old))))
    old[offset : offset + len(part)] = part
    _store(record, number, old)


def _load(record: ArrayRecord, number: int) -> bytes:
    length, crc, blob = record.chunks[number]
    what = f"array {record.name}, chunk {number}"
    try:
        with blob.open("r") as file:
            data: bytes = file.read()
    except (POSKeyError, FileNotFoundError) as error:
        raise CorruptError(f"{what}: its file is missing, expected {length} bytes ({error})") from error
    if len(data) != length or crc32(data) != crc:
        raise CorruptError(f"{what}: {len(data)} bytes with another checksum, expected {length} bytes with {crc:08x}")
    return data


def _store(record: ArrayRecord, number: int, data: memoryview | bytes | bytearray) -> None:
    known = record.chunks.get(number)
    blob = known[2] if known else Blob()
    if known is None:
        # a blob makes its file beside the lake's blobs only when it knows its database
        record._p_jar.add(blob)
    with blob.open("w") as file:
        file.write(data)
    record.chunks[number] = (len(data), crc32(data), blob)
