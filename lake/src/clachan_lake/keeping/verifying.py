"""Verify: every record that is reached, and every byte that has a checksum."""

from collections.abc import Iterator
from pathlib import Path

from clachan_lake.keeping.checking import Checker, Progress, quiet
from clachan_lake.local import LocalLake


def verify(lake: LocalLake, progress: Progress = quiet) -> Iterator[str]:
    """The faults of the lake as its session sees it, each with its array or stream and the chunk."""
    storage = lake.root()._p_jar._storage
    faults: list[str] = []
    checker = Checker(storage.load, lambda oid, serial: Path(storage.loadBlob(oid, serial)), faults.append, progress)
    for _record in checker.run("verify"):
        yield from faults
        faults.clear()
    yield from faults
