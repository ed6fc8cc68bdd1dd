"""dtypes in JSON: numpy's `descr`, text or a list of fields, whose tuples have become lists."""

from typing import Any

import numpy as np

from clachan_lake.errors import LakeError


class DtypeError(LakeError, TypeError):
    """A dtype that numpy does not have, or that an array of a lake cannot have."""


def to_json(dtype: np.dtype[Any]) -> Any:
    return np.lib.format.dtype_to_descr(dtype)


def from_json(value: Any, what: str) -> np.dtype[Any]:
    """Raises DtypeError that begins with `what`."""
    expected = "expected one of numpy's, of a fixed size and without Python objects"
    try:
        dtype = np.lib.format.descr_to_dtype(_descr(value))
    except (TypeError, ValueError, SyntaxError, KeyError, IndexError, RecursionError, MemoryError) as error:
        raise DtypeError(f"{what}, dtype: {value!r:.80}, {expected} ({error!s:.80})") from None
    if dtype.hasobject or dtype.itemsize == 0 or dtype.subdtype is not None:
        raise DtypeError(f"{what}, dtype: {value!r:.80}, {expected}")
    return dtype


def _descr(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise TypeError("neither text nor fields")
    return [(_name(field[0]), _descr(field[1]), *(tuple(shape) for shape in field[2:3])) for field in value]


def _name(value: Any) -> Any:
    """Of a field; with a title it is a pair."""
    return tuple(value) if isinstance(value, list) else value
