"""A lake in PostgreSQL: many clients, one history; what is refused, what is merged, what is on the disk."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clachan_lake import open_lake
from clachan_lake.database import blob_folder, database
from clachan_lake.errors import FormatError, LakeReadOnlyError, RefusedClassError, RemoteError
from clachan_lake.format import FORMAT, Piece
from transaction import TransactionManager
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import ConflictError, StorageTransactionError, UndoError

from .postgres import MISSING, PROGRAMS, Cluster, cluster
from .test_storage_plain import commit_root
from .test_storage_plain import hostile as extension
from .test_storage_resolving import ADDED, EMPTY, OTHER, hostile
from .test_storage_syncing import Recorder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PROGRAMS, reason=MISSING)]
psycopg2 = pytest.importorskip("psycopg2", reason="this machine cannot: no psycopg2")
postgresql = pytest.importorskip("clachan_lake.storage.postgresql", reason="this machine cannot: no RelStorage")


@contextmanager
def client(url: str, blobs: Path, **options: Any) -> Iterator[tuple[Any, TransactionManager]]:
    db = database(postgresql.connect(url, blobs, **{"read_only": False, "wait_seconds": 10, **options}))
    manager = TransactionManager()
    connection = db.open(manager)
    try:
        yield connection, manager
    finally:
        manager.abort()
        connection.close()
        db.close()


def test_it_is_made_on_first_use_and_found_again(url: str, tmp_path: Path) -> None:
    with open_lake(url, blobs=tmp_path / "blobs") as lake:
        with lake.transaction():
            lake.arrays.create("a", (2, 2), "<i4")[:] = [[1, 2], [3, 4]]
            lake.streams.create("s").append(b"x" * 100_000)
        assert lake.root()["format"] == FORMAT
    for read_only in (False, True):
        with open_lake(url, blobs=tmp_path / "blobs", read_only=read_only) as lake:
            assert lake.arrays["a"][:].tolist() == [[1, 2], [3, 4]]
            assert lake.streams["s"].size == 100_000
            if read_only:
                with pytest.raises(LakeReadOnlyError), lake.transaction():
                    pass


FIRST = """
import sys
from clachan_lake import open_lake
with open_lake(sys.argv[1], blobs=sys.argv[2]) as lake, lake.transaction():
    lake.arrays.create(sys.argv[3], (2,), "<i4")[:] = 1
"""


def test_processes_that_open_it_first_at_the_same_time(url: str, tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(4)]
    command = [sys.executable, "-c", FIRST, url, tmp_path / "blobs"]
    processes = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in names]
    for process in processes:
        _out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()
    with open_lake(url, blobs=tmp_path / "blobs") as lake:
        assert sorted(lake.arrays) == names


def test_blobs_are_in_the_shared_folder(url: str, tmp_path: Path) -> None:
    with client(url, tmp_path / "blobs") as (connection, manager):
        assert blob_folder(connection.db().storage) == tmp_path / "blobs"
        blob = connection.root()["arrays"]["b"] = Blob(b"data")
        manager.commit()
        assert Path(blob.committed()).is_relative_to(tmp_path / "blobs")
        with client(url, tmp_path / "blobs") as (other, _), other.root()["arrays"]["b"].open("r") as file:
            assert file.read() == b"data"


def test_names_that_two_clients_add_are_both_there(url: str, tmp_path: Path) -> None:
    with client(url, tmp_path / "b") as (one, first), client(url, tmp_path / "b") as (other, second):
        one.root()["arrays"]["x"] = Piece(b"x")
        other.root()["arrays"]["y"] = Piece(b"y")
        first.commit()
        second.commit()
        first.begin()
        assert sorted(one.root()["arrays"]) == sorted(other.root()["arrays"]) == ["x", "y"]
        one.root()["arrays"]["x"].data = b"1"
        other.root()["arrays"]["x"].data = b"2"
        first.commit()
        with pytest.raises(ConflictError):
            second.commit()


@pytest.mark.parametrize("place", ["new", "committed", "old"])
@pytest.mark.parametrize("what", ["class", "class, behind something else", "state", "value in the state", "reference"])
def test_a_hostile_record_that_conflicts_executes_nothing(url: str, tmp_path: Path, what: str, place: str) -> None:
    """The clients resolve, so a client must not load what another has stored."""
    canary = tmp_path / "canary"
    bad = hostile(canary)[what]
    storage = postgresql.connect(url, tmp_path / "blobs", read_only=False, wait_seconds=10)
    try:
        database(storage)
        oid = storage.new_oid()
        serials = [b"\0" * 8]
        for data in (bad if place == "old" else EMPTY, bad if place == "committed" else ADDED):
            instance = storage.new_instance()
            _store(instance, oid, serials[-1], data)
            serials.append(instance.lastTransaction())
            instance.release()
        instance = storage.new_instance()
        with pytest.raises(ConflictError):
            _store(instance, oid, serials[1], bad if place == "new" else OTHER)
        instance.tpc_abort(instance._tpc_phase.transaction)
        instance.release()
    finally:
        storage.close()
    assert not canary.exists()


def _store(storage: Any, oid: bytes, serial: bytes, data: bytes) -> None:
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.store(oid, serial, data, "", transaction)
    storage.tpc_vote(transaction)
    storage.tpc_finish(transaction)


def test_a_hostile_root_executes_nothing(url: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    storage = postgresql.connect(url, tmp_path / "blobs", read_only=False, wait_seconds=10)
    _store(storage, b"\0" * 8, b"\0" * 8, hostile(canary)["class"])
    storage.close()
    with pytest.raises(RefusedClassError, match="expected one that a lake contains"):
        open_lake(url, blobs=tmp_path / "blobs")
    assert not canary.exists()


def test_another_relstorage_resolves_as_it_always_did(url: str, tmp_path: Path) -> None:
    from relstorage.adapters.postgresql import PostgreSQLAdapter
    from relstorage.options import Options
    from relstorage.storage import RelStorage
    from relstorage.storage.tpc import vote

    options = Options()
    other = RelStorage(PostgreSQLAdapter(dsn=postgresql._dsn(url, "", 10), options=options), options=options)
    try:
        assert type(vote._CachedConflictResolver(other, {})) is postgresql._other
    finally:
        other.close()


def test_a_commit_syncs_its_blobs(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(url, tmp_path / "blobs") as (connection, manager):
        connection.root()["arrays"]["first"] = Blob(b"data")
        manager.commit()
        recorder = Recorder(tmp_path, monkeypatch)
        blob = connection.root()["arrays"]["b"] = Blob(b"data")
        manager.commit()
        synced = recorder.take()
        folder = Path(blob.committed()).parent.relative_to(tmp_path)
        assert len(synced) == 3
        # at the same time, so in any order
        (file,) = set(synced) - {str(folder), str(folder.parent)}
        assert file.startswith(f"{folder}/")
        assert file.endswith(".tmp-")
        # each session of a client, too, and what one has synced the others know
        session = connection.db().open(second := TransactionManager())
        session.root()["arrays"]["c"] = Blob(b"data")
        second.commit()
        assert len(recorder.take()) == 3
        session.close()


def test_a_blob_that_cannot_be_synced_is_not_committed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(url, tmp_path / "blobs") as (connection, manager):
        recorder = Recorder(tmp_path, monkeypatch)
        recorder.fail = "0x"
        connection.root()["arrays"]["b"] = Blob(b"data")
        with pytest.raises(OSError, match="Input/output error"):
            manager.commit()
        manager.abort()
        recorder.fail = ""
        assert "b" not in connection.root()["arrays"]
        assert list((tmp_path / "blobs").rglob("*.blob")) == []
        connection.root()["arrays"]["c"] = Blob(b"data")
        manager.commit()


def test_blobs_must_be_named_and_be_those_of_the_database(postgres: Cluster, url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="blobs: None, expected the folder of blobs that all its clients share"):
        open_lake(url)
    with pytest.raises(FileNotFoundError, match="blobs: not there, expected the lake's folder of blobs"):
        open_lake(url, blobs=tmp_path / "none", read_only=True)
    with pytest.raises(FileNotFoundError):
        open_lake(url, blobs=tmp_path / "no" / "parent")
    with open_lake(url, blobs=tmp_path / "blobs") as lake, lake.transaction():
        lake.streams.create("s").append(b"x" * 100_000)
    for read_only in (False, True):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FormatError, match=r"empty: blobs of lake None, expected those of [0-9a-f]{32}"):
            open_lake(url, blobs=tmp_path / "empty", read_only=read_only)
    assert not list((tmp_path / "empty").glob("0x*"))
    with pytest.raises(FormatError, match=r"blobs: blobs of lake [0-9a-f]{32}, expected a folder for a new lake"):
        open_lake(postgres.create(), blobs=tmp_path / "blobs")
    shutil.copytree(tmp_path / "blobs", tmp_path / "moved")
    with open_lake(url, blobs=tmp_path / "moved") as lake:
        assert lake.streams["s"].size == 100_000


@pytest.mark.parametrize("written", ["0" * 32, "0" * 5, ""])
def test_a_first_opening_that_was_killed_is_finished(url: str, tmp_path: Path, written: str) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/lake.id").write_text(written)
    for _ in range(2):
        with open_lake(url, blobs=tmp_path / "blobs") as lake:
            known = lake.root()["blobs"]
            assert known == (tmp_path / "blobs/lake.id").read_text()
            assert known.startswith(written)


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    for url, shown in [
        ("postgresql://me:secret@127.0.0.1:1/db", "lake postgresql://me@127.0.0.1:1/db: connection to server"),
        ("postgresql://me@127.0.0.1:1/db?password=secret", r"db\?password=\*\*\*: connection to server"),
        (f"postgresql:///db?host={tmp_path}", "connection to server on socket"),
    ]:
        with pytest.raises(RemoteError, match=shown) as found:
            open_lake(url, blobs=tmp_path / "blobs", wait_seconds=2)
        assert str(found.value).endswith("expected its server within 2 s")
        assert "secret" not in str(found.value)
    with pytest.raises(ValueError, match=r"expected postgresql://user@host/database$") as wrong:
        open_lake("postgresql://me:secret@[host/db", blobs=tmp_path / "blobs")
    assert "secret" not in str(wrong.value)


def test_a_database_that_is_not_there(postgres: Cluster, tmp_path: Path) -> None:
    url = f"postgresql://clachan@/none?host={postgres.folder}"
    with pytest.raises(RemoteError, match='database "none" does not exist'):
        open_lake(url, blobs=tmp_path / "blobs")
    empty = postgres.create()
    (tmp_path / "blobs").mkdir(exist_ok=True)
    with pytest.raises(FormatError, match="expected a database of lakes; open it for writing to make one"):
        open_lake(empty, blobs=tmp_path / "blobs", read_only=True)


def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    with cluster() as own, client(own.create(), tmp_path / "blobs") as (connection, manager):
        connection.root()["arrays"]["a"] = Piece(b"1")
        manager.commit()
        own.stop()
        connection.root()["arrays"]["b"] = Piece(b"2")
        with pytest.raises(psycopg2.OperationalError, match="connection to server"):
            manager.commit()
        own.start()
        manager.abort()
        assert list(connection.root()["arrays"]) == ["a"]
        connection.root()["arrays"]["b"] = Piece(b"2")
        manager.commit()
        assert list(connection.root()["arrays"]) == ["a", "b"]


def test_what_a_transaction_says_of_itself_is_not_loaded(url: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with open_lake(url, blobs=tmp_path / "blobs") as lake, lake.transaction("first"):
        lake.arrays.create("a", (2,), "<i4")
    storage = postgresql.connect(url, tmp_path / "blobs", read_only=False, wait_seconds=10)
    with pytest.raises(StorageTransactionError, match="expected none"):
        commit_root(storage.new_instance(), extension(canary))
    connection = psycopg2.connect(postgresql._dsn(url, "", 10))
    connection.cursor().execute("update transaction set extension = %s", (psycopg2.Binary(extension(canary)),))
    connection.commit()
    connection.close()
    assert len(storage.history(b"\0" * 8, size=9)) >= 2
    with pytest.raises(UndoError, match="undo: not offered"):
        storage.undoLog()
    assert not storage.supportsUndo()
    storage.close()
    with open_lake(url, blobs=tmp_path / "blobs") as lake:
        assert [revision.note for revision in lake.arrays["a"].history()] == ["first"]
    assert not canary.exists()
