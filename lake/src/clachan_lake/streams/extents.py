"""Extents that grow: files that the chunks of a server's streams share, each behind the other.

A file of its own costs a chunk a file, a folder and their syncs. Here it costs the sync of a file that is open. One
body at a time is written behind an extent's end, so bodies that come at the same time are in different ones. An extent
is a file beside the lake's blobs until the first commit of a chunk in it makes it a blob; what is committed is never
written again. `format.Growing` has those that may still grow: whoever packs keeps them, and what is behind their last
chunk.
"""

import os
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ZODB.blob import Blob

from clachan_lake import holders
from clachan_lake.format import EXTENT_BYTES, PAGE_BYTES
from clachan_lake.storage.syncing import begin_writing

IDLE = 16
"""So many that no body is written to are kept open."""
COPIED_BYTES = 1 << 20
PARTS = 512
"""So many at most in one call of the kernel, which takes 1,024."""
_pool = ThreadPoolExecutor(4, "extent")


class Extent:
    """An open file; bodies go behind `end`. `blob` is what it is in the lake, None before it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self.blob: Blob | None = None
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def remove(self) -> None:
        """Close it; a file that is not in the lake goes."""
        os.close(self.descriptor)
        if self.blob is None:
            self.path.unlink(missing_ok=True)


class Extents:
    """Those of one process, which owns the lake; `folder` is on the lake's file system. Without `shared` each body has
    a file of its own, that goes with it. `room` may be called by any thread, all else by one."""

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.shared = shared
        self.retired: set[bytes] = set()
        """The ids of those that grow no more."""
        self._folder = folder
        self._free: list[Extent] = []

    def room(self) -> "Room":
        """Room for a body, which nobody else has until it is let go."""
        try:
            extent = self._free.pop()
        except IndexError:
            extent = Extent(self._folder / uuid.uuid4().hex)
        return Room(self, extent)

    def take_back(self, extent: Extent, spoilt: bool) -> None:
        """From the room that nobody holds any more."""
        if extent.blob is not None and not spoilt and extent.end < EXTENT_BYTES and len(self._free) < IDLE:
            self._free.append(extent)
            return
        extent.remove()
        if extent.blob is not None:
            self.retired.add(extent.blob._p_oid)


class Room:
    """Where one body is: `length` bytes of an extent from `start` on. It takes part in the transaction that stores it,
    whose vote waits until its bytes are on the disk, and behind which the extent's next body comes."""

    transaction_manager = None

    def __init__(self, extents: Extents, extent: Extent) -> None:
        self._extents = extents
        self._extent = extent
        self.start = extent.end
        self.length = 0
        self._held = 1
        self._blob: Blob | None = None
        self._synced: Future[None] | None = None
        self._awaited = True
        self._failed: OSError | None = None
        self._in_doubt = False
        self._copy: Path | None = None

    def write(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Behind what is written; the disk begins with it. Raises OSError."""
        for first in range(0, len(parts), PARTS):
            some = parts[first : first + PARTS]
            size = sum(map(len, some))
            at = self.start + self.length
            done = os.pwritev(self._extent.descriptor, some, at)
            if done < size:
                view = memoryview(b"".join(some))
                while done < size:
                    done += os.pwrite(self._extent.descriptor, view[done:], at + done)
            begin_writing(self._extent.descriptor, at, size)
            self.length += size

    def sync(self) -> None:
        """Its bytes are on the disk then. Raises OSError, and ever again: the kernel says once that it lost some, and a
        second sync would find nothing left to write."""
        if self._failed is None:
            try:
                os.fdatasync(self._extent.descriptor)
            except OSError as error:
                self._failed = error
        if self._failed is not None:
            raise self._failed

    @property
    def source(self) -> "Path | Room":
        """What a chunk has its bytes from."""
        return self if self._extents.shared else self._extent.path

    def as_file(self) -> Path:
        """A file that has nothing else, and goes when the room is let go: a copy, when the extent is shared."""
        if not self._extents.shared:
            return self._extent.path
        if self._copy is None:
            path = self._extent.path.with_name(uuid.uuid4().hex)
            self._copy = path
            stop = self.start + self.length
            with path.open("xb") as file:
                for at in range(self.start, stop, COPIED_BYTES):
                    file.write(os.pread(self._extent.descriptor, min(COPIED_BYTES, stop - at), at))
        return self._copy

    # -- who has it

    def hold(self) -> None:
        """Once more: it is to be let go as often."""
        self._held += 1

    def let_go(self) -> None:
        """What was not stored gives its room back. Raises nothing: it is for the end of what has failed, too."""
        self._held -= 1
        if self._held:
            return
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)
        extent, spoilt = self._extent, self._in_doubt or self._failed is not None
        if extent.blob is not None and extent.end == self.start and not self._in_doubt:
            try:
                os.ftruncate(extent.descriptor, extent.end)
            except OSError:
                spoilt = True
        self._extents.take_back(extent, spoilt)

    # -- the transaction that stores it

    def place(self, jar: Any, *, awaited: bool) -> tuple[Blob, int]:
        """The blob with the bytes, and where in it they begin, in the connection's transaction. `awaited`: somebody
        is going to read them at once."""
        jar.transaction_manager.get().join(self)
        self._awaited = awaited
        self._blob = self._extent.blob
        if self._blob is None:
            self._blob = holders.hold(jar, self._extent.path, self.length)
            growing = jar.root()["growing"]
            known = (blob for blob in growing.extents if blob._p_oid not in self._extents.retired)
            growing.extents = (*known, self._blob)
        return self._blob, self.start

    def sortKey(self) -> str:  # noqa: N802 - the transaction package's name
        """Behind the connection, so that records and bytes are synced at the same time."""
        return "~"

    def tpc_begin(self, _transaction: Any) -> None:
        """Nothing to do."""

    def commit(self, _transaction: Any) -> None:
        """The storage syncs what is new in the lake, with its name."""
        if self._extent.blob is not None:
            self._synced = Future()
            _pool.submit(self._sync, self._synced)

    def _sync(self, synced: "Future[None]") -> None:
        try:
            self.sync()
        except OSError as error:
            synced.set_exception(error)
            return
        synced.set_result(None)
        if not self._awaited:
            # memory that nobody reads is the next body's: it need not be asked of the kernel, nor cleared
            with suppress(OSError):  # the extent may have been closed meanwhile
                os.posix_fadvise(self._extent.descriptor, self.start, self.length, os.POSIX_FADV_DONTNEED)

    def tpc_vote(self, _transaction: Any) -> None:
        """Raises OSError when the bytes are not on the disk."""
        if self._synced is not None:
            self._synced.result()
        # if it is aborted from here on, the others may have finished
        self._in_doubt = True

    def tpc_finish(self, _transaction: Any) -> None:
        """It is stored: the next one comes behind."""
        extent = self._extent
        extent.end = -(-(self.start + self.length) // PAGE_BYTES) * PAGE_BYTES
        self._in_doubt = False
        if extent.blob is None:
            extent.blob = self._blob
            # the lake has a link of its own
            extent.path.unlink(missing_ok=True)

    def tpc_abort(self, transaction: Any) -> None:
        """It may be tried again."""
        self.abort(transaction)

    def abort(self, _transaction: Any) -> None:
        """As `tpc_abort`, before the transaction was to be committed."""
        if self._synced is not None:
            self._synced.exception()
            self._synced = None
        self._blob = None
