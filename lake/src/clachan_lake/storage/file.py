"""The FileStorage of a lake: what it says is committed is on the disk, and what it cannot write it takes back."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ZODB.FileStorage import FileStorage

from clachan_lake.keeping.holes import tidy
from clachan_lake.keeping.limits import limit
from clachan_lake.storage import tail
from clachan_lake.storage.plain import PlainFile
from clachan_lake.storage.resolving import Resolving
from clachan_lake.storage.syncing import Syncer, sync


class LakeStorage(PlainFile, Resolving, FileStorage):  # type: ignore[misc]
    """FileStorage that syncs blobs and records before the vote, and then that they count; and unpickles nothing itself.

    After a write that failed (disk full) FileStorage's buffers hold what must never reach the file. So it is `broken`
    then: it takes no further transaction, and opening it again cuts off what was half written.
    """

    def __init__(self, folder: Path) -> None:
        self._unsynced: list[str] = []
        self._failed = False
        self.wrappers: list[Any] = []
        """Who has registered to be told of others' commits: databases of this process, a server for other processes."""
        self.committed: Callable[[bytes, list[bytes]], None] | None = None
        """Called in each commit, before it can be read, with its id and those of its records."""
        try:
            # what a pack replaces would stand there twice, the blobs linked file by file
            super().__init__(str(folder / "data.fs"), blob_dir=str(folder / "blobs"), pack_keep_old=False)
        except BaseException:
            close_files(self)
            raise
        self._syncer = Syncer(self.blob_dir)

    @property
    def broken(self) -> bool:
        """A write failed: close it, and open the lake again."""
        return self._failed or bool(self._file.closed)

    def tpc_begin(self, transaction: Any, tid: bytes | None = None, status: str = " ") -> None:
        if self.broken:
            raise OSError(errno.EIO, "lake: a write failed before, expected to be opened again")
        super().tpc_begin(transaction, tid, status)

    def store(self, oid: bytes, oldserial: bytes, data: bytes, version: str, transaction: Any) -> None:
        with self._failing():
            super().store(oid, oldserial, data, version, transaction)

    def tpc_finish(self, transaction: Any, f: Callable[[bytes], None] | None = None) -> bytes:
        changed = list(self._tindex)

        def finished(tid: bytes) -> None:
            if f is not None:
                f(tid)
            if self.committed is not None:
                self.committed(tid, changed)

        with self._failing():
            tid: bytes = super().tpc_finish(transaction, finished)
        return tid

    def registerDB(self, wrapper: Any) -> None:  # noqa: N802 - ZODB's name
        self.wrappers.append(wrapper)

    def _finish_finish(self, tid: bytes) -> None:
        # as FileStorage's, but without the file's times
        self._file.flush()
        os.fdatasync(self._file.fileno())
        self._pos = self._nextpos
        self._index.update(self._tindex)
        self._ltid = tid
        self._blob_tpc_finish()

    def _restore_index(self) -> Any:
        # called when the file is locked and open, and not read yet
        found = super()._restore_index()
        self._file.flush()
        if self._file.seek(0, os.SEEK_END):
            tail.cut(self._file.fileno(), self._file_name, found[1] if found else tail.FIRST)
        return found

    def _blob_storeblob(self, oid: bytes, serial: bytes, blobfilename: str) -> None:
        super()._blob_storeblob(oid, serial, blobfilename)
        self._unsynced.append(self.fshelper.getBlobFilename(oid, serial))

    def tpc_vote(self, transaction: Any) -> Any:
        """The ids of the records that were merged: whoever stored them must read them again."""
        files, self._unsynced = self._unsynced, []
        with self._failing():
            merged = super().tpc_vote(transaction)
            self._syncer.sync(files, [self._file.fileno()])
            return merged

    def pack(self, t: float, referencesf: Any, gc: bool | None = None) -> None:
        with self._syncer.forgetting():
            super().pack(t, referencesf, gc)
            sync(Path(self._file_name).parent)
        tidy(self)

    @staticmethod
    def packer(storage: Any, referencesf: Any, stop: bytes, gc: bool) -> Any:
        """The packed file is on the disk before it takes the other's place."""
        packed = FileStorage.packer(storage, referencesf, limit(storage, stop), gc)
        if packed is not None:
            path = Path(f"{storage._file_name}.pack")
            try:
                sync(path)
                # the former file's index may pass for the packed file's when its last commits have the same lengths
                Path(f"{storage._file_name}.index").unlink(missing_ok=True)
                with suppress(OSError):
                    # renaming one name of a file to another does nothing: so data.fs is there at every moment
                    os.link(storage._file_name, f"{storage._file_name}.old")
            except OSError:
                # FileStorage would release it only from here on
                storage._commit_lock.release()
                path.unlink()
                raise
        return packed

    def _remove_blob_files_tagged_for_removal_during_pack(self) -> None:
        # no blob may go before the records that named it
        sync(Path(self._file_name).parent)
        super()._remove_blob_files_tagged_for_removal_during_pack()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._failed = True
            raise

    def _abort(self) -> None:
        self._unsynced = []
        super()._abort()
        # FileStorage does it only after a vote: a conflict comes before, and would leave its blobs for ever
        self._blob_tpc_abort()


def close_files(storage: FileStorage) -> None:
    """Of one that could not be opened."""
    for name in ("_file", "_files", "_tfile", "_lock_file"):
        if opened := getattr(storage, name, None):
            opened.close()
