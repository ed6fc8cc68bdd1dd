"""What tests of plots and pages make: a pyramid without a worker."""

from collections.abc import Mapping
from typing import Any

from clachan_lake.interface import Array
from clachan_lake.local import LocalLake
from clachan_lake.transform import minmax
from clachan_lake.transform.batch import Batch, Output


class Direct(Output):
    """Appends in the transaction that is open."""

    def __init__(self, lake: LocalLake) -> None:
        self._lake = lake

    def append(self, what: Any, name: str | None = None, attrs: Mapping[str, Any] | None = None) -> None:
        assert name is not None
        if name not in self._lake.arrays:
            self._lake.arrays.create(name, (0, *what.shape[1:]), what.dtype, attrs)
        self._lake.arrays[name].append(what)

    def warn(self, text: str) -> None:
        raise AssertionError(text)

    def array(self, name: str) -> Array | None:
        return self._lake.arrays.get(name)


def keep_pyramid(lake: LocalLake, name: str) -> None:
    """As the worker does when the transformation `minmax` has new rows."""
    array = lake.arrays[name]
    with lake.transaction():
        rows = _first(array.read_rows(0, array.rows), array)
        batch = Batch(
            name, "array", 0, array.rows, rows=rows, reader=lambda low, high: _first(array.read_rows(low, high), array)
        )
        minmax.transform(batch, Direct(lake), {})


def _first(rows: Any, array: Array) -> Any:
    """Rows along the first axis."""
    return rows if array.axis == 0 else rows.transpose(array.axis, *range(array.axis))
