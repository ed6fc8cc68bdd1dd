"""What a transaction says of itself is never unpickled."""

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.database import LakeStorage, database, follow, join, own
from clachan_lake.opening import open_lake
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import StorageTransactionError, UndoError
from ZODB.utils import z64

from .making import Server
from .test_storage_resolving import Called


def hostile(canary: Path) -> bytes:
    return pickle.dumps(Called(os.mkdir, str(canary)), 3)


def commit_root(storage: Any, extension: bytes) -> None:
    """The root as it is, once more."""
    transaction = TransactionMetaData(extension=extension)
    # a client sends this one, and would load it first
    transaction.extension = extension
    data, serial = storage.loadBefore(z64, b"\x7f" * 8)[:2]
    storage.tpc_begin(transaction)
    try:
        storage.store(z64, serial, data, "", transaction)
        storage.tpc_vote(transaction)
        storage.tpc_finish(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise


def test_a_lake_takes_no_extension(tmp_path: Path) -> None:
    database(own(tmp_path / "lake")).close()
    storage = own(tmp_path / "lake")
    with pytest.raises(StorageTransactionError, match=r"transaction's extension: \d+ bytes, expected none"):
        commit_root(storage, hostile(tmp_path / "canary"))
    commit_root(storage, b"")
    storage.close()
    assert not (tmp_path / "canary").exists()


def test_a_server_takes_no_extension_and_loads_none(own_server: Server, tmp_path: Path) -> None:
    own_server.start()
    client = join(own_server.socket, own_server.folder / "blobs", 10)
    with pytest.raises(StorageTransactionError, match="expected none"):
        commit_root(client, hostile(tmp_path / "canary"))
    assert not client.supportsUndo()
    assert list(client._call("undoLog", 0, 20)) == []
    client.close()
    assert own_server.stop() == 0
    assert not (tmp_path / "canary").exists()


def test_the_history_of_a_file_of_somebody_else_executes_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with open_lake(tmp_path / "lake") as lake, lake.transaction("first"):
        lake.arrays.create("a", (2,), "<i4")
    storage = FileStorage(str(tmp_path / "lake/data.fs"), blob_dir=str(tmp_path / "lake/blobs"))
    commit_root(storage, hostile(canary))
    with pytest.raises(Exception, match=r".+"):
        storage.history(z64, 2)
    assert canary.exists(), "it is one"
    canary.rmdir()
    storage.close()
    for opening in (own, follow):
        opened = opening(tmp_path / "lake")
        assert len(opened.history(z64, 5)) >= 2
        with pytest.raises(UndoError):
            opened.undoLog()
        opened.close()
    with open_lake(tmp_path / "lake") as lake:
        assert [revision.note for revision in lake.arrays["a"].history()] == ["first"]
    with open_lake(tmp_path / "lake") as lake:
        db = lake._db
        assert isinstance(db.storage, LakeStorage)
        db.pack(time.time())
    assert not canary.exists()
