"""What keeps bytes in the database: a Piece for few, a Blob (a file) for many; a Piece where there are no blobs."""

import os
import uuid
from pathlib import Path
from typing import Any

from ZODB.blob import Blob
from ZODB.interfaces import IBlobStorage

from clachan_lake.format import PIECE_BYTES, Piece


def hold(jar: Any, source: bytes | Path, length: int) -> Any:
    """A holder of `length` bytes, or of a file of the lake's file system, in the connection's transaction."""
    storage = jar.db().storage
    if length <= PIECE_BYTES or not IBlobStorage.providedBy(storage):
        return Piece(source if isinstance(source, bytes) else source.read_bytes())
    blob = Blob()
    jar.add(blob)
    if isinstance(source, bytes):
        with blob.open("w") as file:
            file.write(source)
    else:
        # a second link: the blob consumes it, and the sender's file is still there if the transaction must be repeated
        link = Path(storage.temporaryDirectory(), f"IN{uuid.uuid4().hex}")
        os.link(source, link)
        blob.consumeFile(str(link))
    return blob


def read(holder: Any, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset`; raises POSKeyError, FileNotFoundError when they are gone."""
    if isinstance(holder, Piece):
        return bytes(holder.data[offset : offset + size])
    with holder.open("r") as file:
        file.seek(offset)
        data: bytes = file.read(size)
        return data


def size(holder: Any) -> int:
    """How many bytes it holds; raises as `read` does."""
    if isinstance(holder, Piece):
        return len(holder.data)
    with holder.open("r") as file:
        return os.fstat(file.fileno()).st_size
