"""What is acknowledged is on the disk: each blob, and each folder that names something new; no more."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.database import LakeStorage, database, own
from clachan_lake.storage import syncing
from clachan_lake.storage.syncing import Syncer, sync_files
from transaction import TransactionManager
from ZODB.blob import Blob
from ZODB.POSException import ConflictError

from .storing import pack_now

RECORDS = "lake/data.fs"


class Recorder:
    """The paths that were synced, in order; they are synced for real."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        self.synced: list[str] = []
        self.fail = ""
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, partial(self.record, getattr(os, name)))

    def record(self, sync: Any, descriptor: int) -> None:
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), self.top)
        if self.fail and self.fail in path:
            raise OSError(5, "Input/output error")
        self.synced.append(path)
        sync(descriptor)

    def take(self) -> list[str]:
        taken, self.synced = self.synced, []
        return taken

    def commit(self) -> set[str]:
        """Of a commit: what was synced together with the records, each once, before they count."""
        taken = self.take()
        assert taken[-1] == RECORDS
        together = set(taken[:-1])
        assert RECORDS in together
        assert len(taken) == len(together) + 1
        return together - {RECORDS}


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(tmp_path, monkeypatch)


@contextmanager
def session(storage: LakeStorage) -> Iterator[tuple[Any, TransactionManager]]:
    db = database(storage)
    manager = TransactionManager()
    connection = db.open(manager)
    try:
        yield connection, manager
    finally:
        manager.abort()
        connection.close()
        db.close()


def add(connection: Any, name: str, data: bytes = b"x") -> Blob:
    blob = connection.root()["arrays"][name] = Blob()
    connection.add(blob)
    with blob.open("w") as file:
        file.write(data)
    return blob


def test_a_commit_with_one_blob_syncs_three_names_and_the_records(tmp_path: Path, recorder: Recorder) -> None:
    with session(own(tmp_path / "lake")) as (connection, manager):
        add(connection, "first")
        manager.commit()
        recorder.take()
        for number in range(5):
            blob = add(connection, f"n{number}")
            manager.commit()
            file = os.path.relpath(blob.committed(), tmp_path)
            folder = str(Path(file).parent)
            assert recorder.commit() == {file, folder, str(Path(folder).parent)}


def test_the_first_commit_syncs_every_folder_up_to_the_blobs(tmp_path: Path, recorder: Recorder) -> None:
    with session(own(tmp_path / "lake")) as (connection, manager):
        recorder.take()
        blob = add(connection, "first")
        manager.commit()
        file = Path(blob.committed()).relative_to(tmp_path)
        parents = [str(folder) for folder in file.parents if folder.is_relative_to("lake/blobs")]
        assert len(parents) == 9
        assert recorder.commit() == {str(file), *parents}


def test_blobs_of_one_commit_share_their_folders(tmp_path: Path, recorder: Recorder) -> None:
    with session(own(tmp_path / "lake")) as (connection, manager):
        add(connection, "first")
        manager.commit()
        recorder.take()
        for number in range(10):
            add(connection, f"n{number}")
        manager.commit()
        synced = recorder.take()
        assert len(synced) == len(set(synced)) + 1 == 10 + 10 + 1 + 2


def test_every_new_folder_is_synced_where_the_numbers_carry_over(tmp_path: Path, recorder: Recorder) -> None:
    with session(own(tmp_path / "lake")) as (connection, manager):
        add(connection, "first")
        manager.commit()
        connection.db().storage.set_max_oid((0xFFFE).to_bytes(8))
        connection.db().new_oid = connection.db().storage.new_oid
        connection.new_oid = connection.db().storage.new_oid
        recorder.take()
        counts = []
        for number in range(3):
            blob = add(connection, f"n{number}")
            manager.commit()
            above = {str(folder.relative_to(tmp_path)) for folder in Path(blob.committed()).parents[:9]}
            synced = recorder.take()
            counts.append(len(above & set(synced)))
        # .../0x00/0xff is new, then .../0x01/0x00 in two new folders, then it is there
        assert counts == [3, 4, 2]


def test_an_opening_syncs_what_it_makes(tmp_path: Path, recorder: Recorder) -> None:
    own(tmp_path / "lake").close()
    made = recorder.take()
    assert made[0] == "."
    assert set(made) >= {"lake/format.json.tmp", "lake/blobs/.layout", "lake/blobs"}
    assert made[-1] == "lake"
    own(tmp_path / "lake").close()
    assert recorder.take() == []


def test_what_could_not_be_synced_is_not_known(tmp_path: Path, recorder: Recorder) -> None:
    top = tmp_path / "top"
    file = top / "a" / "b" / "file"
    file.parent.mkdir(parents=True)
    file.touch()
    syncer = Syncer(top)
    recorder.fail = "top/a"
    with pytest.raises(OSError, match="Input/output error"):
        syncer.sync([file])
    recorder.fail = ""
    recorder.take()
    syncer.sync([file])
    assert sorted(recorder.take()) == sorted(["top/a/b/file", "top/a/b", "top/a", "top"])
    syncer.sync([file])
    assert sorted(recorder.take()) == sorted(["top/a/b/file", "top/a/b", "top/a"])
    with syncer.forgetting():
        for _ in range(2):
            syncer.sync([file])
            assert sorted(recorder.take()) == sorted(["top/a/b/file", "top/a/b", "top/a", "top"])
    syncer.sync([file])
    assert sorted(recorder.take()) == sorted(["top/a/b/file", "top/a/b", "top/a", "top"])
    sync_files([str(file)], str(top))
    assert sorted(recorder.take()) == sorted(["top/a/b/file", "top/a/b", "top/a", "top"])


def test_the_known_folders_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "KNOWN", 10)
    syncer = Syncer(tmp_path)
    for number in range(40):
        file = tmp_path / f"{number}" / "x" / "file"
        file.parent.mkdir(parents=True)
        file.touch()
        syncer.sync([file])
        assert len(syncer._known) <= 10


def test_a_commit_fails_where_its_blob_cannot_be_synced(tmp_path: Path, recorder: Recorder) -> None:
    with session(own(tmp_path / "lake")) as (connection, manager):
        recorder.fail = ".blob"
        add(connection, "x")
        with pytest.raises(OSError, match="Input/output error"):
            manager.commit()
        assert connection.db().storage.broken
        recorder.fail = ""
    with session(own(tmp_path / "lake")) as (connection, _):
        assert "x" not in connection.root()["arrays"]


def test_folders_that_a_pack_removed_are_synced_again(tmp_path: Path, recorder: Recorder) -> None:
    with session(own(tmp_path / "lake")) as (connection, manager):
        blob = add(connection, "x")
        manager.commit()
        parent = Path(blob.committed()).parents[1]
        del connection.root()["arrays"]["x"]
        manager.commit()
        pack_now(connection.db())
        assert not parent.exists()
        recorder.take()
        blob = add(connection, "y")
        manager.commit()
        assert Path(blob.committed()).is_relative_to(parent)
        assert set(recorder.take()) >= {str(parent.relative_to(tmp_path)), str(parent.parent.relative_to(tmp_path))}


def test_a_pack_is_on_the_disk_before_it_counts(tmp_path: Path, recorder: Recorder) -> None:
    with session(own(tmp_path / "lake")) as (connection, manager):
        add(connection, "x")
        manager.commit()
        del connection.root()["arrays"]["x"]
        manager.commit()
        recorder.take()
        pack_now(connection.db())
        assert recorder.take()[-3:] == ["lake/data.fs.pack", "lake", "lake"]
        recorder.fail = ".pack"
        connection.root()["arrays"]["y"] = OTHER
        manager.commit()
        del connection.root()["arrays"]["y"]
        manager.commit()
        with pytest.raises(OSError, match="Input/output error"):
            pack_now(connection.db())
        recorder.fail = ""
        assert not (tmp_path / "lake/data.fs.pack").exists()
        add(connection, "z")
        manager.commit()
        pack_now(connection.db())
        assert list(connection.root()["arrays"]) == ["z"]


OTHER = "text"


def test_a_conflict_leaves_no_blob(tmp_path: Path) -> None:
    with session(own(tmp_path / "lake")) as (connection, manager):
        other_manager = TransactionManager()
        other = connection.db().open(other_manager)
        # the blob's id is the smaller one, so that it is stored before the name that conflicts
        add(connection, "x")
        add(other, "x")
        manager.commit()
        with pytest.raises(ConflictError):
            other_manager.commit()
        other_manager.abort()
        other.close()
        assert len(list((tmp_path / "lake/blobs").rglob("*.blob"))) == 1
