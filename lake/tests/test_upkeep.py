"""A served lake packs itself: truncated bytes give their room back, history is kept for as long as it is wanted."""

from pathlib import Path

import numpy as np
from clachan_lake.keeping.upkeep import Upkeep
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake

from .making import Server, wait_for

LARGE = 1 << 20


def blobs(folder: Path) -> int:
    return len(list(folder.rglob("*.blob")))


def packed(lake: LocalLake, folder: Path) -> bool:
    """Only what is read now is there. What this session could read stays, so it moves on."""
    lake.refresh()
    return blobs(folder) == 2


def fill(lake: LocalLake) -> None:
    with lake.transaction():
        stream = lake.streams.create("s")
        for _ in range(3):
            stream.append(b"x" * LARGE)
        lake.arrays.create("a", (LARGE,), "u1")[:] = 1
    with lake.transaction():
        lake.streams["s"].truncate(2 * LARGE)
        lake.arrays["a"][0] = 2


def test_a_server_packs_what_is_older_than_its_history(tmp_path: Path) -> None:
    server = Server(tmp_path, history_seconds=0, pack_seconds=1)
    try:
        server.start()
        with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
            assert isinstance(lake, LocalLake)
            fill(lake)
            lake.refresh()
            wait_for(lambda: packed(lake, server.folder), "a pack", 30)
            assert lake.streams["s"].read() == b"x" * LARGE
            assert np.array_equal(lake.arrays["a"][:2], [2, 1])
    finally:
        server.close()


def test_it_packs_when_it_is_due_and_not_before(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake:
        assert isinstance(lake, LocalLake)
        fill(lake)
        before = blobs(tmp_path)
        keeping = Upkeep(lake, 3600, 3600)
        assert keeping.look()
        assert not keeping.look()
        assert (blobs(tmp_path), lake.arrays["a"].history()[-1].shape) == (before, (LARGE,))
        forgetting = Upkeep(lake, 0, 0.01)
        wait_for(forgetting.look, "a pack", 10)
        wait_for(lambda: packed(lake, tmp_path) or (forgetting.look() and False), "a pack of all", 10)
        assert len(lake.arrays["a"].history()) == 1
