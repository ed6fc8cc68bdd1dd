"""What goes wrong with the disk below an array: full at each write, and chunk files that are damaged."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.arrays import pages
from clachan_lake.errors import CorruptError
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from ZODB.POSException import ConflictError

CHUNK = 4096
FULL = """
import errno, gc, os, sys
from pathlib import Path

import numpy as np
from clachan_lake import open_lake

folder, operation, stride = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
lake_folder, filler = folder / "lake", folder / "filler"
CHUNK = 4096
rng = np.random.default_rng(5)
new = rng.integers(1, 255, 24 * CHUNK).astype("u1")


def overwrite(lake):
    lake.arrays["a"][: 8 * CHUNK] = new[: 8 * CHUNK]


def convert(lake):
    lake.arrays["a"][: 8 * CHUNK] = new[: 8 * CHUNK].astype("i8")


def append(lake):
    lake.arrays["a"].append(new[: 3 * CHUNK + 5])


def append_much(lake):
    lake.arrays["a"].append(new)


def partial(lake):
    for number in range(0, 20, 3):
        lake.arrays["a"][number * CHUNK + 7] = 1


def savepoint(lake):
    lake.arrays["a"][: 4 * CHUNK] = new[: 4 * CHUNK]
    lake.savepoint()
    lake.arrays["a"][CHUNK + 3] = 77
    lake.savepoint().rollback()
    lake.arrays["a"].append(new[:100])


def resize(lake):
    lake.arrays["a"].resize(5 * CHUNK + 17)
    lake.arrays["a"].resize(9 * CHUNK + 17)


def create(lake):
    lake.arrays["a"][0] += 1
    lake.arrays.create("b", new.shape, "u1", chunk_bytes=CHUNK)[:] = new


def expected(before):
    "What the operation makes of the array."
    after = before.copy()
    if operation in ("overwrite", "convert"):
        after[: 8 * CHUNK] = new[: 8 * CHUNK]
    elif operation == "append":
        after = np.concatenate([after, new[: 3 * CHUNK + 5]])
    elif operation == "append_much":
        after = np.concatenate([after, new])
    elif operation == "partial":
        after[7 : 20 * CHUNK : 3 * CHUNK] = 1
    elif operation == "savepoint":
        after[: 4 * CHUNK] = new[: 4 * CHUNK]
        after[CHUNK + 3] = 77
        after = np.concatenate([after, new[:100]])
    elif operation == "resize":
        after = np.concatenate([after[: 5 * CHUNK + 17], np.zeros(4 * CHUNK, "u1")])
    elif operation == "create":
        after[0] += 1
    return after


def fill(free):
    "Leave so many pages."
    count = os.statvfs(folder).f_bavail - free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, count * CHUNK)


def check(lake, wanted, what):
    array = lake.arrays["a"]
    np.testing.assert_array_equal(array[:], wanted, what)
    assert array.verify() == [], what
    assert list(lake.arrays) == ["a"], what


with open_lake(lake_folder) as lake:
    with lake.transaction():
        lake.arrays.create("a", 20 * CHUNK, "u1", chunk_bytes=CHUNK)[:] = np.arange(20 * CHUNK) % 251
    with lake.transaction():
        lake.arrays["a"].append([1, 2, 3])
    before = lake.arrays["a"][:].copy()

failures = reopened = 0
lake = open_lake(lake_folder)
lake.arrays["a"][:]
for free in range(0, 1000, stride):
    what = f"{operation} with {free} free pages"
    fill(free)
    try:
        with lake.transaction():
            globals()[operation](lake)
    except OSError as error:
        assert error.errno == errno.ENOSPC and "No space left on device" in str(error), f"{what}: {error!r}"
    else:
        filler.unlink()
        break
    failures += 1
    filler.unlink()
    check(lake, before, what)
    gc.collect()
    left = [path.name for path in (lake_folder / "blobs/tmp").iterdir()]
    assert not left, f"{what}: left {left}"
    try:
        with lake.transaction():
            lake.arrays["a"][-1] += 1
    except OSError as error:
        assert "a write failed before, expected to be opened again" in str(error), f"{what}: {error!r}"
        lake.close()
        lake = open_lake(lake_folder)
        check(lake, before, what)
        reopened += 1
        with lake.transaction():
            lake.arrays["a"][-1] += 1
    before[-1] += 1
    check(lake, before, what)
else:
    raise AssertionError(f"{operation}: no success with 1000 pages")
np.testing.assert_array_equal(lake.arrays["a"][:], expected(before))
assert lake.arrays["a"].verify() == []
lake.close()
with open_lake(lake_folder, read_only=True) as lake:
    np.testing.assert_array_equal(lake.arrays["a"][:], expected(before))
    if operation == "create":
        np.testing.assert_array_equal(lake.arrays["b"][:], new)
print(failures, reopened)
"""

OPERATIONS = ["overwrite", "convert", "append", "append_much", "partial", "savepoint", "resize", "create"]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk_at_each_write_is_an_error_and_changes_nothing(tmp_path: Path, operation: str) -> None:
    """From no free page on, one more each time, until there are enough for the operation."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine cannot: a file system of its own size needs root and a namespace")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = 'mount -t tmpfs -o size=4m clachan-full "$1" && shift && exec "$@"'
    child = [sys.executable, "-W", "error", "-c", FULL, disk, operation, "1"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, "sh", disk, *child], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    failures, _reopened = map(int, done.stdout.split())
    # a resize writes less than a page
    assert failures >= (1 if operation == "resize" else 2)


# -- damaged chunk files


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Any]:
    """A function that makes an array of five chunks, each with a file of its own, gives the files to a damage, and
    opens the lake again."""
    opened: list[LocalLake] = []

    def make(damage: Any) -> LocalLake:
        with open_lake(tmp_path / "lake") as lake:
            with lake.transaction():
                lake.arrays.create("a", 5 * CHUNK, "u1", chunk_bytes=CHUNK)
            for number in range(5):
                with lake.transaction():
                    lake.arrays["a"][number * CHUNK : (number + 1) * CHUNK] = number + 1
            files = [lake.arrays["a"]._opened.table.entry(number)[0].committed() for number in range(5)]
        damage([Path(file) for file in files])
        opened.append(open_lake(tmp_path / "lake"))
        return opened[-1]

    yield make
    for lake in opened:
        lake.close()


def rewrite(file: Path, data: bytes) -> None:
    file.chmod(0o600)
    file.write_bytes(data)


DAMAGES = {
    "missing": (lambda files: files[2].unlink(), r"array a, chunk 2: its file is missing"),
    "empty": (lambda files: rewrite(files[2], b""), r"array a, chunk 2: its file has 0 bytes, expected 4096"),
    "cut": (
        lambda files: rewrite(files[2], bytes(CHUNK - 1)),
        r"array a, chunk 2: its file has 4095 bytes, expected 4096",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_chunk_is_named_and_the_rest_stays_readable(damaged: Any, kind: str) -> None:
    damage, message = DAMAGES[kind]
    lake = damaged(damage)
    array = lake.arrays["a"]
    for _ in range(2):
        for key in (slice(None), slice(2 * CHUNK, 2 * CHUNK + 1), slice(CHUNK, 3 * CHUNK)):
            with pytest.raises(CorruptError, match=message) as raised:
                array[key]
            assert isinstance(raised.value, OSError)
        for number in (0, 1, 3, 4):
            assert set(array[number * CHUNK : (number + 1) * CHUNK].tolist()) == {number + 1}
    (fault,) = array.verify()
    assert fault.startswith("array a, chunk 2: ")


def test_bytes_that_rotted_are_found_by_verifying(damaged: Any) -> None:
    array = damaged(lambda files: rewrite(files[2], b"\x03" * (CHUNK - 1) + b"\x07")).arrays["a"]
    (fault,) = array.verify()
    assert fault.startswith("array a, chunk 2: 4096 bytes with another checksum ")
    assert array[:].sum() == CHUNK * 15 + 4


@pytest.mark.parametrize("kind", DAMAGES)
def test_whoever_writes_a_damaged_chunk_anew_mends_it(damaged: Any, kind: str) -> None:
    lake = damaged(DAMAGES[kind][0])
    with lake.transaction():
        lake.arrays["a"][2 * CHUNK : 3 * CHUNK] = 9
    assert lake.arrays["a"].verify() == []
    assert lake.arrays["a"][:].reshape(5, CHUNK)[:, 0].tolist() == [1, 2, 9, 4, 5]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_store_into_a_damaged_chunk_changes_nothing(damaged: Any, kind: str) -> None:
    damage, message = DAMAGES[kind]
    lake = damaged(damage)

    def store() -> None:
        with lake.transaction():
            lake.arrays["a"][0] = 100
            lake.arrays["a"][2 * CHUNK + 1] = 100

    with pytest.raises(CorruptError, match=message):
        store()
    assert lake.arrays["a"][0] == 1
    with lake.transaction():
        lake.arrays["a"].append([7])
    assert lake.arrays["a"][5 * CHUNK] == 7


def test_a_chunk_that_goes_between_two_snapshots_is_named_until_it_is_there(tmp_path: Path) -> None:
    """A session that has mapped the former chunk never shows it for the new one."""
    with open_lake(tmp_path / "lake") as lake, lake.session() as reader:
        with lake.transaction():
            lake.arrays.create("a", 3 * CHUNK, "u1", chunk_bytes=CHUNK)[:] = 1
        reader.refresh()
        view = reader.arrays["a"][:]
        with lake.transaction():
            lake.arrays["a"][CHUNK : 2 * CHUNK] = 2
        file = Path(lake.arrays["a"]._opened.table.entry(1)[0].committed())
        aside = file.rename(file.with_suffix(".aside"))
        for _ in range(2):
            with pytest.raises(CorruptError, match="array a, chunk 1: its file is missing"):
                reader.refresh()
            with pytest.raises(CorruptError, match="array a, chunk 1: its file is missing"):
                reader.arrays["a"][CHUNK]
            assert reader.arrays["a"][0] == 1
            assert reader.arrays["a"][2 * CHUNK] == 1
        aside.rename(file)
        reader.refresh()
        assert view.reshape(3, CHUNK)[:, 0].tolist() == [1, 2, 1]
        assert reader.arrays["a"][CHUNK] == 2


def test_pieces_are_read_beside_a_damaged_chunk(damaged: Any, tmp_path: Path) -> None:
    """A chunk that is copied to be mapped, as those of format 1 may be, is not taken for zeros after another failed."""

    def put_piece(lake: LocalLake) -> None:
        with lake.transaction():
            opened = lake.arrays["a"]._opened
            opened.table.put(0, opened.writer.piece(np.full(CHUNK, 5, "u1")))

    lake = damaged(lambda files: files[1].unlink())
    put_piece(lake)
    lake.close()
    with open_lake(tmp_path / "lake") as lake:
        for _ in range(2):
            with pytest.raises(CorruptError, match="array a, chunk 1: its file is missing"):
                lake.arrays["a"][:]
            assert set(lake.arrays["a"][:CHUNK].tolist()) == {5}


# -- what a failure must not leave


@pytest.mark.parametrize("method", ["scan", "table"])
def test_what_was_mapped_before_is_zero_behind_a_chunk_that_became_shorter(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLACHAN_LAKE_PAGES", method)
    try:
        pages.method()
    except OSError as error:
        pytest.skip(f"this machine cannot: {error}")
    size = 4 * CHUNK
    with open_lake(tmp_path / "lake") as lake, lake.session() as other:
        with lake.transaction():
            lake.arrays.create("a", size, "u1", chunk_bytes=size)[:] = 9
        other.refresh()
        view = other.arrays["a"][:]
        for length in (5000, size):
            with lake.transaction():
                lake.arrays["a"].resize(length)
        other.refresh()
        for found in (view, other.arrays["a"][:], lake.arrays["a"][:]):
            assert found.tolist() == [9] * 5000 + [0] * (size - 5000)


def test_a_cut_that_is_taken_back_leaves_what_was_there(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction():
            lake.arrays.create("a", 100, "u1", chunk_bytes=CHUNK)[:] = 9
        lake.begin()
        lake.arrays["a"].resize(10)
        lake.abort()
        assert lake.arrays["a"][:].tolist() == [9] * 100


@pytest.mark.parametrize("shift", ["reverse", "right", "left", "add", "whole"])
def test_an_array_is_stored_into_itself_as_numpy_does_it(tmp_path: Path, shift: str) -> None:
    def move(array: Any) -> None:
        if shift == "reverse":
            array[:] = array[::-1]
        elif shift == "right":
            array[5:] = array[:-5]
        elif shift == "left":
            array[:-5] = array[5:]
        elif shift == "add":
            array[:] += 1
        else:
            array[:] = array[:]

    model = (np.arange(30_000) % 251).astype("u1")
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction():
            lake.arrays.create("a", model.shape, "u1", chunk_bytes=CHUNK)[:] = model
        for _ in range(2):
            with lake.transaction():
                move(lake.arrays["a"])
            move(model)
            np.testing.assert_array_equal(lake.arrays["a"][:], model)
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        np.testing.assert_array_equal(lake.arrays["a"][:], model)
        assert lake.arrays["a"].verify() == []


def test_a_value_that_is_none_stores_nothing_in_whole_chunks(tmp_path: Path) -> None:
    """Text whose last value is no number: what had been converted before it is not there either."""
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction():
            lake.arrays.create("a", 10_000, "i4", chunk_bytes=CHUNK)[:] = 7
        with lake.transaction():
            for text in (np.array(["1"] * 9_999 + ["x"]), ["1"] * 9_999 + ["x"], np.array(["1"] * 9_999 + ["x"], "O")):
                with pytest.raises(ValueError, match="invalid literal for int"):
                    lake.arrays["a"][:] = text
        assert lake.arrays["a"][:].tolist() == [7] * 10_000
        with lake.transaction():
            lake.arrays["a"][:] = np.array(["12"] * 10_000)
        assert lake.arrays["a"][:].tolist() == [12] * 10_000
        assert list((tmp_path / "lake/blobs/tmp").glob("draft-*")) == []


def test_a_savepoint_knows_what_the_transaction_had_done(tmp_path: Path) -> None:
    """Back at it, a cut is still a cut: it goes with nothing that another session committed."""
    with open_lake(tmp_path / "lake") as lake, lake.session() as other:
        with lake.transaction():
            lake.arrays.create("a", 10, "u1", chunk_bytes=CHUNK)[:] = 9
        lake.begin()
        lake.arrays["a"].resize(5)
        point = lake.savepoint()
        lake.arrays["a"].append([1])
        point.rollback()
        lake.arrays["a"].append([2, 2])
        with other.transaction():
            other.arrays["a"].append([7, 7, 7])
        with pytest.raises(ConflictError):
            lake.commit()
        assert lake.arrays["a"][:].tolist() == [9] * 10 + [7] * 3


# -- what a process leaves behind


def test_what_a_killed_transaction_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    open_lake(tmp_path / "lake").close()
    drafts = tmp_path / "lake/blobs/tmp"
    for name in ("draft-old", "draft-new"):
        (drafts / name).write_bytes(b"x")
    for name in ("savepointsold", "savepointsnew"):
        (drafts / name).mkdir()
        (drafts / name / "0x01-0x02.spb").write_bytes(b"x")
    for name in ("draft-old", "savepointsold"):
        os.utime(drafts / name, (1, 1))
    open_lake(tmp_path / "lake").close()
    assert sorted(path.name for path in drafts.iterdir()) == ["draft-new", "savepointsnew"]


@pytest.mark.parametrize("left", [None, b"", b"FS2"])
def test_a_lake_without_its_records_is_refused_and_keeps_its_chunks(tmp_path: Path, left: bytes | None) -> None:
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        lake.arrays.create("a", 10_000, "u1", chunk_bytes=CHUNK)[:] = 9
    records = tmp_path / "lake/data.fs"
    aside = records.rename(tmp_path / "aside")
    if left is not None:
        records.write_bytes(left)
    chunks = sorted((tmp_path / "lake/blobs").rglob("*.blob"))
    assert chunks
    with pytest.raises(CorruptError, match=r"data\.fs is empty or missing, expected its records; restore a backup"):
        open_lake(tmp_path / "lake")
    assert sorted((tmp_path / "lake/blobs").rglob("*.blob")) == chunks
    aside.rename(records)
    with open_lake(tmp_path / "lake") as lake:
        assert lake.arrays["a"][:].sum() == 90_000
