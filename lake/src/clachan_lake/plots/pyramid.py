"""The pyramid that the transformation `minmax` keeps of an array, read as one series of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clachan_lake.interface import AnyArray, Array
from clachan_lake.plots.series import Series
from clachan_lake.transform import minmax


@dataclass(frozen=True)
class Level:
    """Minimum and maximum of each `factor` whole rows; those of the first `count` are there."""

    factor: int
    count: int
    kept: Array
    series: Series

    @property
    def pair_bytes(self) -> int:
        """What is read for one of them."""
        return self.kept.row_bytes

    def read(self, first: int, last: int) -> tuple[AnyArray, AnyArray]:
        rows = self.kept.read_rows(first, last)
        return self.series.of(rows[:, 0], 0), self.series.of(rows[:, 1], 0)


def levels(arrays: Mapping[str, Array], array: Array, series: Series) -> list[Level]:
    """From the finest to the coarsest; none where the array has no pyramid."""
    return list(_fitting(arrays, array, series))


def _fitting(arrays: Mapping[str, Array], array: Array, series: Series) -> Iterator[Level]:
    wanted = minmax.extreme_dtype(array.dtype)
    inner = array.shape[: array.axis] + array.shape[array.axis + 1 :]
    if wanted is None or (series.field is not None and series.field not in (wanted.names or ())):
        return
    for one in minmax.pyramid(arrays, array.name):
        # one that was made by hand, or of what the array was before
        if one.array.dtype == wanted and one.array.shape[1:] == (2, *inner):
            yield Level(one.factor, min(one.array.rows, array.rows // one.factor), one.array, series)
