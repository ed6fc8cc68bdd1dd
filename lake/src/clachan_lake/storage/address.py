"""Where a storage is, for another process."""

from pathlib import Path
from typing import Any

from ZEO.ClientStorage import ClientStorage
from ZODB.FileStorage import FileStorage


def address_of(storage: Any) -> tuple[str, str | None] | None:
    """What `open_lake` takes there: a folder, or a socket and its folder of blobs. None for what only this process has,
    and for a database, whose URL may have a password in it."""
    if isinstance(storage, ClientStorage):
        [socket] = storage._addr
        return str(Path(socket).resolve()), str(Path(storage.blob_dir).resolve())
    if isinstance(storage, FileStorage):
        return str(Path(storage.getName()).resolve().parent), None
    return None
