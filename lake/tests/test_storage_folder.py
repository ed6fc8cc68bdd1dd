"""A lake's folder: whose it is, its format's number, and what a killed process left in it."""

import binascii
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.database import LakeStorage, blob_folder, database, follow, join, own
from clachan_lake.errors import FormatError, LakeBusyError
from clachan_lake.format import DOCUMENTS, FORMAT
from transaction import TransactionManager
from ZODB.blob import Blob
from ZODB.MappingStorage import MappingStorage

from .making import Server
from .storing import pack_now


def test_a_folder_is_owned_by_one(tmp_path: Path) -> None:
    expected = "open in another process, expected to be alone; use that process's socket or URL, or read_only=True"
    storage = own(tmp_path / "lake")
    with pytest.raises(LakeBusyError, match=re.escape(expected)):
        own(tmp_path / "lake")
    database(storage).close()
    own(tmp_path / "lake").close()


def test_an_owner_beside_readers(tmp_path: Path) -> None:
    database(own(tmp_path / "lake")).close()
    reader = follow(tmp_path / "lake")
    own(tmp_path / "lake").close()
    reader.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"clachan_lake": 99}', "format: 99, expected 1 to 4; use the version that made it"),
        ('{"clachan_lake": 0}', "format: 0, expected 1 to 4"),
        ('{"clachan_lake": true}', "format: True, expected 1 to 4"),
        ('{"clachan_lake": "2"}', "format: '2', expected 1 to 4"),
        ("{", "not readable"),
        ("[1]", "not readable"),
        ("", "not readable"),
    ],
)
def test_another_format_is_refused(tmp_path: Path, text: str, message: str) -> None:
    own(tmp_path / "lake").close()
    (tmp_path / "lake/format.json").write_text(text)
    for opening in (own, follow):
        with pytest.raises(FormatError, match=re.escape(message)):
            opening(tmp_path / "lake")
    assert (tmp_path / "lake/format.json").read_text() == text


def test_another_format_of_the_database_is_refused(tmp_path: Path) -> None:
    db = database(own(tmp_path / "lake"))
    manager = TransactionManager()
    connection = db.open(manager)
    connection.root()["format"] = 99
    manager.commit()
    connection.close()
    db.close()
    for opening in (own, follow):
        with pytest.raises(FormatError, match="database, format: 99, expected 4"):
            database(opening(tmp_path / "lake"))
    own(tmp_path / "lake").close()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    for number, name in enumerate(["file", "blobs", "incoming", "data.txt"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(FormatError, match=r"not empty and without format\.json"):
            own(folder)
        assert [path.name for path in folder.iterdir()] == [name]
    with pytest.raises(FileNotFoundError):
        own(tmp_path / "no" / "parent")


@pytest.mark.parametrize("missing", [["format.json"], ["format.json", "blobs"], ["format.json", "incoming"]])
def test_a_lake_that_was_half_made_is_made(tmp_path: Path, missing: list[str]) -> None:
    own(tmp_path / "lake").close()
    for name in missing:
        path = tmp_path / "lake" / name
        subprocess.run(["rm", "-r", path], check=True)
    (tmp_path / "lake/format.json.tmp").write_text("{")
    own(tmp_path / "lake").close()
    assert json.loads((tmp_path / "lake/format.json").read_bytes()) == {"clachan_lake": FORMAT}


def test_a_lake_that_lost_its_format_is_not_taken_for_new(tmp_path: Path) -> None:
    database(own(tmp_path / "lake")).close()
    (tmp_path / "lake/format.json").unlink()
    with pytest.raises(FormatError, match=r"not empty and without format\.json"):
        own(tmp_path / "lake")


def put(db: Any, names: str, size: int = 1) -> dict[str, Path]:
    manager = TransactionManager()
    connection = db.open(manager)
    made = {}
    for name in names:
        blob = made[name] = connection.root()["arrays"][name] = Blob()
        connection.add(blob)
        with blob.open("w") as file:
            file.write(name.encode() * size)
    manager.commit()
    paths = {name: Path(blob.committed()) for name, blob in made.items()}
    connection.close()
    return paths


def remove(db: Any, names: str) -> None:
    manager = TransactionManager()
    connection = db.open(manager)
    for name in names:
        del connection.root()["arrays"][name]
    manager.commit()
    connection.close()


def names(db: Any) -> list[str]:
    manager = TransactionManager()
    connection = db.open(manager)
    found = []
    for name, blob in connection.root()["arrays"].items():
        with blob.open("r") as file:
            assert set(file.read().decode()) == {name}
        found.append(name)
    manager.abort()
    connection.close()
    return found


def test_a_pack_that_was_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    db = database(own(tmp_path / "lake"))
    put(db, "ab")
    db.close()
    data = tmp_path / "lake/data.fs"
    data.rename(tmp_path / "lake/data.fs.old")
    (tmp_path / "lake/data.fs.pack").write_bytes(b"FS30")
    db = database(own(tmp_path / "lake"))
    assert names(db) == ["a", "b"]
    db.close()
    assert data.exists()
    assert not (tmp_path / "lake/data.fs.pack").exists()
    assert not (tmp_path / "lake/data.fs.old").exists()


def test_a_pack_that_another_process_does_is_not_undone(tmp_path: Path) -> None:
    storage = own(tmp_path / "lake")
    data = tmp_path / "lake/data.fs"
    data.rename(tmp_path / "lake/data.fs.old")
    with pytest.raises(LakeBusyError):
        own(tmp_path / "lake")
    assert not data.exists()
    (tmp_path / "lake/data.fs.old").rename(data)
    storage.close()


@pytest.mark.parametrize("packed", [True, False])
def test_blobs_that_a_killed_pack_had_tagged_go_when_no_record_names_them(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = database(own(tmp_path / "lake"))
    paths = put(db, "abc")
    remove(db, "b")
    if packed:
        monkeypatch.setattr(
            LakeStorage,
            "_remove_blob_files_tagged_for_removal_during_pack",
            lambda _: (_ for _ in ()).throw(KilledError),
        )
        with pytest.raises(KilledError):
            pack_now(db)
        monkeypatch.undo()
    else:
        oid = bytes.fromhex("".join(part[2:].zfill(2) for part in paths["b"].parts[-9:-1]))
        (tmp_path / "lake/blobs/.removed").write_bytes(binascii.hexlify(oid) + b"\n" + b"12")
    db.close()
    assert all(path.exists() for path in paths.values())
    db = database(own(tmp_path / "lake"))
    assert names(db) == ["a", "c"]
    assert paths["b"].exists() is not packed
    assert not (tmp_path / "lake/blobs/.removed").exists()
    db.close()


class KilledError(Exception):
    """As if the process had ended here."""


def test_a_pack_leaves_nothing_of_what_it_replaced(tmp_path: Path) -> None:
    db = database(own(tmp_path / "lake"))
    paths = put(db, "abc")
    remove(db, "b")
    pack_now(db)
    assert [path.exists() for path in paths.values()] == [True, False, True]
    assert names(db) == ["a", "c"]
    db.close()
    left = {path.name for path in (tmp_path / "lake").iterdir()}
    assert left == {"format.json", "data.fs", "data.fs.index", "data.fs.lock", "data.fs.tmp", "blobs", "incoming"}


PACKER = """
import sys
from pathlib import Path
from clachan_lake.database import database, own
from lake.tests.storing import pack_now
from lake.tests.test_storage_folder import put, remove
db = database(own(Path(sys.argv[1])))
print("open", flush=True)
while True:
    put(db, "xyz", 1000)
    remove(db, "xz")
    pack_now(db)
    remove(db, "y")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.1, 0.2, 0.3])
def test_killed_anywhere_in_packing_nothing_is_lost_and_nothing_left(tmp_path: Path, seconds: float) -> None:
    database(own(tmp_path / "lake")).close()
    command = [sys.executable, "-c", PACKER, str(tmp_path / "lake")]
    top = Path(__file__).parents[2]
    for turn in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=top, env=os.environ | {"PYTHONPATH": str(top)})
        assert process.stdout
        assert process.stdout.readline() == b"open\n"
        time.sleep(seconds + turn * 0.017)
        process.kill()
        process.wait()
        process.stdout.close()
        db = database(own(tmp_path / "lake"))
        assert names(db) in ([], ["y"], ["x", "y", "z"])
        remove(db, "".join(names(db)))
        pack_now(db)
        db.close()


def test_where_blobs_are(tmp_path: Path, own_server: Server) -> None:
    for opening in (own, follow):
        storage = opening(tmp_path / "lake")
        assert blob_folder(storage) == tmp_path / "lake/blobs"
        db = database(storage)
        assert blob_folder(db.storage) == tmp_path / "lake/blobs"
        db.close()
    own_server.start()
    client = join(own_server.socket, own_server.folder / "blobs", 10)
    assert blob_folder(client) == own_server.folder / "blobs"
    client.close()
    db = database(MappingStorage())
    assert blob_folder(db.storage) is None
    db.close()


def test_a_storage_without_blobs_is_a_lake_too() -> None:
    db = database(MappingStorage())
    manager = TransactionManager()
    root = db.open(manager).root()
    assert set(root) == {"format", "streams", "arrays", "due", "dead", "growing", *DOCUMENTS}
    assert root["format"] == FORMAT
    manager.abort()
    db.close()
