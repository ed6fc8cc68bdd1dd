"""What keeps bytes in the database: a Piece for few, a Blob (a file) for many; a Piece where there are no blobs."""

import os
import uuid
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ZODB.blob import Blob, _blob_close_refs
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
        link = f"{storage.temporaryDirectory()}/IN{uuid.uuid4().hex}"
        os.link(source, link)
        give(blob, link)
    return blob


def give(blob: Blob, path: str) -> None:
    """Let a new blob take over a file beside the lake's blobs, which is removed if the blob is not committed.

    As `Blob.consumeFile`, which makes and removes a file before, for its name: to find an inode, an ext4 without a
    journal passes over all that were freed in the last minutes, which with hundreds takes longer than the writing."""
    blob._p_blob_uncommitted = path
    # until it is committed, as ZODB does with its own
    blob._p_blob_ref = weakref.ref(blob, partial(_remove, path))
    _blob_close_refs.append(blob._p_blob_ref)
    blob._p_changed = True


def _remove(path: str, gone: "weakref.ref[Blob]") -> None:
    with suppress(ValueError):
        _blob_close_refs.remove(gone)
    Path(path).unlink(missing_ok=True)


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
