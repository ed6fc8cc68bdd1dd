"""What a lake offers, wherever it is: in a folder, behind the server's socket, or at a URL.

A Lake belongs to one thread; `session()` gives another of the same connection for another thread. It reads one
consistent snapshot, until `refresh()` or a transaction. Writes belong to `with lake.transaction():`, which commits
when the block ends and changes nothing when it raises.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from clachan_lake.arrays.index import plan

AnyArray = npt.NDArray[Any]
T = TypeVar("T")


def memory(array: AnyArray) -> memoryview:
    """The bytes of a contiguous array, writable in place."""
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


class Array(ABC):
    """A numpy array in the lake, not in memory: slices of it are numpy arrays (copies)."""

    name: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]: ...

    @property
    @abstractmethod
    def attrs(self) -> Mapping[str, Any]:
        """JSON values by name; writable in a transaction where the lake is."""

    @abstractmethod
    def read_rows(self, start: int, stop: int) -> AnyArray:
        """The rows start <= i < stop of the first axis, which must exist; shape (stop - start, *shape[1:])."""

    @abstractmethod
    def _read_all(self) -> AnyArray: ...

    @abstractmethod
    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None: ...

    @abstractmethod
    def append(self, rows: npt.ArrayLike) -> None:
        """Add rows at the end of the first axis; raises ValueError when the other axes differ."""

    @abstractmethod
    def resize(self, *shape: int) -> None:
        """Change the length of the first axis: what is new is zero, what is cut is gone."""

    def __getitem__(self, key: Any) -> Any:
        """As numpy's own indexing; only the rows that the first index spans are read."""
        if not self.shape:
            return self._read_all()[key]
        start, stop, rest = plan(key, self.shape)
        return self.read_rows(start, stop)[rest]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError(f"array {self.name}: copy=False, expected a copy: its data are not in memory")
        return self._read_all().astype(dtype or self.dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def rows(self) -> int:
        """The length of the first axis; 1 without axes."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.row_bytes * self.rows

    def blocks(self, size: int = 4 << 20) -> Iterator[tuple[int, AnyArray]]:
        """The array in order, as (first row, rows) of about `size` bytes: for what is larger than memory."""
        step = max(1, size // max(1, self.row_bytes))
        for start in range(0, len(self), step):
            yield start, self.read_rows(start, min(start + step, len(self)))

    def __repr__(self) -> str:
        return f"<array {self.name!r} {self.shape} {self.dtype}>"


class Stream(ABC):
    """An append-only sequence of bytes with chunk boundaries and chunk ids."""

    name: str

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes."""

    @property
    @abstractmethod
    def final(self) -> bool:
        """The sender marked the end, or was idle for long."""

    @abstractmethod
    def read(self, offset: int = 0, count: int | None = None) -> bytes:
        """At most `count` bytes from `offset` (all that follow, by default); b"" behind the end."""

    @abstractmethod
    def append(self, data: bytes, chunk_id: str | None = None, final: bool = False) -> bool:
        """Add a chunk; False when a chunk of this id and content is there already. Raises ChunkError when the id
        stands for other content."""

    @abstractmethod
    def sha256(self) -> str:
        """Of all its bytes, hex."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What lists show: name, size, chunks, final, policy, times, transformation."""

    def blocks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The bytes in order, `size` at a time."""
        for offset in range(0, self.size, size):
            yield self.read(offset, size)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<stream {self.name!r} {self.size} bytes{', final' if self.final else ''}>"


class Arrays(Mapping[str, Array], ABC):
    @abstractmethod
    def create(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike,
        attrs: Mapping[str, Any] | None = None,
        chunk_bytes: int = ...,
    ) -> Array:
        """A new array of zeros. Raises TakenError for a name in use, TypeError for a dtype with objects."""

    @abstractmethod
    def __delitem__(self, name: str) -> None: ...


class Streams(Mapping[str, Stream], ABC):
    @abstractmethod
    def create(self, name: str, policy: str = "raw") -> Stream:
        """A new empty stream. Raises TakenError for a name in use."""


class Lake(ABC):
    arrays: Arrays
    streams: Streams

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Self]: ...

    @abstractmethod
    def session(self) -> Self:
        """The same lake for another thread; close it as well."""

    @abstractmethod
    def refresh(self) -> None:
        """See what was committed since."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
