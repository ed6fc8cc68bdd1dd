"""Where an array's bytes go: chunks in extents, small appends in the tail, shared blocks, the past."""

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from clachan_lake.arrays.grid import Grid
from clachan_lake.errors import MissingError, TransactionError
from clachan_lake.format import GROWTH
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from hypothesis import given
from hypothesis import strategies as st

CHUNK = 4096


def blobs(folder: Path) -> list[Path]:
    return sorted((folder / "blobs").rglob("*.blob"))


def size_of(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_blocks * 512 for path in files)


EDGES = st.integers(0, 9) | st.integers(-9, 9).map(lambda number: number + GROWTH * 3)


@given(edges=st.lists(EDGES, min_size=2, max_size=2))
def test_a_grid_is_what_counting_says(edges: list[int]) -> None:
    grid = Grid(3, 5)
    low, high = sorted(max(0, edge) for edge in edges)
    for position in {low, high}:
        number = grid.number(position)
        assert grid.start(number) <= position < grid.stop(number)
        assert grid.size(number) == (3 if number < GROWTH else 5)
        assert grid.start(number + 1) == grid.stop(number)
    if high - low < 100:
        held = {grid.number(position) for position in range(low, high)}
        assert set(grid.spanned(low, high)) == held
        assert set(grid.inside(low, high)) == {n for n in held if low <= grid.start(n) and grid.stop(n) <= high}
        parts = list(grid.clipped(low, high))
        assert [n for n, _low, _high in parts] == sorted(held)
        assert sum(last - first for _n, first, last in parts) == high - low
    assert grid.count(high) == (grid.number(high - 1) + 1 if high else 0)


def test_chunks_grow_behind_32_gib(lake: LocalLake) -> None:
    with lake.transaction():
        array = lake.arrays.create("a", (1 << 40,), "u1")
        array[(32 << 30) - 1 : (32 << 30) + 1] = 7
    assert array[(32 << 30) - 2 : (32 << 30) + 2].tolist() == [0, 7, 7, 0]
    sizes = sorted(entry[2] for _number, entry in array._opened.table.entries())
    assert sizes == [2 << 20, 4 << 20]


def test_chunks_that_are_written_together_share_a_file(lake: LocalLake, tmp_path: Path) -> None:
    with lake.transaction():
        lake.arrays.create("a", 100 * CHUNK, "u1", chunk_bytes=CHUNK)[:] = 1
    with lake.transaction():
        lake.arrays["a"][:][10 * CHUNK + 5 : 12 * CHUNK] = 2
    assert [path.stat().st_size for path in blobs(tmp_path / "lake")] == [100 * CHUNK, 2 * CHUNK]


def test_blocks_of_one_transaction_go_on_in_one_file(lake: LocalLake, tmp_path: Path) -> None:
    values = np.zeros(80 * CHUNK, "u1")
    wrong = np.array(["1"] * (4 * CHUNK - 1) + ["x"])
    with lake.transaction():
        array = lake.arrays.create("a", values.shape, "u1", chunk_bytes=CHUNK)
        for start in range(0, 40 * CHUNK, 4 * CHUNK):
            values[start : start + 4 * CHUNK] = array[start : start + 4 * CHUNK] = start // CHUNK + 1
        with pytest.raises(ValueError, match="invalid literal"):
            array[40 * CHUNK : 44 * CHUNK] = wrong
        np.testing.assert_array_equal(array[:], values)
        values[40 * CHUNK : 44 * CHUNK] = array[40 * CHUNK : 44 * CHUNK] = 7
    assert [path.stat().st_size for path in blobs(tmp_path / "lake")] == [44 * CHUNK]
    np.testing.assert_array_equal(array[:], values)
    assert array.verify() == []
    with lake.transaction():
        rows = lake.arrays.create("b", (0,), "u1", chunk_bytes=CHUNK)
        for _block in range(10):
            rows.append(values[: 4 * CHUNK])
    assert sorted(path.stat().st_size for path in blobs(tmp_path / "lake")) == [40 * CHUNK, 44 * CHUNK]
    np.testing.assert_array_equal(rows[:], np.tile(values[: 4 * CHUNK], 10))


def test_small_appends_write_no_chunk_until_there_is_one(lake: LocalLake, tmp_path: Path) -> None:
    rows = np.arange(300 * 1024, dtype="<u8")
    with lake.transaction():
        array = lake.arrays.create("a", (0,), "<u8")
    seen = array[:]
    for number in range(300):
        before = size_of(tmp_path / "lake")
        with lake.transaction():
            array.append(rows[number * 1024 : (number + 1) * 1024])
        if number not in {255, 256}:
            assert size_of(tmp_path / "lake") - before <= 40 << 10
        assert len(blobs(tmp_path / "lake")) == (number >= 255)
    assert len(seen) == 0
    np.testing.assert_array_equal(array[:], rows)
    assert array.verify() == []
    assert [path.stat().st_size for path in blobs(tmp_path / "lake")] == [2 << 20]
    assert len(array.history()) == 301


def test_very_small_appends_do_not_make_the_tail_long(lake: LocalLake) -> None:
    with lake.transaction():
        array = lake.arrays.create("a", (0,), "u1")
    for number in range(520):
        with lake.transaction():
            array.append([number % 251])
        assert len(array._opened.record.state.tail) <= 256
    assert array[:].tolist() == [number % 251 for number in range(520)]


def test_appends_of_a_chunk_are_moved_from_the_tail_some_at_once(lake: LocalLake) -> None:
    rows = np.random.default_rng(1).integers(0, 255, 10 * CHUNK, "u1")
    with lake.transaction():
        array = lake.arrays.create("a", (0,), "u1", chunk_bytes=CHUNK)
    tails = []
    for number in range(10):
        with lake.transaction():
            array.append(rows[number * CHUNK : (number + 1) * CHUNK])
        tails.append(len(array._opened.record.state.tail))
    assert tails == [1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    np.testing.assert_array_equal(array[:], rows)
    assert array.verify() == []


def test_a_large_append_is_written_once(lake: LocalLake, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).integers(0, 255, 9 << 20, "u1")
    with lake.transaction():
        array = lake.arrays.create("a", (0,), "u1")
        array.append(rows)
    np.testing.assert_array_equal(array[:], rows)
    assert array._opened.record.state.tail == () or len(array._opened.record.state.tail) == 1
    assert size_of(tmp_path / "lake") < 1.05 * len(rows)


def test_stores_outside_a_transaction_are_told_of(lake: LocalLake) -> None:
    with lake.transaction():
        array = lake.arrays.create("a", 100, "u1")
        kept = array[:]
    with pytest.raises(ValueError, match="read-only"):
        array[:][0] = 1
    kept[3] = 9
    expected = "array a: 4096 bytes of pages stored through a view outside a transaction, expected inside"
    with pytest.raises(TransactionError, match=expected):
        lake.refresh()
    assert not array[:].any()
    with lake.transaction():
        kept[4] = 8
    lake.refresh()
    assert np.flatnonzero(array[:]).tolist() == [4]


def test_stores_through_a_view_that_is_gone_are_kept(tmp_path: Path) -> None:
    """One that was taken before the savepoint, or in the transaction before."""
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction():
            view = lake.arrays.create("a", 5, "u1")[:]
        with lake.transaction():
            view[0] = 1
            del view
        with lake.transaction():
            view = lake.arrays["a"][:]
            view[1] = 2
            lake.savepoint()
            view[2] = 3
            del view
    with open_lake(tmp_path / "lake") as lake:
        assert lake.arrays["a"][:].tolist() == [1, 2, 3, 0, 0]


def test_a_store_outside_a_transaction_is_told_of_when_its_view_is_gone(lake: LocalLake) -> None:
    with lake.transaction():
        kept = lake.arrays.create("a", 100, "u1")[:]
    kept[3] = 9
    del kept
    with pytest.raises(TransactionError, match="array a: 4096 bytes of pages stored through a view outside"):
        lake.refresh()
    assert not lake.arrays["a"][:].any()


def test_the_past_is_there(lake: LocalLake) -> None:
    with lake.transaction("begun"):
        array = lake.arrays.create("a", (2,), "i4", units="V")
    for value in (1, 2):
        with lake.transaction(f"value {value}"):
            array[:] = value
        time.sleep(0.01)
    revisions = array.history()
    assert [revision.note for revision in revisions] == ["value 2", "value 1", "begun"]
    assert [array.at(revision.id)[:].tolist() for revision in revisions] == [[2, 2], [1, 1], [0, 0]]
    assert [array.at(revision.time)[0] for revision in revisions] == [2, 1, 0]
    assert array.at(datetime.now(UTC))[0] == 2
    then = array.snapshot()
    with lake.transaction():
        array.append([3])
        array[0] = 9
    assert (then[:].tolist(), array[:].tolist(), then.units) == ([2, 2], [9, 2, 3], "V")
    with pytest.raises(TransactionError):
        then[0] = 1
    with pytest.raises(MissingError, match=r"lake at 2020-01-01T00:00:00.*: not made yet, expected a later time"):
        array.at("2020-01-01")
    with pytest.raises(ValueError, match="moment: 'yesterday', expected a time in ISO 8601 or the id of a commit"):
        array.at("yesterday")


def test_scattered_chunks_are_merged(lake: LocalLake) -> None:
    with lake.transaction():
        array = lake.arrays.create("a", 40 * CHUNK, "u1", chunk_bytes=CHUNK)
    view = array[:]
    for number in range(40):
        with lake.transaction():
            array[number * CHUNK : (number + 1) * CHUNK] = number + 1
    before = mappings()
    assert array.merge() == 40
    assert mappings() <= before - 35
    assert (view.reshape(40, CHUNK) == np.arange(1, 41)[:, None]).all()
    assert array.verify() == []
    assert array.merge() == 0


def test_chunks_are_merged_that_another_session_has_cut(lake: LocalLake) -> None:
    with lake.transaction():
        array = lake.arrays.create("a", 40 * CHUNK, "u1", chunk_bytes=CHUNK)
    for number in range(40):
        with lake.transaction():
            array[number * CHUNK : (number + 1) * CHUNK] = number + 1
    with lake.session() as other:
        with lake.transaction():
            array.resize(20 * CHUNK)
        assert other.arrays["a"].merge() == 20
        assert (other.arrays["a"][:].reshape(20, CHUNK) == np.arange(1, 21)[:, None]).all()


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture(params=["xfs", "btrfs"])
def shared_blocks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system whose files can share blocks."""
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    try:
        subprocess.run([f"mkfs.{request.param}", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine cannot: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_changed_element_shares_the_rest_of_its_chunk(shared_blocks: Path) -> None:
    values = np.random.default_rng(1).integers(0, 255, 32 << 20, "u1")
    with open_lake(shared_blocks / "lake") as lake:
        with lake.transaction():
            array = lake.arrays.create("a", values.shape, "u1", chunk_bytes=16 << 20)
            array[:] = values
        os.sync()
        before = os.statvfs(shared_blocks).f_bfree
        with lake.transaction():
            array[5] = values[5] = 1
            array[20 << 20] = values[20 << 20] = 2
        os.sync()
        used = (before - os.statvfs(shared_blocks).f_bfree) * os.statvfs(shared_blocks).f_frsize
        assert used < 4 << 20
        assert array.verify() == []
    with open_lake(shared_blocks / "lake", read_only=True) as lake:
        np.testing.assert_array_equal(lake.arrays["a"][:], values)
