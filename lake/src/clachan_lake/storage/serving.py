"""The lake's storage for other processes of the machine: ZEO's server, with one race mended, beside databases of this
process on the same storage."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

from ZEO.StorageServer import StorageServer, StorageServerDB, ZEOStorage

from clachan_lake.storage.file import LakeStorage

NAME = "1"
UNTOLD = 50
"""So many commits wait for the loop while there is no client."""


class Handler(ZEOStorage):  # type: ignore[misc]
    """One client's. Before an answer that lets it read a commit, it is told of those before."""

    def ping(self) -> None:
        """A client that begins a transaction asks this, to have seen all."""
        self.server.tell()
        super().ping()

    def setup_delegation(self) -> None:
        super().setup_delegation()
        self.lastTransaction = self._last_transaction

    def _last_transaction(self) -> bytes:
        self.server.tell()
        last: bytes = self.storage.lastTransaction()
        return last

    def getInvalidations(self, tid: bytes) -> Any:  # noqa: N802 - ZEO's name
        self.server.tell()
        return super().getInvalidations(tid)

    def tpc_finish(self, id: Any) -> Any:
        self.server.tell()
        return super().tpc_finish(id)


class LakeServer(StorageServer):  # type: ignore[misc]
    """ZEO's own server puts what a commit invalidates at the end of its loop's queue, and writes answers at once. So a
    client may be told that its own commit is done before it is told of an earlier one, and read a state in which that
    one is missing. Here both are written in the order of the commits.

    Databases of this process may use the storage directly, in any thread. The storage's lock gives all commits one
    order; while it is held, such databases are told of a client's commit, and clients are to be told of theirs: by the
    loop's next turn, or before an answer."""

    def __init__(self, address: str, storage: LakeStorage) -> None:
        self._storage = storage
        self._untold: deque[tuple[bytes, list[bytes]]] = deque()
        super().__init__(address, {NAME: storage})
        self._loop = self.acceptor.event_loop
        storage.committed = self._committed

    def create_client_handler(self) -> Handler:
        """ZEO's hook."""
        return Handler(self, self.read_only)

    def _committed(self, tid: bytes, changed: list[bytes]) -> None:
        if self._is_in_loop():
            for wrapper in self._storage.wrappers:
                if not isinstance(wrapper, StorageServerDB):
                    wrapper.invalidate(tid, changed)
            return
        self._untold.append((tid, changed))
        if not self.zeo_storages_by_storage_id[NAME] and len(self._untold) < UNTOLD:
            # whoever comes is told first
            return
        with suppress(RuntimeError):  # a loop that has ended, with all its clients
            self._loop.call_soon_threadsafe(self.tell)

    def tell(self) -> None:
        """Clients of the commits of this process; called in the loop."""
        while self._untold:
            tid, changed = self._untold.popleft()
            self.invalidate(None, NAME, tid, changed)

    def invalidate(self, zeo_storage: Any, storage_id: str, tid: bytes, invalidated: Any) -> None:
        """Tell every other client of a commit."""
        if not self._is_in_loop():
            super().invalidate(zeo_storage, storage_id, tid, invalidated)
            return
        known = self.invq[storage_id]
        if len(known) >= self.invq_bound:
            known.pop()
        known.insert(0, (tid, invalidated))
        for other in self.zeo_storages_by_storage_id[storage_id]:
            if other is not zeo_storage:
                other.async_("invalidateTransaction", tid, invalidated)

    def _is_in_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False
