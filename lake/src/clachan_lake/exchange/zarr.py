"""Zarr arrays: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html. Needs the extra `zarr`.

Written as format 3, read as 2 or 3. An array in order F is stored with the codec `transpose`, so that what lies
together in the lake lies together there; such an array is read as one in order F again.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clachan_lake.errors import LakeError
from clachan_lake.exchange.blocks import BLOCK_BYTES, Tell, check, chunk_shape, rows_of, silent
from clachan_lake.exchange.dtypes import DtypeError
from clachan_lake.exchange.filling import filling, json_values
from clachan_lake.exchange.whole import whole_folder
from clachan_lake.format import CHUNK_BYTES
from clachan_lake.interface import AnyArray, Array, Arrays

BAND_BYTES = 256 << 20
"""So much of a Zarr array is in memory at most, beside the chunks that Zarr decodes."""


def to_zarr(array: Array, path: str | Path, tell: Tell = silent) -> None:
    """Write the array to a new folder, which appears when it is whole. Raises FileExistsError for one that is there,
    DtypeError for a dtype that Zarr does not have, CorruptError for a chunk whose checksum does not hold."""
    zarr = _import()
    check(array)
    dtype = array.dtype.newbyteorder("=")
    chunks = chunk_shape(array, CHUNK_BYTES)
    with whole_folder(Path(path)) as folder, _known_warnings():
        target = _create(zarr, folder, array, dtype, chunks)
        if target.dtype != dtype:
            raise DtypeError(f"array {array.name}, dtype: {array.dtype}, expected one that Zarr has; use .npy")
        for index, part, done in _parts(array, chunks):
            target[index] = part.astype(dtype, copy=False)
            tell(done, array.nbytes)


def _create(zarr: Any, folder: Path, array: Array, dtype: np.dtype[Any], chunks: tuple[int, ...]) -> Any:
    turned = [zarr.codecs.TransposeCodec(order=tuple(range(array.ndim))[::-1])] if array.order == "F" else None
    try:
        return zarr.create_array(
            store=str(folder),
            shape=array.shape,
            dtype=dtype,
            chunks=chunks,
            filters=turned or "auto",
            attributes=dict(array.attrs),
            overwrite=True,
            # it leaves out chunks that equal zeros; of fields it does not see that -0.0 is another
            config={"write_empty_chunks": dtype.names is not None},
        )
    except (TypeError, ValueError) as error:
        raise DtypeError(
            f"array {array.name}, dtype: {array.dtype}, expected one that Zarr has; use .npy ({error})"
        ) from None


def _parts(array: Array, chunks: tuple[int, ...]) -> Iterator[tuple[Any, AnyArray, int]]:
    """(index, part, bytes done); each chunk of the target is in one part."""
    for first, rows in rows_of(array, BLOCK_BYTES, chunks[array.axis] if chunks else 1):
        stop = first + (rows.shape[array.axis] if chunks else 1)
        yield _index(array.ndim, array.order, first, stop), rows, stop * array.row_bytes


def _index(ndim: int, order: str, start: int, stop: int) -> Any:
    """Of the rows start <= i < stop, along the last axis in order F."""
    if not ndim:
        return ...
    rows = slice(start, stop)
    return (*[slice(None)] * (ndim - 1), rows) if order == "F" else rows


def from_zarr(arrays: Arrays, name: str, path: str | Path, tell: Tell = silent) -> Array:
    """A new array with the shape, dtype, attributes and values of a Zarr array. Raises ValueError for what is no Zarr
    array, DtypeError for a dtype with Python objects, TakenError for a name in use."""
    zarr = _import()
    what = f"zarr {path}"
    with _known_warnings():
        source = _open(zarr, path, what)
    dtype = np.dtype(source.dtype)
    if dtype.hasobject or dtype.kind == "T":
        raise DtypeError(f"{what}, dtype: {dtype}, expected one of a fixed size, without Python objects")
    order = "F" if source.ndim > 1 and _is_turned(source) else "C"
    attrs = json_values(source.attrs.asdict(), what)
    with filling(arrays, name, source.shape, dtype, order=order, attrs=attrs) as add:
        for part, done in _bands(source, order, what):
            add(part)
            tell(done, _bytes(source))
    return arrays[name]


def _open(zarr: Any, path: str | Path, what: str) -> Any:
    if not Path(path).is_dir():
        raise ValueError(f"{what}: no folder, expected a Zarr array")
    try:
        found = zarr.open(store=str(path), mode="r")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}, expected a Zarr array") from None
    if not isinstance(found, zarr.Array):
        inside = ", ".join(sorted(found.array_keys())) or "no array"
        raise ValueError(f"{what}: a group with {inside:.200}, expected one Zarr array")
    return found


def _is_turned(source: Any) -> bool:
    """Whether the order of its axes is turned around on disk: order F in format 2, the codec in format 3."""
    if source.metadata.zarr_format == 2:
        return bool(source.metadata.order == "F")
    turned = tuple(range(source.ndim))[::-1]
    return any(tuple(getattr(codec, "order", ())) == turned for codec in source.metadata.codecs)


def _bands(source: Any, order: str, what: str) -> Iterator[tuple[AnyArray, int]]:
    """(part, bytes done) along the major axis; whole chunks of the source at a time where memory allows."""
    total = _bytes(source)
    if not total:
        return
    try:
        axis = -1 if order == "F" else 0
        length, chunk = (source.shape[axis], source.chunks[axis]) if source.shape else (1, 1)
        one = max(1, total // length)
        step = max(1, BLOCK_BYTES // one // chunk) * chunk
        step = min(step, max(1, BAND_BYTES // one))
        for start in range(0, length, step):
            stop = min(start + step, length)
            yield np.asarray(source[_index(source.ndim, order, start, stop)]), stop * one
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, LakeError):
            raise
        raise ValueError(f"{what}: {type(error).__name__}: {error}, expected chunks that can be read") from error


def _bytes(source: Any) -> int:
    return int(math.prod(source.shape)) * int(source.dtype.itemsize)


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Text, raw bytes and structured dtypes are no part of the specification yet; our documentation says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The data type .* does not have a Zarr V3 specification")
        yield


def _import() -> Any:
    try:
        import zarr
        import zarr.codecs
    except ImportError:
        raise ImportError("zarr: not installed, expected the extra: pip install 'clachan-lake[zarr]'") from None
    return zarr
