"""What the tests of the record readers have in common: an output that keeps everything, and a stream in chunks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from clachan_lake.interface import Array
from clachan_lake.transform.batch import Batch, Output, State

COLUMNS = [
    {"name": "time", "dtype": "datetime64[us]"},
    {"name": "cpu", "dtype": "float64"},
    {"name": "count", "dtype": "int16"},
    {"name": "host", "dtype": "S8"},
]


class Kept(Output):
    def __init__(self) -> None:
        self.appended: list[Any] = []
        self.warnings: list[str] = []

    def append(self, what: Any, name: str | None = None, attrs: Mapping[str, Any] | None = None) -> None:
        self.appended.append(what)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def array(self, name: str) -> Array | None:
        return None

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate(self.appended)


Transform = Callable[[Batch, Output, State], None]


def read(transform: Transform, data: bytes, cuts: Sequence[int] = (), **options: Any) -> Kept:
    """The rows of a stream that came in chunks which end at `cuts`, each chunk in a call of its own."""
    output, state, start = Kept(), {}, 0
    options.setdefault("columns", COLUMNS)
    for stop in [*sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]:
        batch = Batch("x", "stream", start, stop, [data[start:stop]], None, stop == len(data), options=options)
        transform(batch, output, state)
        start = stop
    return output
