"""Parts of calls: large arrays that many calls have in common are kept once, beside the jobs, and read by each.

A part has an id and is an array in numpy's format. Who made it deletes it; what is forgotten goes after two days.
"""

import io
import tempfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cloudpickle
import numpy as np

from clachan_lake.interface import AnyArray
from clachan_lake.jobs import value
from clachan_lake.jobs.document import new_id
from clachan_lake.jobs.job import Jobs
from clachan_lake.opening import open_lake

LARGE_BYTES = 1 << 20
Keep = Callable[[AnyArray], str]


class Sharing:
    """The parts of one series of calls."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        # with the arrays themselves, so that no other gets its identity meanwhile
        self._kept: dict[int, tuple[AnyArray, str]] = {}

    def keep(self, array: AnyArray) -> str:
        """Its part's id; the same array is kept once."""
        if id(array) not in self._kept:
            file, part = io.BytesIO(), new_id()
            value.write(array, file)
            self._jobs.put_part(part, file.getvalue())
            self._kept[id(array)] = array, part
        return self._kept[id(array)][1]

    def close(self) -> None:
        """Forget them: no call may need them any more. Raises what the lake raises."""
        while self._kept:
            self._jobs.delete_part(self._kept.popitem()[1][1])


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Large arrays are not in the pickle: `keep` keeps them and gives their parts' ids."""

    def __init__(self, file: io.BytesIO, keep: Keep) -> None:
        super().__init__(file, protocol=5)
        self._keep = keep

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray and obj.nbytes >= LARGE_BYTES and not obj.dtype.hasobject:
            return fetch, (self._keep(obj),)
        return super().reducer_override(obj)


@lru_cache(64)
def fetch(part: str) -> AnyArray:
    """The array, in the job's process; read-only, as it may be that of several calls."""
    with open_lake() as lake, tempfile.TemporaryFile() as file:
        with lake.jobs.open_part(part) as blocks:
            for block in blocks:
                file.write(block)
        file.seek(0)
        array: AnyArray = value.read("npy", file, f"part {part}")
    array.flags.writeable = False
    return array
