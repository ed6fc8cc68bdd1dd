"""Dask arrays over an array of a lake: https://docs.dask.org/en/stable/array.html. Needs the extra `dask`.

The blocks are read when they are computed, all from one snapshot. In this process they are views onto the lake's mapped
files, without a copy. What is sent to another process (of dask's process scheduler, or of a cluster) is only where the
lake is: the worker opens it there once, at the same snapshot.
"""

import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clachan_lake.arrays.array import LocalArray
from clachan_lake.errors import LakeError
from clachan_lake.exchange.blocks import chunk_shape
from clachan_lake.interface import AnyArray, Array
from clachan_lake.opening import open_lake
from clachan_lake.remote import RemoteArray, RemoteLake

BLOCK_BYTES = 64 << 20


class NotSharedError(LakeError, TypeError):
    """An array whose lake another process cannot open."""


@dataclass(frozen=True)
class Address:
    """Where an array is, for another process: what `open_lake` takes, and the commit whose state is read."""

    target: str
    blobs: str | None
    token: str | None = field(repr=False)
    name: str
    at: str
    ca: str | None = None


def to_dask(array: Array, block_bytes: int = BLOCK_BYTES) -> Any:
    """A dask array of what is committed now, in blocks of about `block_bytes`."""
    da = _import()
    reference = Reference.of(array)
    return da.from_array(
        reference,
        chunks=chunk_shape(array, block_bytes),
        name=f"lake-{reference.token}",
        asarray=False,
        meta=np.empty((0,) * array.ndim, array.dtype),
    )


class Reference:
    """What dask slices: the array of a snapshot, by its view in this process, by its address in others."""

    def __init__(self, address: Address | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.ndim = len(shape)
        self.token = uuid.uuid4().hex if address is None else hashlib.sha256(repr(address).encode()).hexdigest()
        self._address = address
        self._kept: tuple[Array, AnyArray] | None = None

    @classmethod
    def of(cls, array: Array) -> "Reference":
        """Of what is committed now; raises MissingError for an array that is not committed yet."""
        if isinstance(array, RemoteArray):
            snapshot = array.snapshot()
            url, token, at = snapshot.address
            address = Address(url, None, token, array.name, at or "", array.lake.ca)
            return cls(address, snapshot.shape, snapshot.dtype)
        if not isinstance(array, LocalArray):
            raise TypeError(f"array {array.name}: a {type(array).__name__}, expected one of a lake")
        past: Any = array.snapshot()
        made = cls(_address_of(past), past.shape, past.dtype)
        # the snapshot's session keeps its past from being packed away, the view its files mapped
        made._kept = past, past[...]
        return made

    def __getitem__(self, key: Any) -> AnyArray:
        if self._kept is not None:
            return self._kept[1][key]  # type: ignore[no-any-return]
        assert self._address is not None
        return np.asarray(_find(self._address)[key])

    def __reduce__(self) -> Any:
        if self._address is None:
            raise NotSharedError("dask array: of a lake in this process only, expected one at a folder, socket or URL")
        return Reference, (self._address, self.shape, self.dtype)

    def __dask_tokenize__(self) -> str:
        return self.token


def _address_of(past: LocalArray) -> Address | None:
    """Where another process finds an array of a snapshot; None where it cannot."""
    found = past.lake.address
    return None if found is None else Address(*found, None, past.name, past.lake.now())


_lock = threading.Lock()
_lakes: dict[tuple[int, str, str | None], Any] = {}
"""Of this process; a fork opens its own."""
_views: OrderedDict[tuple[int, Address], tuple[Any, AnyArray]] = OrderedDict()
_threads = threading.local()
KEPT = 16
"""So many arrays stay open in a worker, the last used."""


def _find(address: Address) -> Any:
    """The array at an address, opened once: local ones for the process, those at a URL for each thread."""
    if address.target.startswith(("http://", "https://")):
        found: OrderedDict[Address, RemoteArray] = _threads.__dict__.setdefault("found", OrderedDict())
        if address not in found:
            lake = RemoteLake(address.target, address.token, 60, address.ca)
            found[address] = RemoteArray(
                lake, lake.get("/arrays/meta", name=address.name, at=address.at).json(), address.at
            )
        return _last(found, address)
    key = os.getpid(), address
    with _lock:
        if key not in _views:
            past = _lake(address).at(address.at)
            _views[key] = past, past.arrays[address.name][...]
        return _last(_views, key)[1]


def _last(opened: "OrderedDict[Any, Any]", key: Any) -> Any:
    """The one of the key, which is now the last used; the first is closed where there are too many."""
    opened.move_to_end(key)
    if len(opened) > KEPT:
        _, old = opened.popitem(last=False)
        (old.lake if isinstance(old, RemoteArray) else old[0]).close()
    return opened[key]


def _lake(address: Address) -> Any:
    key = os.getpid(), address.target, address.blobs
    if key not in _lakes:
        _lakes[key] = open_lake(address.target, read_only=True, blobs=address.blobs)
    _lakes[key].refresh()
    return _lakes[key]


def _import() -> Any:
    try:
        import dask.array
    except ImportError:
        raise ImportError("dask: not installed, expected the extra: pip install 'clachan-lake[dask]'") from None
    return dask.array
