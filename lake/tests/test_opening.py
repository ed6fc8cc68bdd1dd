"""Who may open what, and that what is opened cannot do anything."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.database import LakeStorage, socket_address
from clachan_lake.errors import (
    CorruptError,
    FormatError,
    LakeBusyError,
    LakeReadOnlyError,
    RefusedClassError,
    RemoteError,
)
from clachan_lake.ingest.config import load
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from transaction import TransactionManager
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError
from ZODB.utils import p64, z64

from .making import TOKEN, Server


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    expected = "open in another process, expected to be alone; use that process's socket or URL"
    with open_lake(tmp_path / "lake"), pytest.raises(LakeBusyError, match=expected):
        open_lake(tmp_path / "lake")
    script = f"from clachan_lake import open_lake; open_lake({str(tmp_path / 'lake')!r}).close()"
    with open_lake(tmp_path / "lake"):
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "LakeBusyError" in other.stderr
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_only_lakes_are_opened(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(FormatError, match=r"not empty and without format\.json, expected a lake or an empty folder"):
        open_lake(tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["file"]
    open_lake(tmp_path / "lake").close()
    for text, message in [
        ('{"clachan_lake": 5}', "format: 5, expected 1 to 4; use the version that made it"),
        ("{", "not readable"),
        ("[1]", "not readable"),
    ]:
        (tmp_path / "lake/format.json").write_text(text)
        with pytest.raises(FormatError, match=message):
            open_lake(tmp_path / "lake")
    with pytest.raises(FileNotFoundError):
        open_lake(tmp_path / "no" / "parent")
    with pytest.raises(RemoteError, match="lake http://127"):
        open_lake("http://127.0.0.1:1", token=TOKEN).get("/healthz")  # type: ignore[attr-defined]


def test_what_a_killed_process_left_is_cleaned(tmp_path: Path) -> None:
    open_lake(tmp_path / "lake").close()
    (tmp_path / "lake/incoming/half").write_bytes(b"x")
    old, new = tmp_path / "lake/blobs/tmp/BUCold", tmp_path / "lake/blobs/tmp/BUCnew"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    (tmp_path / "lake/data.fs.index").unlink()
    open_lake(tmp_path / "lake").close()
    assert list((tmp_path / "lake/incoming").iterdir()) == []
    assert not old.exists()
    assert new.exists()


class Hostile:
    """Unpickled, it would make the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.canary),))


def hostile_records(canary: Path) -> list[bytes]:
    from persistent.mapping import PersistentMapping

    admitted = pickle.dumps((PersistentMapping, None), 3)
    return [
        pickle.dumps(Hostile(canary), 3) + pickle.dumps(None, 3),
        pickle.dumps((Hostile, None), 3) + pickle.dumps({}, 3),
        admitted + pickle.dumps({"data": {"format": Hostile(canary)}}, 3),
        admitted + pickle.dumps({"data": {"format": 1, "streams": Hostile(canary)}}, 3),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_hostile_record_executes_nothing(tmp_path: Path, number: int) -> None:
    canary = tmp_path / "canary"
    open_lake(tmp_path / "lake").close()
    storage = FileStorage(str(tmp_path / "lake/data.fs"), blob_dir=str(tmp_path / "lake/blobs"))
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.store(z64, storage.load(z64)[1], hostile_records(canary)[number], "", transaction)
    storage.tpc_vote(transaction)
    storage.tpc_finish(transaction)
    storage.close()
    with pytest.raises(RefusedClassError, match="expected one that a lake contains"):
        open_lake(tmp_path / "lake")
    assert not canary.exists()
    FileStorage(str(tmp_path / "lake/data.fs")).close()


def test_a_hostile_index_executes_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        lake.streams.create("s").append(b"abc")
    (tmp_path / "lake/data.fs.index").write_bytes(pickle.dumps(Hostile(canary), 3))
    with open_lake(tmp_path / "lake") as lake:
        assert lake.streams["s"].read() == b"abc"
    assert not canary.exists()


def test_a_conflict_is_not_resolved_by_unpickling(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    open_lake(tmp_path / "lake").close()
    storage = LakeStorage(tmp_path / "lake")
    try:
        with pytest.raises(ConflictError):
            storage.tryToResolveConflict(z64, p64(2), p64(1), hostile_records(canary)[0], b"")
    finally:
        storage.close()
    assert not canary.exists()


def test_two_writers_of_one_stream_conflict_and_the_repeat_holds(tmp_path: Path) -> None:
    from clachan_lake.database import database, own

    with LocalLake(database(own(tmp_path / "lake"))) as lake, lake.session() as other:
        with lake.transaction():
            lake.streams.create("s")
        other.refresh()

        def collide() -> None:
            with other.transaction():
                other.streams["s"].append(b"other")
                with lake.transaction():
                    lake.streams["s"].append(b"one")

        with pytest.raises(ConflictError):
            collide()
        with other.transaction():
            other.streams["s"].append(b"other")
        lake.refresh()
        assert lake.streams["s"].read() == b"oneother"
        assert isinstance(lake._manager, TransactionManager)


def test_the_socket_and_the_url_open_what_the_server_owns(own_server: Server, tmp_path: Path) -> None:
    own_server.start()
    with pytest.raises(LakeBusyError):
        open_lake(own_server.folder)
    with open_lake(own_server.socket, blobs=own_server.folder / "blobs") as lake:
        with lake.transaction():
            lake.arrays.create("a", (0, 2), "<f4", {"unit": "m"}).append([[1, 2], [3, 4]])
            lake.streams.create("s").append(b"x" * 100_000)
        with open_lake(own_server.url, token=TOKEN) as remote:
            assert list(remote.arrays) == ["a"]
            assert remote.arrays["a"][1:].tolist() == [[3, 4]]
            assert dict(remote.arrays["a"].attrs) == {"unit": "m"}
            assert remote.streams["s"].read(99_998) == b"xx"
            for write in (lambda: remote.transaction().__enter__(), lambda: remote.streams["s"].append(b"x")):
                with pytest.raises(LakeReadOnlyError, match=r"at a URL: .*expected .*the lake's socket or folder"):
                    write()
    with open_lake(own_server.socket, blobs=own_server.folder / "blobs", read_only=True) as lake:
        with pytest.raises(LakeReadOnlyError, match="opened for reading"), lake.transaction():
            pass
        assert lake.arrays["a"][0].tolist() == [1, 2]
    assert own_server.stop() == 0
    with open_lake(own_server.folder) as lake:
        assert lake.arrays["a"].shape == (2, 2)


def test_a_folder_is_read_beside_its_writer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lake: not there"):
        open_lake(tmp_path / "lake", read_only=True)
    with open_lake(tmp_path / "lake") as writer:
        with writer.transaction():
            writer.arrays.create("a", (3,), "<i4")[:] = [1, 2, 3]
            writer.streams.create("s").append(b"x" * 100_000)
        with open_lake(tmp_path / "lake", read_only=True) as reader, reader.session() as other:
            view = reader.arrays["a"][:]
            with writer.transaction("second"):
                writer.arrays["a"][1] = 9
                writer.arrays.create("b", (1,), "<i4")
                writer.streams["s"].append(b"y")
            assert view.tolist() == [1, 2, 3]
            reader.refresh()
            assert view.tolist() == [1, 9, 3]
            assert (reader.streams["s"].size, list(reader.arrays)) == (100_001, ["a", "b"])
            assert [revision.note for revision in reader.arrays["a"].history()] == ["second", ""]
            assert reader.arrays["a"].at(reader.arrays["a"].history()[1].id)[:].tolist() == [1, 2, 3]
            assert other.arrays["a"][:].tolist() == [1, 2, 3]
            with pytest.raises(LakeReadOnlyError, match="opened for reading"), reader.transaction():
                pass
            with pytest.raises(LakeBusyError):
                open_lake(tmp_path / "lake")


def test_a_server_of_a_lake_is_read_beside_by_the_folder(own_server: Server) -> None:
    own_server.start()
    assert own_server.post(b"abc", reference="s").status_code == 204
    with open_lake(own_server.folder, read_only=True) as lake:
        assert lake.streams["s"].read() == b"abc"
        assert own_server.post(b"def", reference="s").status_code == 204
        lake.refresh()
        assert lake.streams["s"].read() == b"abcdef"


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    open_lake(tmp_path / "lake").close()
    (tmp_path / "lake/data.fs.index").unlink()
    data = bytearray((tmp_path / "lake/data.fs").read_bytes())
    data[:4] = b"XXXX"
    (tmp_path / "lake/data.fs").write_bytes(data)
    with pytest.raises(CorruptError, match="expected its records; restore a backup"):
        open_lake(tmp_path / "lake")
    with pytest.raises(CorruptError, match="open it for writing to mend it"):
        open_lake(tmp_path / "lake", read_only=True)
    assert (tmp_path / "lake/data.fs").read_bytes() == data


def test_a_long_socket_path_is_taken_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with pytest.raises(ValueError, match="expected at most 107"):
        socket_address(deep / "lake.sock")
    monkeypatch.chdir(deep)
    assert socket_address(deep / "lake.sock") == "lake.sock"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": None}, "key folder: None, expected text"),
        ({"nonsense": 1}, "key nonsense: unknown, expected one of folder, socket"),
        ({"port": "x"}, "key port: 'x', expected a whole number of at least 0"),
        ({"policies": {}}, "key policies: {}, expected a list of objects, each with another name of a policy"),
        ({"policies": [{"name": "a b"}]}, "key policies: policy name: 'a b', expected 1-100 letters, digits, _ . -"),
        (
            {"policies": [{"name": "a"}, {"name": "a"}]},
            "expected a list of objects, each with another name of a policy",
        ),
        ({"policies": [{"name": "a", "into": "x"}]}, "key policies: policy a, key into: 'x', expected stream or array"),
        (
            {"policies": [{"name": "a", "transformation": "mp3"}]},
            "key policies: policy a, key transformation: 'mp3', expected none or wav",
        ),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"folder": "lake", "socket": "s", "token_file": "t"}
    (tmp_path / "c.json").write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path / "c.json")


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short\n")
    settings = {"folder": "lake", "socket": "s", "token_file": str(tmp_path / "token")}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "clachan_lake.serve", str(tmp_path / "c.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a token of 5 characters, expected at least 8" in done.stderr


def test_a_socket_needs_the_lakes_own_blob_folder(own_server: Server, tmp_path: Path) -> None:
    own_server.start()
    (tmp_path / "empty").mkdir()
    for wrong in (None, tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="blob folder: not the lake's, expected it beside the socket"):
            open_lake(own_server.socket, blobs=wrong)
    with open_lake(own_server.socket, blobs=own_server.folder / "blobs") as lake:
        assert list(lake.arrays) == []
