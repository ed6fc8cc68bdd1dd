"""New files that survive a power cut: the file is synced, and each folder whose list of names is new to the disk."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from stat import S_ISDIR

KNOWN = 4096
THREADS = 8


class Syncer:
    """Knows which folders below `top` have their names on the disk, so that they are not synced for each file again.

    A blob's own folder is new once: only the folders above are kept, each of which holds 256.
    """

    def __init__(self, top: str | Path) -> None:
        self._top = Path(top)
        self._known: set[Path] = set()
        self._learning = True

    def sync(self, files: Iterable[str | Path], descriptors: Iterable[int] = ()) -> None:
        """The files with their names, and open ones; all at the same time, so that they share what the file system does
        for each. Raises OSError; then nothing is learnt of folders."""
        paths = [Path(file) for file in files]
        folders = self._folders(paths)
        together(
            [partial(os.fdatasync, number) for number in descriptors]
            + [partial(sync, one) for one in (*paths, *folders)]
        )
        self._learn(folders)

    def sync_names(self, files: Iterable[Path]) -> None:
        """As `sync`, of files whose bytes are on the disk."""
        folders = self._folders(files)
        together([partial(sync, one) for one in folders])
        self._learn(folders)

    def _folders(self, files: Iterable[Path]) -> dict[Path, None]:
        return dict.fromkeys(folder for file in files for folder in self._doubtful(file))

    def _doubtful(self, file: Path) -> Iterator[Path]:
        """The folder that names the file, and upwards those that name a folder which may not be on the disk."""
        folder = file.parent
        yield folder
        while folder != self._top and folder not in self._known:
            folder = folder.parent
            yield folder

    def _learn(self, synced: Collection[Path]) -> None:
        if not self._learning:
            return
        named = {folder.parent for folder in synced if folder.parent in synced}
        if len(self._known) + len(named) > KNOWN:
            self._known.clear()
        self._known |= named

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """While folders are removed: each file is synced with all above it."""
        self._learning = False
        self._known.clear()
        try:
            yield
        finally:
            self._learning = True


def sync_files(files: Iterable[str | Path], root: str | Path) -> None:
    """Sync the files and every folder from each up to `root`: a new file is only kept when its name is."""
    Syncer(root).sync(files)


def together(calls: Sequence[Callable[[], object]]) -> None:
    """Each in a thread of its own, as far as there are some; raises what the first raised of those that did."""
    if not calls:
        return
    others = [_pool(os.getpid()).submit(call) for call in calls[1:]]
    try:
        calls[0]()
    finally:
        wait(others)
    for other in others:
        other.result()


@lru_cache(1)
def _pool(_process: int) -> ThreadPoolExecutor:
    """A forked child has none of its parent's threads."""
    return ThreadPoolExecutor(THREADS, "sync")


def sync(path: Path) -> None:
    """Of a file all but its times, of a folder the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (os.fsync if S_ISDIR(os.fstat(descriptor).st_mode) else os.fdatasync)(descriptor)
    finally:
        os.close(descriptor)


def begin_writing(descriptor: int, offset: int, length: int) -> None:
    """Let the kernel write the bytes to the disk now, without waiting for it: a sync that follows has less to do."""
    # it would also drop them from memory, but not while they are being written
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
