"""Arrays beside numpy: what is read is what numpy would have."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.arrays.index import plan
from clachan_lake.database import database, own
from clachan_lake.errors import CorruptError, MissingError, TakenError, TransactionError
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

CHUNK = 4096


def test_an_array_is_there_when_the_lake_is_opened_again(tmp_path: Path) -> None:
    rows = np.arange(30_000, dtype="int16").reshape(-1, 3)
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        array = lake.arrays.create("a", (0, 3), "int16", {"rate": 8000, "names": ["x", "y", "z"]}, chunk_bytes=CHUNK)
        array.append(rows[:7])
        array.append(rows[7:])
    with open_lake(tmp_path / "lake") as lake:
        array = lake.arrays["a"]
        assert (array.shape, array.dtype, array.nbytes) == ((10_000, 3), np.dtype("int16"), 60_000)
        assert dict(array.attrs) == {"rate": 8000, "names": ["x", "y", "z"]}
        assert isinstance(array[:], np.ndarray)
        np.testing.assert_array_equal(array[:], rows)
        np.testing.assert_array_equal(np.asarray(array), rows)
        np.testing.assert_array_equal(np.concatenate([block for _first, block in array.blocks(1000)]), rows)
        assert list(lake.arrays) == ["a"]
        assert "a" in lake.arrays
        assert "b" not in lake.arrays


def test_a_block_that_raises_changes_nothing(lake: LocalLake) -> None:
    with lake.transaction():
        lake.arrays.create("a", 5, "f8")

    def change() -> None:
        with lake.transaction():
            lake.arrays["a"][:] = 1
            lake.arrays["a"].attrs["x"] = 1
            lake.arrays.create("b", 5, "f8")[0] = 1 / 0

    with pytest.raises(ZeroDivisionError):
        change()
    assert lake.arrays["a"][:].tolist() == [0] * 5
    assert dict(lake.arrays["a"].attrs) == {}
    assert list(lake.arrays) == ["a"]


def test_writes_belong_to_a_transaction(lake: LocalLake) -> None:
    with lake.transaction():
        array = lake.arrays.create("a", 5, "f8")
    expected = "outside a transaction, expected inside `with lake.transaction\\(\\):`"
    with pytest.raises(TransactionError, match=f"array a: write: {expected}"):
        array[0] = 1
    with pytest.raises(TransactionError, match=f"array a: append: {expected}"):
        array.append([1])
    with pytest.raises(TransactionError, match=f"array a: set attributes: {expected}"):
        array.attrs["x"] = 1
    with pytest.raises(TransactionError, match=f"array b: create: {expected}"):
        lake.arrays.create("b", 5, "f8")
    with lake.transaction(), pytest.raises(TransactionError, match="transaction: one is open"), lake.transaction():
        pass


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        (3, object, TypeError),
        (3, np.dtype([("a", "i4"), ("b", "O")]), TypeError),
        ((-1, 2), "i4", ValueError),
        (3, "S0", ValueError),
        (3, "no such type", TypeError),
    ],
)
def test_what_cannot_be_an_array_is_refused(lake: LocalLake, shape: Any, dtype: Any, error: type[Exception]) -> None:
    with lake.transaction(), pytest.raises(error):
        lake.arrays.create("a", shape, dtype)
    assert list(lake.arrays) == []


def test_names_and_attributes_are_checked(lake: LocalLake) -> None:
    with lake.transaction():
        lake.arrays.create("a", 3, "i4")
        with pytest.raises(TakenError, match="array 'a': exists, expected a new name"):
            lake.arrays.create("a", 3, "i4")
        for name in ("", "a\nb", "x" * 1025):
            with pytest.raises(TakenError, match="expected 1-1024 bytes of printable text"):
                lake.arrays.create(name, 3, "i4")
        with pytest.raises(TypeError, match="expected JSON values"):
            lake.arrays["a"].attrs["f"] = {1, 2}
        with pytest.raises(ValueError, match="appended rows: shape"):
            lake.arrays["a"].append([[1, 2]])
        with pytest.raises(TypeError, match="Cannot cast"):
            lake.arrays["a"].append([1.5])
    with pytest.raises(MissingError, match="array 'b': none of this name"):
        lake.arrays["b"]


@pytest.mark.parametrize("dtype", ["|u1", "<i2", ">f4", "c16", "?", "M8[s]", "U3", [("t", "<i8"), ("v", "<f4", (2,))]])
def test_every_plain_dtype_comes_back(lake: LocalLake, dtype: Any) -> None:
    values = np.zeros(100, dtype)
    values.view("u1")[:] = np.random.default_rng(1).integers(0, 2 if dtype == "?" else 100, values.nbytes)
    if dtype == "U3":
        values = np.array(["añb", "", "z"])
    with lake.transaction():
        lake.arrays.create("a", len(values), dtype, chunk_bytes=CHUNK)[:] = values
    assert lake.arrays["a"].dtype == np.dtype(dtype)
    assert lake.arrays["a"][:].tobytes() == values.astype(dtype).tobytes()


def test_shapes_without_rows_columns_or_axes(lake: LocalLake) -> None:
    with lake.transaction():
        lake.arrays.create("none", (0, 4), "i4")
        lake.arrays.create("thin", (5, 0), "i4").append(np.zeros((2, 0), "i4"))
        lake.arrays.create("scalar", (), "f8")[()] = 2.5
    assert lake.arrays["none"][:].shape == (0, 4)
    assert lake.arrays["thin"][:].shape == (7, 0)
    assert float(lake.arrays["scalar"][()]) == 2.5
    with pytest.raises(TypeError):
        len(lake.arrays["scalar"])
    with pytest.raises(IndexError, match="index 0 is out of bounds for axis 0 with size 0"):
        lake.arrays["none"][0]


def test_a_sparse_array_costs_what_was_written(lake: LocalLake, tmp_path: Path) -> None:
    with lake.transaction():
        lake.arrays.create("huge", 10**12, "f8")[10**11] = 7
    assert lake.arrays["huge"][10**11 - 1 : 10**11 + 2].tolist() == [0, 7, 0]
    assert lake.arrays["huge"].verify() == []
    files = list((tmp_path / "lake/blobs").rglob("*.blob"))
    assert len(files) == 1
    assert files[0].stat().st_size <= 4 << 20


def test_a_corrupt_chunk_is_named_and_the_rest_stays_readable(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction():
            lake.arrays.create("a", 3 * CHUNK, "u1", chunk_bytes=CHUNK)
        for number in range(3):
            with lake.transaction():
                lake.arrays["a"][number * CHUNK : (number + 1) * CHUNK] = 9
    blobs = sorted((tmp_path / "lake/blobs").rglob("*.blob"))
    blobs[1].chmod(0o600)
    blobs[1].write_bytes(b"\x09" * (CHUNK - 1) + b"\x08")
    blobs[2].unlink()
    with open_lake(tmp_path / "lake") as lake:
        array = lake.arrays["a"]
        faults = array.verify()
        assert len(faults) == 2
        assert any("another checksum" in fault for fault in faults)
        assert any("its file is missing" in fault for fault in faults)
        good = next(n for n in range(3) if not any(f"array a, chunk {n}:" in fault for fault in faults))
        assert array[good * CHUNK : (good + 1) * CHUNK].tolist() == [9] * CHUNK
        with pytest.raises(CorruptError, match="array a, chunk"):
            array[:]


def test_blobs_are_synced_before_the_commit_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd))[1])
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        lake.arrays.create("a", 10, "i4")[:] = 1
    blob = next((tmp_path / "lake/blobs").rglob("*.blob"))
    wanted = [blob, *[folder for folder in blob.parents if folder.is_relative_to(tmp_path / "lake/blobs")]]
    assert {path.stat().st_ino for path in wanted} <= set(synced)


def test_sessions_see_snapshots(tmp_path: Path) -> None:
    lake = LocalLake(database(own(tmp_path / "lake")))
    with lake, lake.session() as other:
        with lake.transaction():
            lake.arrays.create("a", 3, "i4")
        assert "a" not in other.arrays
        other.refresh()
        assert other.arrays["a"][:].tolist() == [0, 0, 0]
        with lake.transaction():
            lake.arrays["a"][1] = 5
        assert other.arrays["a"][:].tolist() == [0, 0, 0]
        other.refresh()
        assert other.arrays["a"][:].tolist() == [0, 5, 0]


KEYS = hnp.basic_indices(shape=(13, 3), allow_newaxis=True, allow_ellipsis=True)


@given(key=KEYS | hnp.integer_array_indices((13, 3)) | hnp.arrays(bool, (13, 3)))
@settings(max_examples=200, deadline=None)
def test_the_plan_of_a_key_reads_what_numpy_reads(key: Any) -> None:
    array = np.arange(39).reshape(13, 3)
    start, stop, rest = plan(key, array.shape)
    assert 0 <= start <= stop <= 13
    np.testing.assert_array_equal(array[start:stop][rest], array[key])
