"""What of an array at a URL is mapped in this process, where the lake's files are on the same machine (`near`).

Whatever stands in the way, the array is read over HTTP: with the same result, or the error that tells of it.
"""

import logging
import math
import os
import resource
import time
from collections.abc import Mapping
from typing import Any, Protocol

import requests

from clachan_lake import near
from clachan_lake.arrays.drafts import Bytes
from clachan_lake.arrays.near import Answer, NearRegion, NearTable
from clachan_lake.errors import LakeError

log = logging.getLogger(__name__)
SMALL_BYTES = 256 << 10
"""What is read of the present array is asked for at each read; so much comes with the answer in the same time."""
AGAIN_SECONDS = 60.0
SPARE_FILES = 16
"""That are left to the rest of the process."""
PATH = "/arrays/files"


class Nearness:
    """Whether a lake's files are on this machine: the server says it, and sessions of one lake know it together."""

    def __init__(self) -> None:
        self.place = near.place()
        self._until = 0.0 if self.place else math.inf
        """Until then nobody asks."""

    @property
    def is_likely(self) -> bool:
        return time.monotonic() >= self._until

    def rule_out(self) -> None:
        """The lake is on another machine; or its files are not to be used."""
        self._until = math.inf

    def postpone(self) -> None:
        self._until = max(self._until, time.monotonic() + AGAIN_SECONDS)


class Caller(Protocol):
    """What is needed of the lake; errors are those of `RemoteLake.call`."""

    nearness: Nearness

    def get(self, path: str, headers: Mapping[str, str] | None = None, **parameters: Any) -> requests.Response: ...


class RemoteFiles:
    """Of the array as it is at each read, or with `at` as it was then."""

    def __init__(self, lake: Caller, name: str, row_bytes: int, at: str | None) -> None:
        self._nearness = lake.nearness
        # apart, as each view keeps it, and with it nothing but what it has mapped
        self._ask = _Asking(lake, name)
        self._name = name
        self._row_bytes = row_bytes
        self._at = at
        self._found: tuple[str, NearTable, NearRegion] | None = None
        """The last version that was read."""
        self._until = 0.0

    def view(self, low: int, high: int) -> Bytes | None:
        """The bytes low <= position < high, for reading; None when they must be read over HTTP."""
        if low >= high or not self._is_worth_it(high - low):
            return None
        try:
            return self._view(low, high)
        except (LakeError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
            log.debug("array %s: %r; read over HTTP", self._name, error)
            self._until = time.monotonic() + AGAIN_SECONDS
            if isinstance(error, OSError) and not isinstance(error, LakeError):
                # what was promised is not to be had
                self._nearness.postpone()
            return None

    def _is_worth_it(self, length: int) -> bool:
        if self._at is None:
            return length >= SMALL_BYTES and self._may_ask()
        return self._found is not None or self._may_ask()

    def _may_ask(self) -> bool:
        return self._nearness.is_likely and time.monotonic() >= self._until

    def _view(self, low: int, high: int) -> Bytes | None:
        found = self._found
        if self._at is None or found is None:
            found = self._current(low, high)
        return None if found is None else found[2].view(low, high, False)

    def _current(self, low: int, high: int) -> tuple[str, NearTable, NearRegion] | None:
        """The version that the server has now; None when it has none for this process, or another than is wanted."""
        before = self._found
        known = before[0] if before and before[2].is_mapped(low, high) else ""
        told = self._ask.ask(low, high, self._at, known)
        if told["socket"] is None:
            self._nearness.rule_out()
            return None
        if before and told["version"] == before[0]:
            if "runs" in told:
                before[1].begin(Answer(**told))
            return before
        answer = Answer(**told)
        if answer.row_bytes != self._row_bytes or answer.length < high:
            return None
        table = NearTable(self._name, answer, self._ask.more)
        self._found = answer.version, table, NearRegion(table)
        return self._found


class _Asking:
    def __init__(self, lake: Caller, name: str) -> None:
        self._lake = lake
        self._name = name

    def more(self, low: int, high: int, snapshot: str) -> Answer:
        """Of a version that was told of before."""
        return Answer(**self.ask(low, high, snapshot))

    def ask(self, low: int, high: int, at: str | None, known: str = "") -> dict[str, Any]:
        place, most = self._lake.nearness.place, min(near.FILES, _spare_files())
        parameters: dict[str, Any] = {
            "name": self._name,
            "start": low,
            "stop": high,
            "at": at,
            "known": known,
            "most": most,
        }
        told: dict[str, Any] = self._lake.get(PATH, here=place, **parameters).json()
        return told


def _spare_files() -> int:
    """How many this process may open beside those that it has; raises OSError for none."""
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    if limit == resource.RLIM_INFINITY:
        return near.FILES
    if limit - used - SPARE_FILES < 1:
        raise OSError(f"open files: {used}, expected at most {limit - SPARE_FILES - 1}; see `ulimit -n`")
    return limit - used - SPARE_FILES
