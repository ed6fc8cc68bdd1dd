"""Ways to keep one array of 64 bit numbers on disk, each with the same few verbs: ours, and those it stands beside.

All keep the bytes as they are, without compression. A write is done when the bytes would survive a power cut; zarr has
no way to say so, so all that it wrote is synced for it.
"""

import itertools
import os
import pathlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import transaction
import zarr
import ZODB
from BTrees.LOBTree import LOBTree
from clachan_lake import open_lake
from persistent import Persistent
from ZODB.FileStorage import FileStorage

MIB = 1 << 20
CHUNK = 2 * MIB // 8
BLOCK = 16 * MIB // 8
DTYPE = np.dtype("<u8")
Part = Callable[[int, int], Any]
"""Elements from the first position to the second."""


def noise(size: int, block: int = BLOCK) -> Iterator[Any]:
    """`size` elements that do not compress, block by block; each block differs from the others."""
    first = np.frombuffer(np.random.default_rng(5).bytes(block * 8), DTYPE)
    for number, start in enumerate(range(0, size, block)):
        yield first[: size - start] ^ DTYPE.type(number)


class Peer(ABC):
    """`folder` is its own. `random` says how many random reads are enough to measure it."""

    name: str
    random = 500

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    @abstractmethod
    def write(self, size: int, blocks: Iterable[Any]) -> None:
        """A new array of `size` elements, filled block by block, made durable at the end."""

    @abstractmethod
    def appends(self, rows: Any, count: int) -> None:
        """A new empty array, to which `rows` are appended `count` times, each time durably."""

    @abstractmethod
    def opened(self) -> Any:
        """A context manager that gives the array's Part."""

    def total(self, part: Part, size: int) -> int:
        """The sum of all elements: block by block, but where all can be had as one ndarray."""
        return sum(int(part(at, min(at + BLOCK, size)).sum()) for at in range(0, size, BLOCK))

    def files(self) -> list[pathlib.Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def disk(self) -> int:
        """Bytes of the disk, with its folders."""
        return sum(path.lstat().st_blocks * 512 for path in self.folder.rglob("*"))


class Memmap(Peer):
    name = "np.memmap"
    random = 50_000

    @property
    def path(self) -> pathlib.Path:
        return self.folder / "array"

    def write(self, size: int, blocks: Iterable[Any]) -> None:
        mapped = np.memmap(self.path, DTYPE, "w+", shape=(size,))
        at = 0
        for block in blocks:
            mapped[at : at + len(block)] = block
            at += len(block)
        mapped.flush()
        sync([self.path])

    def appends(self, rows: Any, count: int) -> None:
        with self.path.open("ab", buffering=0) as file:
            for _ in range(count):
                file.write(rows)
                os.fsync(file.fileno())

    @contextmanager
    def opened(self) -> Iterator[Part]:
        yield lambda low, high: np.memmap(self.path, DTYPE, "r")[low:high]

    def total(self, part: Part, size: int) -> int:
        return int(part(0, size).sum())


class Lake(Peer):
    name = "Clachan"
    random = 50_000

    def write(self, size: int, blocks: Iterable[Any]) -> None:
        with open_lake(self.folder) as lake, lake.transaction():
            array = lake.arrays.create("a", size, DTYPE)
            at = 0
            for block in blocks:
                array[at : at + len(block)] = block
                at += len(block)

    def append_all(self, blocks: Iterable[Any]) -> None:
        """As `write`, by appending."""
        with open_lake(self.folder) as lake, lake.transaction():
            array = lake.arrays.create("a", 0, DTYPE)
            for block in blocks:
                array.append(block)

    def appends(self, rows: Any, count: int) -> None:
        with open_lake(self.folder) as lake:
            with lake.transaction():
                array = lake.arrays.create("a", 0, DTYPE)
            for _ in range(count):
                with lake.transaction():
                    array.append(rows)

    @contextmanager
    def opened(self) -> Iterator[Part]:
        with open_lake(self.folder, read_only=True) as lake:
            array = lake.arrays["a"]
            yield lambda low, high: array[low:high]

    def total(self, part: Part, size: int) -> int:
        return int(part(0, size).sum())


class Zarr(Peer):
    name = f"zarr {zarr.__version__}"

    def _make(self, size: int) -> Any:
        return zarr.create_array(self.folder, shape=(size,), dtype=DTYPE, chunks=(CHUNK,), compressors=None)

    def write(self, size: int, blocks: Iterable[Any]) -> None:
        made, at = self._make(size), 0
        for block in blocks:
            made[at : at + len(block)] = block
            at += len(block)
        sync(self.files())

    def appends(self, rows: Any, count: int) -> None:
        made = self._make(0)
        for number in range(count):
            made.append(rows)
            sync([self.folder / "zarr.json", self.folder / "c" / str(number * len(rows) // CHUNK)])

    @contextmanager
    def opened(self) -> Iterator[Part]:
        found = zarr.open_array(self.folder, mode="r")
        yield lambda low, high: found[low:high]


class Hdf5(Peer):
    name = f"h5py {h5py.__version__}"
    random = 5000

    @property
    def path(self) -> pathlib.Path:
        return self.folder / "array.h5"

    def _make(self, file: Any, size: int) -> Any:
        return file.create_dataset("a", (size,), DTYPE, maxshape=(None,), chunks=(CHUNK,))

    def write(self, size: int, blocks: Iterable[Any]) -> None:
        with h5py.File(self.path, "w") as file:
            made, at = self._make(file, size), 0
            for block in blocks:
                made[at : at + len(block)] = block
                at += len(block)
        sync([self.path])

    def appends(self, rows: Any, count: int) -> None:
        with h5py.File(self.path, "w") as file:
            made = self._make(file, 0)
            for _ in range(count):
                made.resize(len(made) + len(rows), 0)
                made[-len(rows) :] = rows
                file.flush()
                sync([self.path])

    @contextmanager
    def opened(self) -> Iterator[Part]:
        with h5py.File(self.path, "r") as file:
            found = file["a"]
            yield lambda low, high: found[low:high]


class Chunk(Persistent):
    data = b""


class Bytes(Peer):
    """Chunks as bytes in the database: what ZODB offers without blobs."""

    name = "ZODB, bytes"

    @contextmanager
    def _root(self) -> Iterator[Any]:
        db = ZODB.DB(FileStorage(str(self.folder / "data.fs")), cache_size_bytes=64 * MIB)
        connection = db.open()
        try:
            yield connection.root()
        finally:
            transaction.abort()
            connection.close()
            db.close()

    def write(self, size: int, blocks: Iterable[Any]) -> None:
        with self._root() as root:
            chunks = root["chunks"] = LOBTree()
            for block in blocks:
                for at in range(0, len(block), CHUNK):
                    chunks[len(chunks)] = chunk = Chunk()
                    chunk.data = block[at : at + CHUNK].tobytes()
                # else all of it would wait in memory
                transaction.savepoint(True)
            transaction.commit()

    def appends(self, rows: Any, count: int) -> None:
        with self._root() as root:
            chunks = root["chunks"] = LOBTree()
            for number in itertools.islice(itertools.count(), count):
                chunk = chunks.setdefault(number * len(rows) // CHUNK, Chunk())
                chunk.data += rows.tobytes()
                transaction.commit()

    @contextmanager
    def opened(self) -> Iterator[Part]:
        with self._root() as root:
            chunks = root["chunks"]

            def part(low: int, high: int) -> Any:
                parts = []
                for number in range(low // CHUNK, -(-high // CHUNK)):
                    held = np.frombuffer(chunks[number].data, DTYPE)
                    parts.append(held[max(0, low - number * CHUNK) : high - number * CHUNK])
                    chunks[number]._p_deactivate()
                return parts[0] if len(parts) == 1 else np.concatenate(parts)

            yield part


OTHERS: tuple[type[Peer], ...] = (Zarr, Hdf5, Bytes)


def sync(paths: Iterable[pathlib.Path]) -> None:
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def chill(peer: Peer) -> None:
    """Its files are no longer in the page cache; raises RuntimeError when some are."""
    for path in peer.files():
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
            # pages that the kernel still has in a list of a processor are not dropped at the first time
            for _ in range(20):
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
                if path.stat().st_size < MIB or not _is_cached(number, path.stat().st_size // 2):
                    break
                time.sleep(0.05)
            else:
                raise RuntimeError(f"file {path}: in the page cache, expected on the disk only")
        finally:
            os.close(number)


def _is_cached(number: int, offset: int) -> bool:
    try:
        return bool(os.preadv(number, [bytearray(4096)], offset, os.RWF_NOWAIT))
    except BlockingIOError:
        return False


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
