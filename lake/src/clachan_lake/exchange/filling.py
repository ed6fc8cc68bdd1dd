"""Making an array of what comes block by block."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from clachan_lake.errors import LakeError
from clachan_lake.interface import AnyArray, Arrays
from clachan_lake.remote import RemoteArrays

Add = Callable[[AnyArray], None]


@contextmanager
def filling(
    arrays: Arrays,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    order: str = "C",
    attrs: Mapping[str, Any] | None = None,
) -> Iterator[Add]:
    """A new array, and how the next block behind the last one comes into it. In a lake whose every call is a
    transaction of its own (at a URL), the array is deleted again when the block of code raises."""
    empty = not shape or 0 in shape or dtype.itemsize == 0
    begun = shape if empty else (*shape[:-1], 0) if order == "F" else (0, *shape[1:])
    array = arrays.create(name, begun, dtype, attrs, order=order)
    try:
        yield (lambda part: array.__setitem__((), part)) if not shape else array.append
        if array.shape != shape:
            raise LakeError(f"array {name}, shape: {array.shape}, expected {shape}; another writer changed it")
    except BaseException:
        if isinstance(arrays, RemoteArrays):
            with suppress(LakeError, OSError):
                del arrays[name]
        raise


def json_values(attrs: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The attributes as JSON has them; raises ValueError that begins with `what`."""
    try:
        values: dict[str, Any] = json.loads(json.dumps(dict(attrs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}, attributes: {error}, expected JSON values") from None
    return values
