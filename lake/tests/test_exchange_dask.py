"""Dask over arrays of a lake: lazily, without a copy in this process, from the same snapshot in others."""

import gc
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import numpy as np
import pytest
from clachan_lake.errors import MissingError
from clachan_lake.exchange import dask as exchange
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake

from .making import TOKEN, Server

ROWS = np.random.default_rng(0).integers(0, 1 << 40, (1 << 17, 32))


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    """What this process opened as a worker does."""
    yield
    for lake in exchange._lakes.values():
        lake.close()
    exchange._lakes.clear()
    exchange._views.clear()
    gc.collect()


@pytest.fixture
def filled(lake: LocalLake) -> LocalLake:
    with lake.transaction():
        lake.arrays.create("a", (0, 32), "i8").append(ROWS)
    return lake


def test_blocks_are_views_onto_the_lake(filled: LocalLake) -> None:
    array = filled.arrays["a"]
    made = exchange.to_dask(array, 4 << 20)
    assert (made.shape, made.dtype, made.chunks) == (array.shape, array.dtype, ((1 << 14,) * 8, (32,)))
    assert exchange.to_dask(array).numblocks == (1, 1)
    views = dask.compute(*made.blocks[2:4].to_delayed().ravel(), scheduler="threads")
    for view, start in zip(views, (1 << 15, 3 << 14), strict=True):
        assert not view.flags.owndata
        assert not view.flags.writeable
        np.testing.assert_array_equal(view, ROWS[start : start + (1 << 14)])
    assert int(made.sum().compute()) == int(ROWS.sum())
    np.testing.assert_array_equal(made[5:9, ::7].compute(), ROWS[5:9, ::7])


def test_it_stays_as_it_was(filled: LocalLake) -> None:
    made = exchange.to_dask(filled.arrays["a"], 1 << 20)
    same = exchange.to_dask(filled.arrays["a"], 1 << 20)
    with filled.transaction():
        filled.arrays["a"][:] = 0
        filled.arrays["a"].append(ROWS)
    assert int(made.sum().compute()) == int(ROWS.sum())
    assert made.name == same.name != exchange.to_dask(filled.arrays["a"]).name
    assert filled.arrays["a"].to_dask().shape == (1 << 18, 32)
    assert int(filled.arrays["a"].to_dask().sum().compute()) == int(ROWS.sum())


def test_shapes_and_orders(lake: LocalLake) -> None:
    with lake.transaction():
        lake.arrays.create("f", (3, 1000), "f8", order="F")[:] = np.arange(3000).reshape(3, 1000)
        lake.arrays.create("one", (), "f8")[()] = 5
        lake.arrays.create("none", (0, 3), "f8")
        lake.arrays.create("wide", (2, 5000), "f8")[:] = 1
        lake.arrays.create("fields", 5, [("a", "i4"), ("b", "f8")])["a"] = range(5)
    f = exchange.to_dask(lake.arrays["f"], 2400)
    assert f.chunks == ((3,), (100,) * 10)
    np.testing.assert_array_equal(f.compute(), lake.arrays["f"][:])
    assert float(exchange.to_dask(lake.arrays["one"]).compute()) == 5
    assert exchange.to_dask(lake.arrays["none"]).compute().shape == (0, 3)
    wide = exchange.to_dask(lake.arrays["wide"], 8000)
    assert wide.chunks == ((1, 1), (1000,) * 5)
    assert float(wide.sum().compute()) == 10_000
    assert exchange.to_dask(lake.arrays["fields"])["a"].compute().tolist() == [0, 1, 2, 3, 4]
    with lake.transaction(), pytest.raises(MissingError):
        exchange.to_dask(lake.arrays.create("new", 3, "i2"))


@pytest.mark.slow
def test_other_processes_open_the_folder(filled: LocalLake) -> None:
    made = exchange.to_dask(filled.arrays["a"], 4 << 20)
    assert len(pickle.dumps(made)) < 10_000
    with filled.transaction():
        filled.arrays["a"][:] = 0
    assert int(made.sum().compute(scheduler="processes", num_workers=2)) == int(ROWS.sum())


@pytest.mark.slow
def test_other_processes_open_the_socket_and_the_url(server: Server) -> None:
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake, open_lake(server.url, token=TOKEN) as remote:
        with lake.transaction():
            lake.arrays.create("p", (0, 32), "i8").append(ROWS)
        made = [exchange.to_dask(one.arrays["p"], 4 << 20) for one in (lake, remote)]
        with lake.transaction():
            lake.arrays["p"][:] = 0
        for one in made:
            assert TOKEN not in repr(one.dask.layers)
            assert int(one.sum().compute(scheduler="processes", num_workers=2)) == int(ROWS.sum())


def test_a_worker_opens_a_lake_once(server: Server) -> None:
    """As in a worker, with what came by pickle: one lake for all, one snapshot each; threads share it."""
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
        for number in range(exchange.KEPT + 4):
            with lake.transaction():
                lake.arrays.create(f"w{number}", 1000, "i8")[:] = number
        made = [exchange.Reference.of(lake.arrays[f"w{number}"]) for number in range(exchange.KEPT + 4)]
        there = pickle.loads(pickle.dumps(made))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: (int(one[5]), int(one[2:4].sum())), there * 3))
    assert found == [(number, 2 * number) for number in range(exchange.KEPT + 4)] * 3
    assert len(exchange._lakes) == 1
    assert len(exchange._views) <= exchange.KEPT


def test_over_http_from_many_threads(server: Server) -> None:
    with open_lake(server.url, token=TOKEN) as remote:
        remote.arrays.create("threads", (0, 32), "i8").append(ROWS[:4096])
        made = exchange.to_dask(remote.arrays["threads"], 64 << 10)
        assert made.numblocks == (16, 1)
        np.testing.assert_array_equal(made.compute(scheduler="threads", num_workers=4), ROWS[:4096])


def test_a_lake_in_memory_is_in_one_process(tmp_path: Path) -> None:
    from clachan_lake.database import database
    from ZODB.MappingStorage import MappingStorage

    with LocalLake(database(MappingStorage())) as lake:
        with lake.transaction():
            lake.arrays.create("a", 3, "i8")[:] = 1
        made = exchange.to_dask(lake.arrays["a"])
        assert int(made.sum().compute()) == 3
        with pytest.raises(exchange.NotSharedError, match="of a lake in this process only, expected one at a folder"):
            pickle.dumps(made)
