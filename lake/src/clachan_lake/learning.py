"""Models of arrays that are larger than memory: scikit-learn's `partial_fit`, block by block."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from clachan_lake.interface import AnyArray, Array

Model = TypeVar("Model")
BLOCK = 16 << 20


def fit_blocks(
    model: Model,
    array: Array,
    target: Array | None = None,
    *,
    size: int = BLOCK,
    passes: int = 1,
    classes: Sequence[Any] | AnyArray | None = None,
) -> Model:
    """Fit `model` to the rows of `array`, and return it. It sees blocks of at most `size` bytes, all of nearly the same
    number of rows, in order, `passes` times.

    `target` is what is to be learned of each row: an array of as many rows. `classes` are all values of it, which a
    classifier must know at its first block; by default they are read from `target`. What a row has in further axes
    becomes one axis. Raises ValueError when the rows of both differ or there is none, TypeError for a model that
    cannot learn block by block.
    """
    learn = getattr(model, "partial_fit", None)
    if learn is None:
        raise TypeError(f"model {type(model).__name__}: no partial_fit, expected one that learns block by block")
    if not array.shape or not array.rows:
        raise ValueError(f"array {array.name!r}, shape: {array.shape}, expected rows")
    if target is not None and (not target.shape or target.rows != array.rows):
        raise ValueError(f"target {target.name!r}, shape: {target.shape}, expected {array.rows} rows")
    edges = _edges(array, size)
    known = _classes(model, target, edges, classes)
    for turn in range(passes):
        for start, stop in pairwise(edges):
            block = _table(array, start, stop)
            if target is None:
                learn(block)
            else:
                labels = _rows(target, start, stop)
                learn(block, labels, **({"classes": known} if known is not None and start == turn == 0 else {}))
    return model


def _edges(array: Array, size: int) -> list[int]:
    """Blocks alike in length: what some models need of the first, they need of the last."""
    step = max(1, size // max(1, array.row_bytes))
    count = -(-array.rows // step)
    return [array.rows * number // count for number in range(count + 1)]


def _rows(array: Array, start: int, stop: int) -> AnyArray:
    return np.moveaxis(array.read_rows(start, stop), array.axis, 0)


def _table(array: Array, start: int, stop: int) -> AnyArray:
    return _rows(array, start, stop).reshape(stop - start, -1)


def _classes(model: Any, target: Array | None, edges: list[int], given: Any) -> AnyArray | None:
    if given is not None:
        return np.asarray(given)
    if target is None:
        return None
    from sklearn.base import is_classifier

    if not is_classifier(model):
        return None
    found = [np.unique(_rows(target, start, stop)) for start, stop in pairwise(edges)]
    return np.unique(np.concatenate(found))
