"""A lake's folder read beside the process that owns it: nothing is locked, and nothing written.

What the owner commits is read from the file's end at each transaction boundary. When the owner has packed, the file is
another one: it is opened instead, and every cached record dropped.
"""

import os
from pathlib import Path
from typing import Any

from ZODB.blob import FilesystemHelper
from ZODB.FileStorage import FileStorage
from ZODB.utils import z64

from clachan_lake.storage import tail
from clachan_lake.storage.file import close_files
from clachan_lake.storage.plain import PlainFile
from clachan_lake.storage.resolving import Resolving


class FollowingStorage(PlainFile, Resolving, FileStorage):  # type: ignore[misc]
    """Raises FileNotFoundError without a data file."""

    _file: Any
    _pos: int

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._db: Any = None
        try:
            super().__init__(str(folder / "data.fs"), read_only=True, blob_dir=str(folder / "blobs"))
        except BaseException:
            close_files(self)
            raise
        self._files.name = self._own_name()
        # FileStorage takes it from a transaction that is being written, too
        last = tail.last_before(self._file.fileno(), self._pos)
        self._ltid = last.tid if last else z64

    def _blob_init(self, blob_dir: str, layout: str = "automatic") -> None:
        # FileStorage's own makes what is not there
        self.fshelper = FilesystemHelper(blob_dir, layout)
        self.dirty_oids: list[Any] = []

    def _own_name(self) -> str:
        """Opens the same file again, also when the owner has put another in its place."""
        return f"/proc/self/fd/{self._file.fileno()}"

    def registerDB(self, db: Any) -> None:  # noqa: N802 - ZODB's name
        super().registerDB(db)
        self._db = db

    def sync(self) -> None:
        """See what was committed since; ZODB calls it when a transaction begins."""
        with self._lock:
            if self._is_replaced():
                self._reopen()
            else:
                self._follow()

    def _follow(self) -> None:
        """Records first, then what to drop, then the number: whoever sees a number has the rest."""
        found = list(tail.whole_from(self._file.fileno(), self._pos))
        if not found:
            return
        positions = [tail.positions(self._file.fileno(), transaction) for transaction in found]
        with self._files.write_lock():
            self._files.empty()
            # to the end: so nothing stays buffered of a commit that came to nothing
            self._file.seek(0, os.SEEK_END)
            for records in positions:
                self._index.update(records)
            self._pos = found[-1].end
        for transaction, records in zip(found, positions, strict=True):
            if self._db is not None:
                self._db.invalidate(transaction.tid, list(records))
        self._ltid = found[-1].tid

    def _is_replaced(self) -> bool:
        try:
            there = Path(self._file_name).stat()
        except FileNotFoundError:  # the owner is about to put the packed one there
            return False
        return not os.path.samestat(there, os.fstat(self._file.fileno()))

    def _reopen(self) -> None:
        packed = FollowingStorage(self._folder)
        packed._files.close()
        with self._files.write_lock():
            self._file.close()
            self._file = packed._file
            self._files.name = self._own_name()
            self._files.empty()
            self._initIndex(packed._index, packed._tindex)
            self._pos = packed._pos
        if self._db is not None:
            self._db.invalidateCache()
        self._ltid = packed._ltid
