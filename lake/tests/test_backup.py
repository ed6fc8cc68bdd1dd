"""A backup is the lake at one commit, and a restore is that again."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.errors import CorruptError, FormatError, LakeBusyError, PackedError
from clachan_lake.keeping.backup import Backup, backup, restore
from clachan_lake.keeping.copying import copy
from clachan_lake.keeping.verifying import verify
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from ZODB.FileStorage import FileIterator, FileStorage

from .killing import killed_at_each_step
from .making import Server


def opened(folder: Path, **how: Any) -> LocalLake:
    lake = open_lake(folder, **how)
    assert isinstance(lake, LocalLake)
    return lake


def fill(lake: LocalLake) -> None:
    """Arrays of one and many chunks and with a tail, a sparse one, streams of a piece and of a blob."""
    with lake.transaction():
        a = lake.arrays.create("a", (0, 2), "<i8", chunk_bytes=65536, attrs={"rate": 8})
        a.append(np.arange(100_000).reshape(-1, 2))
        lake.arrays.create("sparse", (1 << 20,), "u1")[12345] = 7
        lake.streams.create("s").append(b"x" * 100_000, "id")
    for number in range(4):
        with lake.transaction():
            lake.arrays["a"][number * 9000] = number
            lake.arrays["a"].append([[number, number]])
            lake.streams["s"].append(b"piece")


def content(lake: LocalLake) -> dict[str, Any]:
    found: dict[str, Any] = {name: (array.dtype, array[:].tobytes()) for name, array in lake.arrays.items()}
    return {**found, **{f"stream {name}": stream.read() for name, stream in lake.streams.items()}}


def blobs_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*.blob")}


def test_a_backup_is_the_lake_at_its_commit(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    expected, tid = content(lake), lake.tid
    with lake.session() as writer:
        with writer.transaction():
            writer.arrays["a"][5] = 99
            writer.streams["s"].append(b"later")
        made = backup(lake, tmp_path / "backup")
    assert made == Backup(tid, made.time, made.objects, made.bytes)
    assert made.time.timestamp() == pytest.approx(os.stat(tmp_path / "lake/data.fs").st_mtime, abs=60)
    sizes = [path.stat().st_size for path in (tmp_path / "backup").rglob("*.blob")]
    assert made.bytes == sum(sizes) + (tmp_path / "backup/data.fs").stat().st_size
    with opened(tmp_path / "backup", read_only=True) as copied:
        assert copied.tid == tid
        assert content(copied) == expected
        assert dict(copied.arrays["a"].attrs) == {"rate": 8}
        assert list(verify(copied)) == []
        with pytest.raises(PackedError, match="packed away, expected after"):
            copied.at("2001-01-01")
    records = [record.oid for one in FileIterator(str(tmp_path / "backup/data.fs")) for record in one]
    assert len(records) == len(set(records)) == made.objects
    assert sorted(path.name for path in (tmp_path / "backup").iterdir()) == [
        "blobs", "data.fs", "data.fs.lock", "format.json",
    ]  # fmt: skip


def test_a_restored_lake_goes_on(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    backup(lake, tmp_path / "backup")
    (tmp_path / "again").mkdir()
    made = restore(tmp_path / "backup", tmp_path / "again")
    assert made.tid == lake.tid
    with opened(tmp_path / "again") as again:
        assert content(again) == content(lake)
        assert again.tid == lake.tid
        with again.transaction():
            again.arrays["a"][5] = 99
            again.arrays["a"].append([[1, 2]])
            again.arrays.create("new", 10, "f4")[:] = 1
        assert list(verify(again)) == []
    with opened(tmp_path / "again") as again:
        assert again.arrays["a"][5].tolist() == [99, 99]
        assert again.arrays["a"][-1].tolist() == [1, 2]
    with pytest.raises(FormatError, match=r"again: a lake, expected a backup"):
        restore(tmp_path / "again", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_repeated_it_copies_what_is_new_and_removes_what_is_not_needed(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    target = tmp_path / "backup"
    first = backup(lake, target)
    before, data = blobs_of(target), (target / "data.fs").read_bytes()
    assert backup(lake, target) == first
    assert blobs_of(target) == before
    assert (target / "data.fs").read_bytes() == data
    with lake.transaction():
        lake.arrays["a"][9000:9010] = 5
        del lake.arrays["sparse"]
        lake.streams["s"].append(b"y" * 50_000)
    second = backup(lake, target)
    after = blobs_of(target)
    assert second.tid > first.tid
    assert {name: number for name, number in before.items() if name in after}.items() <= after.items()
    assert len(before.keys() - after.keys()) > 0
    assert len(after.keys() - before.keys()) == 2
    with opened(target, read_only=True) as copied:
        assert content(copied) == content(lake)
        assert list(verify(copied)) == []


def test_only_a_backup_is_replaced(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(FormatError, match=r"other: not empty and no backup, expected an empty folder or a backup"):
        backup(lake, tmp_path / "other")
    with opened(tmp_path / "precious") as precious, precious.transaction():
        precious.streams.create("s").append(b"precious")
    with pytest.raises(FormatError, match=r"precious: a lake, expected a backup"):
        backup(lake, tmp_path / "precious")
    with opened(tmp_path / "precious") as precious:
        assert precious.streams["s"].read() == b"precious"
    backup(lake, tmp_path / "backup")
    with opened(tmp_path / "backup") as used:
        with pytest.raises(LakeBusyError, match=r"backup: in use by another process, expected to be in none"):
            backup(lake, tmp_path / "backup")
        with used.transaction():
            used.streams["s"].append(b"mine")
    for attempt in (
        lambda: backup(lake, tmp_path / "backup"),
        lambda: restore(tmp_path / "backup", tmp_path / "restored"),
    ):
        with pytest.raises(FormatError, match=r"backup: written to at 20\d\d.*, expected to be as it was made"):
            attempt()
    with opened(tmp_path / "backup") as used:
        assert used.streams["s"].read().endswith(b"mine")


def test_one_that_is_read_is_not_replaced(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    backup(lake, tmp_path / "backup")
    with (
        opened(tmp_path / "backup", read_only=True),
        pytest.raises(LakeBusyError, match=r"backup: in use by another process"),
    ):
        backup(lake, tmp_path / "backup")
    backup(lake, tmp_path / "backup")


def test_a_restore_goes_nowhere_but_into_an_empty_folder(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    backup(lake, tmp_path / "backup")
    with pytest.raises(FormatError, match=r"lake: not empty, expected a new or empty one"):
        restore(tmp_path / "backup", tmp_path / "lake")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FormatError, match=r"file: not empty, expected a new or empty one"):
        restore(tmp_path / "backup", tmp_path / "file")
    (tmp_path / "none").mkdir()
    with pytest.raises(FormatError, match=r"none: empty, expected a backup"):
        restore(tmp_path / "none", tmp_path / "restored")
    with pytest.raises(FileNotFoundError):
        restore(tmp_path / "nowhere", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert list(verify(lake)) == []


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize(("change", "message"), [(spoil, "checksum [0-9a-f]+, expected"), (Path.unlink, "missing")])
def test_what_is_corrupt_is_named_and_the_former_backup_stays(
    lake: LocalLake, tmp_path: Path, change: Any, message: str
) -> None:
    fill(lake)
    first = backup(lake, tmp_path / "backup")
    before = {path: path.read_bytes() for path in (tmp_path / "backup").rglob("*") if path.is_file()}
    with lake.transaction():
        lake.arrays["a"][9000:9010] = 5
    newest = max((tmp_path / "lake/blobs").rglob("*.blob"), key=lambda path: path.name)
    change(newest)
    with pytest.raises(CorruptError, match=rf"array a, chunk 2: .*{message}"):
        backup(lake, tmp_path / "backup")
    after = {path: path.read_bytes() for path in (tmp_path / "backup").rglob("*") if path.is_file()}
    assert after.items() >= before.items()
    assert restore(tmp_path / "backup", tmp_path / "restored") == first
    change(next((tmp_path / "backup").rglob("*.blob")))
    with pytest.raises(CorruptError, match=message):
        restore(tmp_path / "backup", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "lake", "restored"]


def test_a_hostile_backup_executes_nothing(lake: LocalLake, tmp_path: Path) -> None:
    from .test_opening import Hostile, hostile_records

    canary = tmp_path / "canary"
    fill(lake)
    backup(lake, tmp_path / "backup")
    (tmp_path / "backup/data.fs.index").write_bytes(pickle.dumps(Hostile(canary), 3))
    restore(tmp_path / "backup", tmp_path / "restored")
    for record in hostile_records(canary):
        shutil.rmtree(tmp_path / "hostile", ignore_errors=True)
        shutil.copytree(tmp_path / "restored", tmp_path / "hostile")
        shutil.copy(tmp_path / "backup/format.json", tmp_path / "hostile")
        _put_root(tmp_path / "hostile/data.fs", record)
        with pytest.raises(CorruptError, match="expected one"):
            restore(tmp_path / "hostile", tmp_path / "never")
    assert not canary.exists()
    assert not (tmp_path / "never").exists()


def _put_root(path: Path, record: bytes) -> None:
    """Another root, in the backup's own last transaction."""
    from clachan_lake.keeping.datafile import MARK, last_transaction
    from ZODB.Connection import TransactionMetaData
    from ZODB.utils import p64, u64, z64

    tid = p64(u64(last_transaction(path)[0]) + 1)
    storage = FileStorage(str(path))
    transaction = TransactionMetaData(description=MARK.decode())
    storage.tpc_begin(transaction, tid)
    storage.store(z64, storage.load(z64)[1], record, "", transaction)
    storage.tpc_vote(transaction)
    storage.tpc_finish(transaction)
    storage.close()


def test_through_the_socket_while_others_write(own_server: Server, tmp_path: Path) -> None:
    own_server.start()
    how = {"blobs": own_server.folder / "blobs"}
    stop = threading.Event()

    def write() -> None:
        with opened(own_server.socket, **how) as lake:
            number = 0
            while not stop.is_set():
                with lake.transaction():
                    lake.arrays["n"].append([number])
                    lake.arrays["n"][0] = number
                    lake.streams["log"].append(number.to_bytes(8, "little"))
                number += 1

    with opened(own_server.socket, **how) as lake:
        fill(lake)
        with lake.transaction():
            lake.arrays.create("n", (1,), "<i8")
            lake.streams.create("log")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(5):
                lake.refresh()
                made = backup(lake, tmp_path / "backup")
                shutil.rmtree(tmp_path / "restored", ignore_errors=True)
                assert restore(tmp_path / "backup", tmp_path / "restored").tid == made.tid == lake.tid
                with opened(tmp_path / "restored") as restored:
                    assert content(restored) == content(lake)
                    numbers = restored.arrays["n"][1:]
                    assert numbers.tolist() == list(range(len(numbers)))
                    assert restored.arrays["n"][0] == max(0, len(numbers) - 1)
                    assert restored.streams["log"].read() == numbers.tobytes()
        finally:
            stop.set()
            writer.join()


def test_a_disk_that_is_full_leaves_the_former_backup(lake: LocalLake, tmp_path: Path) -> None:
    fill(lake)
    first = backup(lake, tmp_path / "backup")
    with lake.transaction():
        lake.arrays["a"][:] = 3
    script = """
import resource, signal, sys
from pathlib import Path
from clachan_lake.keeping.backup import backup
from clachan_lake.opening import open_lake
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
backup(open_lake(sys.argv[1], read_only=True), Path(sys.argv[2]))
"""
    for limit in (100, 4000, 60_000):
        command = [sys.executable, "-c", script, str(tmp_path / "lake"), str(tmp_path / "backup"), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "OSError: [Errno 27] File too large" in done.stderr
        assert not list((tmp_path / "backup").glob("data.fs.new"))
        shutil.rmtree(tmp_path / "restored", ignore_errors=True)
        assert restore(tmp_path / "backup", tmp_path / "restored") == first
    assert backup(lake, tmp_path / "backup").tid == lake.tid


def test_holes_stay_holes(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        os.pwrite(file.fileno(), b"x", 40 << 20)
        file.truncate(80 << 20)
    assert copy(tmp_path / "sparse", tmp_path / "copy") == 80 << 20
    with (tmp_path / "copy").open("rb") as file:
        assert os.pread(file.fileno(), 3, (40 << 20) - 1) == b"\0x\0"
    assert (tmp_path / "copy").stat().st_size == 80 << 20
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20
    with pytest.raises(FileExistsError):
        copy(tmp_path / "sparse", tmp_path / "copy")


def test_the_marker_is_the_formats_own(lake: LocalLake, tmp_path: Path) -> None:
    backup(lake, tmp_path / "backup")
    marker = json.loads((tmp_path / "backup/format.json").read_bytes())
    assert marker == {**json.loads((tmp_path / "lake/format.json").read_bytes()), "backup": True}
    (tmp_path / "backup/format.json").write_text('{"clachan_lake": 99, "backup": true}')
    with pytest.raises(FormatError, match=re.escape("format: 99, expected 1 to")):
        restore(tmp_path / "backup", tmp_path / "restored")


BACKER = """
from pathlib import Path
from clachan_lake.keeping.backup import backup
from clachan_lake.opening import open_lake

with open_lake(sys.argv[2], read_only=True) as lake:
    arm(int(sys.argv[1]))
    backup(lake, Path(sys.argv[3]))
    arm(-1)
"""


@pytest.mark.slow
def test_killed_at_each_step_it_is_the_former_backup_or_the_new_one(tmp_path: Path) -> None:
    source, target, restored = tmp_path / "lake", tmp_path / "backup", tmp_path / "restored"
    with opened(source) as lake:
        fill(lake)
        made = backup(lake, target)
        states = {made.tid: content(lake)}
    killed, found = 0, [made.tid]
    for number in killed_at_each_step(BACKER, source, target):
        killed += 1
        shutil.rmtree(restored, ignore_errors=True)
        found.append(restore(target, restored).tid)
        with opened(restored, read_only=True) as again:
            assert content(again) == states[found[-1]], number
        # something to copy and something to remove for the next one
        with opened(source) as lake, lake.transaction():
            lake.arrays["a"][number % 2 * 9000] = number
        with opened(source, read_only=True) as lake:
            states[lake.tid] = content(lake)
    assert killed > 20
    assert found == sorted(found)
    assert len(set(found)) > 2
    with opened(source, read_only=True) as lake:
        assert backup(lake, target).tid == lake.tid
        assert {path.name for path in target.iterdir()} == {"blobs", "data.fs", "data.fs.lock", "format.json"}
        needed = {record.oid for one in FileIterator(str(target / "data.fs")) for record in one}
        assert {int(Path(name).parent.name, 16) for name in blobs_of(target)} <= {oid[-1] for oid in needed}
