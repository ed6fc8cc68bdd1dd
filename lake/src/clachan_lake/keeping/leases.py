"""Leases: which snapshots are being read, so that no pack takes them away.

Each open session has the file `<blobs>/.leases` open, and in it a shared lock on the one byte whose position is the
number of the oldest commit whose state it may still read (a lock needs no byte to be there). A pack asks the kernel for
the smallest position that is locked, and stays behind it. So a lease needs no more than the right to read the blobs,
and ends with its process, however that ends; between machines it works where the file system has locks, as NFS does.

The locks are those of an open file ("open file description"), not of a process: each session is told from the other,
and a forked child, which has its parent's mapped files, keeps its parent's lease until both have closed it.
"""

import errno
import fcntl
import logging
import os
import struct
from pathlib import Path
from typing import Any
from weakref import finalize

from ZODB.interfaces import IMVCCStorage
from ZODB.utils import p64, u64

log = logging.getLogger(__name__)
NAME = ".leases"
LAST = (1 << 63) - 1
FLOCK = struct.Struct("@hhqqi4x")
"""Kind, origin, start, length, process; as fcntl(2) has it on machines of 64 bits."""
_warned: set[Path] = set()
_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - of this process, as its children are
    _forks += 1


os.register_at_fork(after_in_parent=_count_fork, after_in_child=_count_fork)


class Lease:
    """The lease of one session from `tid` on, until it is released or nobody refers to it. `blobs` is the lake's blob
    folder (see `place`); None for a lake without one."""

    def __init__(self, blobs: Path | None, tid: bytes) -> None:
        self._blobs = blobs
        self._file: _Locked | None = None
        self.hold(tid)

    def hold(self, tid: bytes) -> None:
        """From now on the oldest that the session may read is `tid`."""
        if self._blobs is None:
            return
        before = self._file
        if before is not None and before.forks == _forks:
            before.move(u64(tid))
            return
        # a child has the same open file since: it keeps what was locked then
        self._file = _make(self._blobs, u64(tid))
        if before is not None:
            before.close()

    def another(self, tid: bytes) -> int:
        """A descriptor that holds `tid` as long as some process has it open, while this lease holds nothing newer.
        Raises OSError where there are no leases."""
        if self._blobs is None:
            raise OSError(errno.ENOTSUP, "lease: of a lake without a blob folder, expected one with it")
        number = _open(self._blobs)
        try:
            _lock(number, fcntl.F_RDLCK, u64(tid))
        except BaseException:
            os.close(number)
            raise
        return number

    def release(self) -> None:
        """The session reads no more."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Locked:
    """An open file with a lock on one byte, until it is closed or forgotten."""

    def __init__(self, number: int, position: int) -> None:
        self.forks = _forks
        self._number = number
        self._position = position
        self.close = finalize(self, os.close, number)
        _lock(number, fcntl.F_RDLCK, position)

    def move(self, position: int) -> None:
        if position != self._position:
            _lock(self._number, fcntl.F_RDLCK, position)
            _lock(self._number, fcntl.F_UNLCK, self._position)
            self._position = position


def _lock(number: int, kind: int, position: int) -> None:
    fcntl.fcntl(number, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, position, 1, 0))


def _make(blobs: Path, position: int) -> _Locked | None:
    """None, with a warning, where there is no file and this process may not make it, or no lock is to be had."""
    try:
        return _Locked(_open(blobs), position)
    except OSError as error:
        if blobs not in _warned:
            _warned.add(blobs)
            log.warning("leases in %s: %s, expected to lock a file; a pack may end this snapshot", blobs, error)
        return None


def _open(blobs: Path) -> int:
    path = blobs / NAME
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        number = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC)
        # for all who may read the folder
        os.fchmod(number, 0o644)
        return number


def place(storage: Any, blobs: Path | None) -> Path | None:
    """The folder of the leases: that of the blobs, or for a storage without one its own `lease_folder`."""
    found: Path | None = blobs or getattr(storage, "lease_folder", None)
    return found


def prepare(blobs: Path) -> None:
    """Make the file, so that also those who may only read the folder hold leases."""
    os.close(_open(blobs))


def before(db: Any) -> bytes:
    """A commit that is no newer than the snapshot which is taken next, to be held meanwhile."""
    if IMVCCStorage.providedBy(db.storage):
        # it would keep the answer, and each connection has a storage of its own
        return bytes(8)
    last: bytes = db.lastTransaction()
    return last


def catch_up(storage: Any) -> None:
    """Let a storage know what was committed until now. Who holds a lease first and takes its snapshot then has one that
    is kept: a pack that did not see the lease had written in the root before how far it goes."""
    if IMVCCStorage.providedBy(storage):
        # each connection has a storage of its own, but those of the past share this one
        storage.poll_invalidations()
        return
    for name in ("ping", "sync"):
        if call := getattr(storage, name, None):
            call()
            return


def oldest(blobs: Path | None) -> bytes | None:
    """The smallest commit that a session holds; None when there is no session. Raises OSError where the file system
    has no locks."""
    if blobs is None or not blobs.exists():
        return None
    try:
        number = _open(blobs)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM} and not (blobs / NAME).exists():
            return None
        raise
    try:
        found = None
        while (lower := _first(number, LAST if found is None else found)) is not None:
            found = lower
        return None if found is None else p64(found)
    finally:
        os.close(number)


def _first(number: int, stop: int) -> int | None:
    """The position of some lock before `stop`."""
    if stop == 0:
        return None
    asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, stop, 0)
    kind, _origin, start, _length, _process = FLOCK.unpack(fcntl.fcntl(number, fcntl.F_OFD_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(start)
