"""The lake's storage for other processes of the machine: ZEO's server, with one race mended."""

import asyncio
from typing import Any

from ZEO.StorageServer import StorageServer


class LakeServer(StorageServer):  # type: ignore[misc]
    """ZEO's own server puts what a commit invalidates at the end of its loop's queue, and writes answers at once. So a
    client may be told that its own commit is done before it is told of an earlier one, and read a state in which that
    one is missing. Here both are written in the order of the commits."""

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
            return asyncio.get_running_loop() is self.acceptor.event_loop
        except RuntimeError:
            return False
