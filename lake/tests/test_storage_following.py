"""A folder is read beside the process that writes it: what was committed, nothing half, and nothing is touched."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clachan_lake.database import LakeStorage, follow, own
from clachan_lake.errors import FormatError
from clachan_lake.format import Piece
from clachan_lake.storage.following import FollowingStorage
from transaction import TransactionManager
from ZODB.blob import Blob
from ZODB.POSException import ReadOnlyError
from ZODB.utils import p64, u64

from .making import end, wait_for
from .storing import Session, pack_now


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Session]:
    made = Session(own(tmp_path / "lake"))
    yield made
    made.close()


@pytest.fixture
def reader(writer: Session, tmp_path: Path) -> Iterator[Session]:
    writer.put("a", b"1")
    made = Session(follow(tmp_path / "lake"))
    yield made
    made.close()


def test_a_reader_sees_what_is_committed_at_each_boundary(writer: Session, reader: Session) -> None:
    assert reader.pieces == {"a": b"1"}
    for number in range(5):
        before = reader.pieces
        writer.put("a", b"%d" % number)
        writer.put(f"n{number}", b"new")
        assert reader.pieces == before
        reader.manager.begin()
        assert reader.pieces == writer.pieces


def test_sessions_of_one_reader_move_on_each_at_its_own_boundary(writer: Session, reader: Session) -> None:
    manager = TransactionManager()
    other = reader.db.open(manager)
    piece = other.root()["arrays"]["a"]
    writer.put("a", b"2")
    reader.manager.begin()
    # not loaded before, so it is read from the file, as it was
    assert piece.data == b"1"
    assert reader.pieces == {"a": b"2"}
    manager.begin()
    assert other.root()["arrays"]["a"].data == b"2"
    manager.abort()
    other.close()


def test_a_reader_cannot_write(reader: Session) -> None:
    assert reader.db.storage.isReadOnly()
    with pytest.raises(ReadOnlyError):
        reader.put("b", b"2")
    reader.manager.abort()
    with pytest.raises(ReadOnlyError):
        reader.db.pack(time.time())


def test_a_reader_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    first = Session(own(tmp_path / "lake"))
    first.put("a", b"1")
    first.close()
    (tmp_path / "lake/data.fs.index").unlink()
    (tmp_path / "lake/incoming/half").write_bytes(b"x")

    def seen() -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in sorted((tmp_path / "lake").rglob("*")):
            status = path.stat()
            found[str(path)] = (status.st_ino, status.st_mtime_ns, status.st_size)
        return found

    before = seen()
    reader = Session(follow(tmp_path / "lake"))
    assert reader.pieces == {"a": b"1"}
    reader.manager.begin()
    reader.close()
    assert seen() == before


def test_a_transaction_that_is_being_written_is_not_seen(writer: Session, reader: Session, tmp_path: Path) -> None:
    storage = writer.db.storage
    known = reader.db.storage.lastTransaction()
    transaction = writer.connection.transaction_manager.begin()
    writer.connection.root()["arrays"]["b"] = Piece(b"half")
    writer.connection.tpc_begin(transaction)
    writer.connection.commit(transaction)
    writer.connection.tpc_vote(transaction)
    assert storage._file.seek(0, 2) > storage._pos
    reader.manager.begin()
    assert reader.pieces == {"a": b"1"}
    assert reader.db.storage.lastTransaction() == known
    late = FollowingStorage(tmp_path / "lake")
    assert late.lastTransaction() == known
    late.close()
    writer.connection.tpc_finish(transaction)
    reader.manager.begin()
    assert reader.pieces == {"a": b"1", "b": b"half"}


def test_an_aborted_transaction_is_not_read_from_a_buffer(writer: Session, reader: Session) -> None:
    for number in range(20):
        transaction = writer.manager.begin()
        writer.connection.root()["arrays"]["b"] = Piece(b"never" * number)
        writer.connection.tpc_begin(transaction)
        writer.connection.commit(transaction)
        writer.connection.tpc_vote(transaction)
        reader.manager.begin()
        assert reader.connection.root()["arrays"]["a"].data in {b"1", b"%d" % (number - 1)}
        reader.connection.cacheMinimize()
        writer.connection.tpc_abort(transaction)
        writer.manager.abort()
        writer.put("a", b"%d" % number)
        reader.manager.begin()
        assert reader.pieces == {"a": b"%d" % number}


def test_a_pack_of_the_writer_is_followed(writer: Session, reader: Session) -> None:
    for number in range(5):
        writer.put("a", b"x" * 1000 + b"%d" % number)
    reader.manager.begin()
    pack_now(writer.db)
    # the file that it has open is still whole
    assert reader.pieces == writer.pieces
    reader.connection.cacheMinimize()
    assert reader.pieces == writer.pieces
    writer.put("b", b"2")
    reader.manager.begin()
    assert reader.pieces == writer.pieces
    assert reader.db.storage.getSize() == writer.db.storage.getSize()
    writer.put("c", b"3")
    reader.manager.begin()
    assert reader.pieces == writer.pieces


def test_between_the_two_renames_of_a_pack_the_old_file_is_read(
    writer: Session, reader: Session, tmp_path: Path
) -> None:
    (tmp_path / "lake/data.fs").rename(tmp_path / "lake/data.fs.old")
    reader.manager.begin()
    assert reader.pieces == {"a": b"1"}
    (tmp_path / "lake/data.fs.old").rename(tmp_path / "lake/data.fs")


def test_blobs_are_read_by_their_files(writer: Session, reader: Session, tmp_path: Path) -> None:
    blob = writer.connection.root()["arrays"]["blob"] = Blob()
    writer.connection.add(blob)
    with blob.open("w") as file:
        file.write(b"data")
    writer.manager.commit()
    reader.manager.begin()
    found = reader.connection.root()["arrays"]["blob"]
    assert Path(found.committed()).is_relative_to(tmp_path / "lake/blobs")
    with found.open("r") as file:
        assert file.read() == b"data"


def test_there_must_be_a_lake(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lake: not there, expected its folder, which reading does not make"):
        follow(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="empty, expected a lake; open it for writing to make one"):
        follow(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_lake_without_a_root_is_none(tmp_path: Path) -> None:
    own(tmp_path / "lake").close()
    with pytest.raises(FormatError, match="nothing committed, expected a root"):
        follow(tmp_path / "lake")


WRITER = """
import sys
from pathlib import Path
from clachan_lake.database import database, own
from lake.tests.storing import pack_now
from clachan_lake.format import Piece
from transaction import TransactionManager
db = database(own(Path(sys.argv[1])))
manager = TransactionManager()
root = db.open(manager).root()
for number in range(int(sys.argv[2])):
    manager.begin()
    for name in ("a", "b", f"n{number % 7}"):
        root["arrays"][name] = Piece(b"%d" % number + b" " * (number * 37 % 5000))
    if number % 11 == 3:
        manager.abort()
        continue
    manager.commit()
    if number % 97 == 96:
        pack_now(db)
print("done", flush=True)
sys.stdin.read()
"""


def test_a_reader_beside_a_process_that_writes_aborts_and_packs(tmp_path: Path) -> None:
    """Every snapshot has `a` and `b` of one commit, and none is older than the one before."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "lake"), "600"]
    top = Path(__file__).parents[2]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=top, env=os.environ | {"PYTHONPATH": str(top)}
    )
    try:
        wait_for(lambda: (tmp_path / "lake/data.fs").exists(), "data file")
        reader = wait_for(lambda: _opened(tmp_path / "lake"), "root")
        last, seen = -1, set()
        while last < 599:
            reader.manager.begin()
            reader.connection.cacheMinimize()
            root = reader.connection.root()["arrays"]
            if "b" not in root:
                continue
            a, b = int(root["a"].data), int(root["b"].data)
            assert a == b >= last
            last = a
            seen.add(a)
        reader.close()
        assert len(seen) > 20
    finally:
        end(process)
        process.stdin.close()
        process.stdout.close()


def _opened(folder: Path) -> Session | None:
    try:
        return Session(follow(folder))
    except (FormatError, FileNotFoundError):
        return None


def test_many_readers_of_one_lake(writer: Session, tmp_path: Path) -> None:
    writer.put("a", b"1")
    readers = [Session(follow(tmp_path / "lake")) for _ in range(5)]
    files = len(os.listdir("/proc/self/fd"))
    for number in range(10):
        writer.put("a", b"%d" % number)
        for reader in readers:
            reader.manager.begin()
            assert reader.pieces == writer.pieces
    for _ in range(3):
        pack_now(writer.db)
        writer.put("a", b"again")
        for reader in readers:
            reader.manager.begin()
            assert reader.pieces == writer.pieces
    assert len(os.listdir("/proc/self/fd")) <= files + 3
    for reader in readers:
        reader.close()


def test_the_last_commit_is_known_by_its_own_id(writer: Session, reader: Session, tmp_path: Path) -> None:
    storage = writer.db.storage
    assert isinstance(storage, LakeStorage)
    assert reader.db.storage.lastTransaction() == storage.lastTransaction() != p64(0)
    assert u64(reader.db.storage.lastTransaction()) > 0
