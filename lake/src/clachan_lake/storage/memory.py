"""A lake in memory, without blobs: for tests, of a lake's own code and of programs that use lakes."""

import shutil
import tempfile
from pathlib import Path
from typing import Any
from weakref import finalize

from ZODB.MappingStorage import MappingStorage

from clachan_lake.storage.resolving import Resolving


class MemoryStorage(Resolving, MappingStorage):  # type: ignore[misc]
    """ZODB's, with merged changes: it knows none. Gone when its database is closed, unless it is `kept`."""

    def __init__(self, kept: bool = False) -> None:
        super().__init__()
        self._kept = kept
        # so that packing takes nothing that a session reads, as with blobs
        self.lease_folder = Path(tempfile.mkdtemp(prefix="clachan-lake-"))
        self._forget = finalize(self, shutil.rmtree, self.lease_folder, ignore_errors=True)
        self._resolved: list[bytes] = []

    def close(self) -> None:
        if not self._kept:
            super().close()
            self._forget()

    def tpc_begin(self, transaction: Any, tid: bytes | None = None) -> None:
        super().tpc_begin(transaction, tid)
        self._resolved = []

    def store(self, oid: bytes, serial: bytes, data: bytes, version: str, transaction: Any) -> None:
        revisions = self._data.get(oid)
        if revisions and serial != (committed := revisions.maxKey()):
            data, serial = self.tryToResolveConflict(oid, committed, serial, data), committed
            self._resolved.append(oid)
        super().store(oid, serial, data, version, transaction)

    def tpc_vote(self, transaction: Any) -> list[bytes]:
        super().tpc_vote(transaction)
        return self._resolved
