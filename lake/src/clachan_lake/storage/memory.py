"""A lake in memory, without blobs: for tests, of a lake's own code and of programs that use lakes."""

from typing import Any

from ZODB.MappingStorage import MappingStorage

from clachan_lake.storage.resolving import Resolving


class MemoryStorage(Resolving, MappingStorage):  # type: ignore[misc]
    """ZODB's, with merged changes: it knows none. Gone when its database is closed, unless it is `kept`."""

    def __init__(self, kept: bool = False) -> None:
        super().__init__()
        self._kept = kept
        self._resolved: list[bytes] = []

    def close(self) -> None:
        if not self._kept:
            super().close()

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
