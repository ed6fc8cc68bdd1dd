"""New files that survive a power cut: the file is synced, and each folder whose list of names is new to the disk."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

KNOWN = 4096


class Syncer:
    """Knows which folders below `top` have their names on the disk, so that they are not synced for each file again.

    A blob's own folder is new once: only the folders above are kept, each of which holds 256.
    """

    def __init__(self, top: str | Path) -> None:
        self._top = Path(top)
        self._known: set[Path] = set()
        self._learning = True

    def sync(self, files: Iterable[str | Path]) -> None:
        """Raises OSError; then nothing is learnt of their folders."""
        paths = [Path(file) for file in files]
        for path in paths:
            sync(path)
        self.sync_names(paths)

    def sync_names(self, files: Iterable[Path]) -> None:
        """As `sync`, of files whose bytes are on the disk."""
        folders: dict[Path, None] = {}
        for file in files:
            folders.update(dict.fromkeys(self._doubtful(file)))
        for folder in folders:
            sync(folder)
        if self._learning:
            self._learn({folder.parent for folder in folders if folder.parent in folders})

    def _doubtful(self, file: Path) -> Iterator[Path]:
        """The folder that names the file, and upwards those that name a folder which may not be on the disk."""
        folder = file.parent
        yield folder
        while folder != self._top and folder not in self._known:
            folder = folder.parent
            yield folder

    def _learn(self, named: set[Path]) -> None:
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


def sync(path: Path) -> None:
    """Of a file all but its times, of a folder the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (os.fsync if path.is_dir() else os.fdatasync)(descriptor)
    finally:
        os.close(descriptor)
