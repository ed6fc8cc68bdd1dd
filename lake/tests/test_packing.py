"""A pack takes history away and nothing else: no open snapshot, no commit, whatever happens meanwhile."""

import gc
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.errors import CorruptError, LakeBusyError, LakeReadOnlyError, PackedError
from clachan_lake.keeping.holes import Ranges
from clachan_lake.keeping.leases import oldest
from clachan_lake.keeping.packing import disk_bytes, pack
from clachan_lake.keeping.verifying import verify
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from ZODB.serialize import referencesf
from ZODB.utils import p64

from .killing import killed_at_each_step
from .making import Server, wait_for

CHUNK = 65536


def opened(target: Path, **how: Any) -> LocalLake:
    lake = open_lake(target, **how)
    assert isinstance(lake, LocalLake)
    return lake


def fill(lake: LocalLake, chunks: int = 16) -> None:
    with lake.transaction("fill"):
        a = lake.arrays.create("a", (chunks, CHUNK // 8), "<i8", chunk_bytes=CHUNK)
        a[:] = np.arange(chunks)[:, None]
        lake.streams.create("s").append(b"x" * 100_000, "id")


def write(lake: LocalLake, row: int, value: int) -> None:
    with lake.transaction(f"row {row} is {value}"):
        lake.arrays["a"][row] = value


def rows(lake: LocalLake) -> list[int]:
    a = lake.arrays["a"][:]
    assert (a == a[:, :1]).all()
    return a[:, 0].tolist()  # type: ignore[no-any-return]


def blobs_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.blob")}


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*.blob"))


def test_history_within_the_time_stays(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    write(lake, 3, 33)
    middle = datetime.now(UTC)
    time.sleep(0.3)
    write(lake, 3, 333)
    before = blobs_of(tmp_path / "lake")
    packed = pack(lake, 3600)
    assert packed.until < middle - timedelta(minutes=59)
    assert blobs_of(tmp_path / "lake") == before
    assert [one.note for one in lake.arrays["a"].history()] == ["row 3 is 333", "row 3 is 33", "fill"]  # type: ignore[attr-defined]
    age = (datetime.now(UTC) - middle).total_seconds()
    packed = pack(lake, age)
    assert abs(packed.until - middle) < timedelta(seconds=0.2)
    with lake.at(middle + timedelta(seconds=0.2)) as past:
        assert rows(past)[3] == 33
    with pytest.raises(PackedError, match=r"snapshot 20.*: packed away, expected after 20"):
        lake.at(middle - timedelta(seconds=1))
    assert rows(lake)[3] == 333
    assert len(before - blobs_of(tmp_path / "lake")) == 0


def test_without_a_time_only_the_last_state_stays(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    for number in range(20):
        write(lake, number % 4, 100 + number)
    expected, full = rows(lake), disk_bytes(lake._db.storage)
    packed = pack(lake, 0)
    assert packed.before_bytes >= full
    assert packed.after_bytes < 1.1 * (16 * CHUNK + 100_000)
    assert rows(lake) == expected
    assert list(verify(lake)) == []
    assert used(tmp_path / "lake") <= 16 * CHUNK + 100_000 + 4096
    with lake.session() as other:
        assert rows(other) == expected
    write(lake, 0, 7)
    again = pack(lake, 0)
    assert again.until > packed.until
    assert list(verify(lake)) == []
    assert not [path.name for path in (tmp_path / "lake").iterdir() if path.suffix in {".old", ".pack"}]


@pytest.mark.parametrize("kind", ["session", "past", "beside"])
def test_what_an_open_session_reads_stays(lake: LocalLake, tmp_path: Path, kind: str) -> None:
    fill(lake)
    write(lake, 3, 33)
    expected = rows(lake)
    reader = {
        "session": lake.session,
        "past": lambda: lake.at(datetime.now(UTC)),
        "beside": lambda: opened(tmp_path / "lake", read_only=True),
    }[kind]()
    try:
        tid = reader.tid
        for number in range(16):
            write(lake, number, 1000 + number)
        lake.refresh()
        packed = pack(lake, 0)
        assert packed.until <= datetime.now(UTC)
        assert oldest(tmp_path / "lake/blobs") == tid
        assert rows(reader) == expected
        assert list(verify(reader)) == []
        pack(lake, 0)
        assert rows(reader) == expected
    finally:
        reader.close()
    before = used(tmp_path / "lake")
    pack(lake, 0)
    assert used(tmp_path / "lake") < before
    assert rows(lake) == list(range(1000, 1016))


def test_views_of_a_closed_lake_keep_their_bytes(lake: LocalLake, tmp_path: Path) -> None:
    """A view is of mapped files, of which a pack would punch what is not used any more."""
    fill(lake, 64)
    views = {}
    for kind in ("session", "beside"):
        reader = lake.session() if kind == "session" else opened(tmp_path / "lake", read_only=True)
        tid = reader.tid
        views[kind] = reader.arrays["a"][:]
        reader.close()
        del reader
    for row in range(63):
        write(lake, row, 500 + row)
    pack(lake, 0)
    full = used(tmp_path / "lake")
    for view in views.values():
        assert (view == np.arange(64)[:, None]).all()
    assert oldest(tmp_path / "lake/blobs") == tid
    del view
    views.clear()
    gc.collect()
    pack(lake, 0)
    assert used(tmp_path / "lake") < full
    assert rows(lake) == [*range(500, 563), 63]


def test_an_extent_of_which_one_chunk_is_used_takes_the_place_of_one(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake, 64)
    first = max((tmp_path / "lake").rglob("*.blob"), key=lambda path: path.stat().st_size)
    assert first.stat().st_size == 64 * CHUNK
    for row in range(63):
        write(lake, row, 500 + row)
    pack(lake, 0)
    assert first.stat().st_size == 64 * CHUNK
    assert first.stat().st_blocks * 512 == CHUNK
    assert first.stat().st_mode & 0o222 == 0
    assert rows(lake) == [*range(500, 563), 63]
    assert list(verify(lake)) == []
    assert used(tmp_path / "lake") <= 1.02 * (64 * CHUNK + 100_000)


def test_small_appends_take_little_after_a_pack(lake: LocalLake, tmp_path: Path) -> None:
    with lake.transaction():
        lake.arrays.create("a", (0, 1024), "<i8")
    for number in range(300):
        with lake.transaction():
            lake.arrays["a"].append(np.full((1, 1024), number))
    pack(lake, 0)
    data = 300 * 8192
    assert disk_bytes(lake._db.storage) <= 1.1 * data
    assert list(verify(lake)) == []
    assert rows(lake) == list(range(300))


def test_writers_go_on(lake: LocalLake) -> None:
    fill(lake)
    with lake.transaction():
        lake.arrays.create("n", (0,), "<i8")
    stop = threading.Event()
    counts = [0, 0]

    def work(at: int) -> None:
        with lake.session() as mine:
            while not stop.is_set():
                write(mine, at, counts[at])
                counts[at] += 1

    writers = [threading.Thread(target=work, args=(at,)) for at in range(2)]
    for writer in writers:
        writer.start()
    try:
        with lake.session() as packer:
            for _ in range(15):
                pack(packer, 0)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    lake.refresh()
    assert min(counts) > 0
    assert rows(lake)[:2] == [counts[0] - 1, counts[1] - 1]
    pack(lake, 0)
    assert list(verify(lake)) == []


def test_through_the_socket(own_server: Server) -> None:
    own_server.start()
    how = {"blobs": own_server.folder / "blobs"}
    with opened(own_server.socket, **how) as lake, opened(own_server.socket, **how) as other:
        fill(lake)
        other.refresh()
        expected = rows(other)
        for row in range(16):
            write(lake, row, 77)
        full = used(own_server.folder)
        pack(lake, 0)
        assert rows(other) == expected
        assert used(own_server.folder) == full
        other.refresh()
        write(lake, 0, 78)
        lake.refresh()
        other.refresh()
        now = lake.tid
        wait_for(lambda: (oldest(how["blobs"]) or now) >= now, "refresh of the server's own sessions")
        packed = pack(lake, 0)
        assert rows(other) == [78, *[77] * 15]
        assert packed.after_bytes < packed.before_bytes
        assert list(verify(other)) == []
        with pytest.raises(PackedError):
            other.at(packed.until - timedelta(seconds=1))


def test_a_client_alone_cannot_pack_an_open_snapshot_away(lake: LocalLake) -> None:
    """The storage looks at the leases itself: whoever asks, and whatever time is asked for."""
    fill(lake)
    with lake.session() as reader:
        expected = rows(reader)
        for row in range(16):
            write(lake, row, 77)
        for _ in range(2):
            lake._db.storage.pack(time.time() + 60, referencesf)
            assert rows(reader) == expected
            assert list(verify(reader)) == []
            with lake.transaction():
                lake.root()["packed"] = lake.tid


def test_who_may_not_pack(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    for seconds in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"time to keep: {seconds} s, expected at least 0"):
            pack(lake, seconds)
    with opened(tmp_path / "lake", read_only=True) as reader, pytest.raises(LakeReadOnlyError):
        pack(reader, 0)
    entered, leave = threading.Event(), threading.Event()

    def slowly(data: bytes, oids: Any = None) -> Any:
        entered.set()
        assert leave.wait(30)
        return referencesf(data, oids)

    with lake.transaction():
        lake.root()["packed"] = lake.tid
    first = threading.Thread(target=lambda: lake._db.storage.pack(time.time(), slowly))
    first.start()
    try:
        assert entered.wait(30)
        with pytest.raises(LakeBusyError, match="pack: another one runs, expected to be the only one"):
            pack(lake, 0)
    finally:
        leave.set()
        first.join()
    pack(lake, 0)


def test_a_record_that_is_missing_is_named_and_nothing_is_packed(lake: LocalLake) -> None:
    from ZODB.Connection import TransactionMetaData

    fill(lake)
    write(lake, 0, 5)
    storage = lake._db.storage
    oid = lake.arrays["a"]._opened.record.state._p_oid  # type: ignore[attr-defined]
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.deleteObject(oid, storage.load(oid)[1], transaction)
    storage.tpc_vote(transaction)
    storage.tpc_finish(transaction)
    before = storage.getSize()
    with pytest.raises(CorruptError, match=rf"record {oid.hex()}: missing, expected in the database; nothing was pack"):
        pack(lake, 0)
    assert storage.getSize() >= before


def test_what_a_killed_commit_left_is_removed(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    helper = lake._db.storage.fshelper
    serial = lake.tid
    orphans = [Path(helper.getBlobFilename(p64(5000 + number), serial)) for number in range(3)]
    later = Path(helper.getBlobFilename(p64(6000), p64((1 << 63) - 1)))
    for path in (*orphans, later):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    pack(lake, 0)
    assert not any(path.parent.exists() for path in orphans)
    assert later.exists()
    assert list(verify(lake)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: mounting a small disk needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.root
def test_a_disk_that_is_full_stops_the_pack_and_nothing_else(small_disk: Path) -> None:
    with opened(small_disk / "lake") as lake:
        with lake.transaction():
            lake.streams.create("s")
        for number in range(80):
            with lake.transaction():
                lake.streams["s"].append(bytes([number]) * 30_000)
        with lake.transaction():
            lake.streams["s"].append(b"more")
        with pytest.raises(OSError, match="No space left on device"):
            pack(lake, 0)
        assert not list((small_disk / "lake").glob("data.fs.pack"))
        with lake.transaction():
            lake.streams["s"].append(b"and more")
        expected = b"".join(bytes([number]) * 30_000 for number in range(80)) + b"moreand more"
        assert lake.streams["s"].read() == expected
        subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
        pack(lake, 0)
        assert lake.streams["s"].read() == expected
        assert list(verify(lake)) == []


def test_ranges() -> None:
    ranges = Ranges()
    assert list(ranges.gaps(8192)) == [(0, 8192)]
    for start, stop in [(5000, 6000), (20_000, 30_000), (6000, 7000), (25_000, 40_000), (0, 0)]:
        ranges.add(start, stop)
    assert ranges._bounds == [5000, 7000, 20_000, 40_000]
    assert list(ranges.gaps(50_000)) == [(0, 4096), (8192, 16_384), (40_960, 53_248)]
    ranges.add(0, 100_000)
    assert ranges._bounds == [0, 100_000]
    assert list(ranges.gaps(50_000)) == []


def test_ranges_against_a_set() -> None:
    chance = np.random.default_rng(3)
    for _ in range(200):
        ranges, expected = Ranges(), np.zeros(41, bool)
        for _ in range(chance.integers(1, 8)):
            start, stop = sorted(int(n) for n in chance.integers(0, 41, 2))
            ranges.add(start, stop)
            expected[start:stop] = True
        found = np.zeros(41, bool)
        assert ranges._bounds == sorted(set(ranges._bounds))
        for start, stop in zip(ranges._bounds[::2], ranges._bounds[1::2], strict=True):
            found[start:stop] = True
        assert (found == expected).all()


PACKER = """
from clachan_lake.keeping.packing import pack
from clachan_lake.opening import open_lake

with open_lake(sys.argv[2]) as lake:
    arm(int(sys.argv[1]))
    pack(lake, 0)
    arm(-1)
"""


@pytest.mark.slow
def test_killed_at_each_step_of_the_pack(tmp_path: Path) -> None:
    with opened(tmp_path / "lake") as lake:
        fill(lake, 8)
        for row in range(7):
            write(lake, row, 50 + row)
    expected = [*range(50, 57), 7]
    killed = 0
    for number in killed_at_each_step(PACKER, tmp_path / "lake"):
        killed += 1
        with opened(tmp_path / "lake", read_only=True) as reader:
            assert rows(reader) == expected
        with opened(tmp_path / "lake") as lake:
            assert rows(lake) == expected, number
            assert list(verify(lake)) == []
            # something to pack for the next one
            expected[number % 8] = number
            write(lake, number % 8, number)
    assert killed > 15
    with opened(tmp_path / "lake") as lake:
        assert rows(lake) == expected
        pack(lake, 0)
        assert list(verify(lake)) == []
        assert len(blobs_of(tmp_path / "lake")) <= 9
    assert used(tmp_path / "lake") <= 8 * CHUNK + 100_000 + 4096
    left = {path.name for path in (tmp_path / "lake").iterdir()} | {
        path.name for path in (tmp_path / "lake/blobs").iterdir() if not path.name.startswith("0x")
    }
    assert not left & {"data.fs.old", "data.fs.pack", ".removed"}


def test_history_begins_with_what_a_pack_has_left(tmp_path: Path) -> None:
    with opened(tmp_path / "lake") as lake:
        with lake.transaction():
            lake.arrays.create("a", (0,), "u1", chunk_bytes=CHUNK)
        with lake.transaction():
            lake.arrays["a"].append(np.ones(4 * CHUNK, "u1"))
        assert [one.shape for one in lake.arrays["a"].history()] == [(4 * CHUNK,), (0,)]
        assert next(change for _id, change in lake.changes_of(lake.root()["arrays"]["a"], 9)) == "fold"
        time.sleep(0.01)
        pack(lake, 0)
        (left,) = lake.arrays["a"].history()
        assert left.shape == (4 * CHUNK,)
        assert lake.arrays["a"].at(left.id)[:].sum() == 4 * CHUNK
