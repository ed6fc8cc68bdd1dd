"""What a lake offers, wherever it is: in a folder, behind the server's socket, or at a URL.

A Lake belongs to one thread; `session()` gives another of the same connection for another thread. It reads one
consistent snapshot, until `refresh()` or a transaction. Writes belong to `with lake.transaction():`, which commits
when the block ends and changes nothing when it raises.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

from clachan_lake.arrays.index import plan

if TYPE_CHECKING:
    from clachan_lake.jobs.job import Job, Jobs

AnyArray = npt.NDArray[Any]
T = TypeVar("T")


def memory(array: AnyArray) -> memoryview:
    """The bytes of a contiguous array, writable in place."""
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


@dataclass(frozen=True)
class Revision:
    """A commit that changed an array: `id` is what `at` takes, `note` what the transaction was given."""

    id: str
    time: datetime
    shape: tuple[int, ...]
    note: str


class Array(ABC):
    """A numpy array in the lake. Its *rows* lie behind each other along its growing axis: the first, or the last in
    order F."""

    name: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]: ...

    @property
    @abstractmethod
    def order(self) -> str:
        """How its bytes lie: C, or F (Fortran)."""

    @property
    @abstractmethod
    def attrs(self) -> Mapping[str, Any]:
        """JSON values by name; writable in a transaction where the lake is."""

    @abstractmethod
    def read_rows(self, start: int, stop: int) -> AnyArray:
        """The rows start <= i < stop of the growing axis, which must exist: numpy's array of `shape`, but for the
        length stop - start of that axis."""

    @abstractmethod
    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None: ...

    @abstractmethod
    def append(self, rows: npt.ArrayLike) -> None:
        """Add rows at the end of the growing axis; raises ValueError when the other axes differ."""

    @abstractmethod
    def resize(self, *shape: int) -> None:
        """Another shape of the same bytes in the array's order, as numpy's `ndarray.resize`: what is new is zero,
        what is cut is gone."""

    def __getitem__(self, key: Any) -> Any:
        """As numpy's own indexing; only the rows are read that an integer or a slice of the growing axis spans."""
        if not self.shape:
            return self.read_rows(0, 1)[key]
        start, stop, rest = plan(key, self.shape, self.axis)
        return self.read_rows(start, stop)[rest]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        return np.array(self.read_rows(0, self.rows), dtype, copy=copy)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return prod(self.shape)

    @property
    def axis(self) -> int:
        """The growing axis."""
        return self.ndim - 1 if self.order == "F" and self.shape else 0

    @property
    def rows(self) -> int:
        """The length of the growing axis; 1 without axes."""
        return self.shape[self.axis] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape[: self.axis] + self.shape[self.axis + 1 :])

    @property
    def nbytes(self) -> int:
        return self.row_bytes * self.rows

    @property
    def units(self) -> str | None:
        """Of its values: the attribute `units`."""
        found = self.attrs.get("units")
        return None if found is None else str(found)

    @units.setter
    def units(self, units: str | None) -> None:
        attrs = cast("MutableMapping[str, Any]", self.attrs)
        if units is None:
            attrs.pop("units", None)
        else:
            attrs["units"] = units

    def blocks(self, size: int = 16 << 20) -> Iterator[tuple[int, AnyArray]]:
        """The array in order, as (first row, rows) of about `size` bytes: for what is larger than memory."""
        step = max(1, size // max(1, self.row_bytes))
        for start in range(0, self.rows, step):
            yield start, self.read_rows(start, min(start + step, self.rows))

    def to_npy(self, file: Path) -> int:
        """Write a .npy file, block by block; its bytes."""
        from clachan_lake.exchange import npy

        return npy.to_npy(self, file)

    def to_zarr(self, folder: Path) -> None:
        """Write a Zarr v3 array, block by block. Needs the extra `zarr`."""
        from clachan_lake.exchange import zarr

        zarr.to_zarr(self, folder)

    def to_dask(self) -> Any:
        """A dask array of it, which reads when it is computed. Needs the extra `dask`."""
        from clachan_lake.exchange import dask

        return dask.to_dask(self)

    def __repr__(self) -> str:
        return f"<array {self.name!r} {self.shape} {self.dtype}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from clachan_lake import display

        return display.array_html(self)


class Stream(ABC):
    """An append-only sequence of bytes with chunk boundaries and chunk ids."""

    name: str

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes."""

    @property
    @abstractmethod
    def start(self) -> int:
        """The position of the first byte that is still kept: 0 until the stream is truncated."""

    @property
    @abstractmethod
    def final(self) -> bool:
        """The sender marked the end, or was idle for long."""

    @property
    @abstractmethod
    def attrs(self) -> Mapping[str, Any]:
        """JSON values by name; writable in a transaction where the lake is."""

    @abstractmethod
    def read(self, offset: int | None = None, count: int | None = None) -> bytes:
        """At most `count` bytes from `offset` (by default all, from the first that is kept); b"" behind the end. Raises
        TruncatedError for a position before `start`."""

    @abstractmethod
    def chunks(self, offset: int = 0) -> Iterator[tuple[int, int, int]]:
        """(position, length, milliseconds since 1970 in UTC) of each chunk as it came, from the one that has
        `offset`."""

    @abstractmethod
    def truncate(self, before: int) -> int:
        """Forget the whole chunks in front of a position; how many bytes. Positions stay as they are."""

    @abstractmethod
    def append(self, data: bytes, chunk_id: str | None = None, final: bool = False) -> bool:
        """Add a chunk; False when a chunk of this id and content is there already. Raises ChunkError when the id
        stands for other content."""

    @abstractmethod
    def sha256(self) -> str:
        """Of all its bytes, hex."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What lists show: name, size, start, chunks, final, policy, attrs, times, transformations."""

    def blocks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The bytes in order, `size` at a time."""
        for offset in range(self.start, self.size, size):
            yield self.read(offset, size)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<stream {self.name!r} {self.size} bytes{', final' if self.final else ''}>"

    def _repr_html_(self) -> str:
        from clachan_lake import display

        return display.stream_html(self)


class Arrays(Mapping[str, Array], ABC):
    @abstractmethod
    def create(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike,
        attrs: Mapping[str, Any] | None = None,
        chunk_bytes: int | None = None,
        *,
        order: str = "C",
        units: str | None = None,
    ) -> Array:
        """A new array of zeros. Chunks have `chunk_bytes` (a multiple of 4,096), by default 2 MiB and behind 32 GiB
        4 MiB. Raises TakenError for a name in use, TypeError for a dtype with objects, ValueError for a shape, an
        order or a size that cannot be."""

    @abstractmethod
    def __delitem__(self, name: str) -> None: ...

    def from_npy(self, name: str, file: Path) -> Array:
        """A new array with the content of a .npy file, block by block."""
        from clachan_lake.exchange import npy

        return npy.from_npy(self, name, file)

    def from_zarr(self, name: str, folder: Path) -> Array:
        """A new array with the content of a Zarr array, block by block. Needs the extra `zarr`."""
        from clachan_lake.exchange import zarr

        return zarr.from_zarr(self, name, folder)


class Streams(Mapping[str, Stream], ABC):
    @abstractmethod
    def create(self, name: str, policy: str = "raw", attrs: Mapping[str, Any] | None = None) -> Stream:
        """A new empty stream. Raises TakenError for a name in use."""

    @abstractmethod
    def __delitem__(self, name: str) -> None: ...


class Policies(Mapping[str, dict[str, Any]], ABC):
    """Ingestion policies: name -> document (`clachan_lake.policies.policy` says what is in it)."""

    @abstractmethod
    def declare(self, name: str, /, **keys: Any) -> bool:
        """Make it, or give it these keys, the others their defaults; False when it is so already. What it has made
        stays as it is. Raises ValueError that names what is wrong."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """What it has made stays. Raises MissingError."""


class Tokens(Mapping[str, dict[str, Any]], ABC):
    """Tokens for the lake's server: id -> document; the token itself is not in it (`clachan_lake.access.token`)."""

    @abstractmethod
    def create(self, /, **order: Any) -> tuple[str, str]:
        """Id and token, which is shown this once; takes `scopes`, `seconds`, `note`, `same_content_seconds`. Raises
        ValueError that names what is wrong."""

    @abstractmethod
    def revoke(self, key: str) -> None:
        """It is refused from now on. Raises MissingError."""


class Transformations(Mapping[str, dict[str, Any]], ABC):
    """Functions that run on what is new: name -> document (`clachan_lake.transform.document` says what is in it)."""

    @abstractmethod
    def declare(self, name: str, /, **keys: Any) -> bool:
        """Make it, or give it these keys, the others their defaults (`paused` stays); False when it is so already. It
        follows all sources that match. Raises ValueError that names what is wrong."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """What it has made stays. Raises MissingError."""

    @abstractmethod
    def pause(self, name: str) -> bool:
        """False when it is paused already."""

    @abstractmethod
    def resume(self, name: str) -> bool:
        """False when it is not paused."""

    @abstractmethod
    def retry(self, name: str, source: str | None = None) -> int:
        """Try at once what failed, and what was given up, of one source or all; of how many sources that is."""

    @abstractmethod
    def backfill(self, name: str, source: str | None = None) -> int:
        """Make its outputs anew from the start, of one source or all; of how many sources that is."""

    @abstractmethod
    def describe(self, name: str) -> dict[str, Any]:
        """The document, and over all sources how far it is behind, what failed and what was given up."""

    @abstractmethod
    def positions(self, name: str, after: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """How far it is with each source, in their order behind `after`, a source's "kind/name"."""


class DeadLetters(Mapping[int, dict[str, Any]], ABC):
    """What no policy took, or no transformation could do: number -> document (`clachan_lake.policies.dead`)."""

    @abstractmethod
    def read(self, number: int) -> bytes:
        """The bytes of an ingested one."""

    @abstractmethod
    def delete(self, number: int) -> None:
        """Raises MissingError."""


class Lake(ABC):
    arrays: Arrays
    streams: Streams
    policies: Policies
    tokens: Tokens
    dead: DeadLetters
    transformations: Transformations

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

    @property
    def jobs(self) -> "Jobs":
        """Work that was submitted, by id."""
        from clachan_lake.jobs.submitting import jobs_of

        return jobs_of(self)

    def submit(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        into: str | None = None,
        name: str | None = None,
        scheduler: str | None = None,
        timeout_seconds: float | None = None,
        memory_mib: int | None = None,
        modules: Iterable[ModuleType] = (),
        **kwargs: Any,
    ) -> "Job":
        """Have `fn(*args, **kwargs)` called by a worker, also when this process has ended meanwhile. `into`: the name
        of the array that what it returns becomes, or of the arrays when that is a list or dict of arrays; `scheduler`:
        the address of a Dask cluster that calls it; `modules`: those whose code goes along, as the worker has them
        not."""
        return self.jobs.submit(
            fn,
            args,
            kwargs,
            modules=modules,
            into=into,
            name=name,
            scheduler=scheduler,
            timeout_seconds=timeout_seconds,
            memory_mib=memory_mib,
        )

    def _repr_html_(self) -> str:
        from clachan_lake import display

        return display.lake_html(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
