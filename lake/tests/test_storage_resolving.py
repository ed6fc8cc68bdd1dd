"""Two changes of one record: merged where it can be, and nothing that a record says is ever done."""

import os
import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree, OOBucket, OOTreeSet
from clachan_lake.database import LakeStorage, database, join
from clachan_lake.errors import RefusedClassError
from clachan_lake.format import Leaf, Piece
from clachan_lake.storage.resolving import RESOLVABLE, resolve
from transaction import TransactionManager
from ZODB.POSException import ConflictError
from ZODB.utils import p64, z64
from zodbpickle.pickle import Pickler, Unpickler, UnpicklingError

from .making import Server


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LakeStorage]:
    (tmp_path / "lake").mkdir()
    opened = LakeStorage(tmp_path / "lake")
    yield opened
    opened.close()


class Session:
    """A connection with a transaction of its own."""

    def __init__(self, db: Any) -> None:
        self.manager = TransactionManager()
        self.connection = db.open(self.manager)
        self.root = self.connection.root()

    def commit(self) -> None:
        self.manager.commit()

    def begin(self) -> None:
        self.manager.begin()

    def close(self) -> None:
        self.manager.abort()
        self.connection.close()


@pytest.fixture
def two(storage: LakeStorage) -> Iterator[tuple[Session, Session]]:
    db = database(storage)
    sessions = Session(db), Session(db)
    yield sessions
    for session in sessions:
        session.close()
    db.close()


@pytest.mark.parametrize("count", [0, 1, 20, 400])
def test_names_that_two_sessions_add_are_both_there(two: tuple[Session, Session], count: int) -> None:
    one, other = two
    one.root["arrays"].update({f"n{number:04}": Piece(b"") for number in range(count)})
    one.commit()
    other.begin()
    one.begin()
    one.root["arrays"]["x1"] = Piece(b"1")
    one.root["due"].add("p1")
    other.root["arrays"]["x2"] = Piece(b"2")
    other.root["due"].add("p2")
    one.commit()
    other.commit()
    for session in two:
        session.begin()
        assert len(session.root["arrays"]) == count + 2
        assert [session.root["arrays"][name].data for name in ("x1", "x2")] == [b"1", b"2"]
        assert sorted(session.root["due"]) == ["p1", "p2"]
        session.root["arrays"]._check()


def test_one_name_that_two_sessions_add_or_change_is_a_conflict(two: tuple[Session, Session]) -> None:
    one, other = two
    for step in ("add", "change"):
        one.begin()
        other.begin()
        one.root["arrays"]["x"] = Piece(b"one")
        other.root["arrays"]["x"] = Piece(b"other")
        one.commit()
        with pytest.raises(ConflictError):
            other.commit()
        other.manager.abort()
        other.begin()
        assert other.root["arrays"]["x"].data == b"one", step


def test_a_name_that_one_removes_and_a_neighbour_that_another_changes(two: tuple[Session, Session]) -> None:
    one, other = two
    one.root["arrays"].update({name: Piece(b"") for name in "abc"})
    one.commit()
    other.begin()
    del one.root["arrays"]["b"]
    other.root["arrays"]["c"] = Piece(b"new")
    one.commit()
    other.commit()
    one.begin()
    assert [(name, piece.data) for name, piece in one.root["arrays"].items()] == [("a", b""), ("c", b"new")]


def test_whose_change_was_merged_reads_the_merged_record(two: tuple[Session, Session]) -> None:
    one, other = two
    one.root["arrays"]["x"] = Piece(b"")
    other.root["arrays"]["y"] = Piece(b"")
    one.commit()
    other.commit()
    # without a new transaction: the vote named the record, so that the session dropped its own state of it
    assert sorted(other.root["arrays"]) == ["x", "y"]


def test_what_is_no_container_is_a_conflict(two: tuple[Session, Session]) -> None:
    one, other = two
    one.root["arrays"]["x"] = Piece(b"")
    one.commit()
    other.begin()
    one.root["arrays"]["x"].data = b"one"
    other.root["arrays"]["x"].data = b"other"
    one.commit()
    with pytest.raises(ConflictError):
        other.commit()


def test_clients_of_a_server_are_merged_by_the_server(own_server: Server) -> None:
    own_server.start()
    dbs = [database(join(own_server.socket, own_server.folder / "blobs", 10)) for _ in range(2)]
    one, other = (Session(db) for db in dbs)
    one.root["arrays"]["x"] = Piece(b"x")
    other.root["arrays"]["y"] = Piece(b"y")
    one.commit()
    other.commit()
    one.begin()
    assert sorted(one.root["arrays"]) == sorted(other.root["arrays"]) == ["x", "y"]
    for session, db in zip((one, other), dbs, strict=True):
        session.close()
        db.close()


class Called:
    """Unpickled, it calls."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Referred:
    """Another record, by what stands in its place."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference


def record(kind: Any, state: Any) -> bytes:
    file = BytesIO()
    pickler = Pickler(file, 3)
    pickler.persistent_id = lambda found: found.reference if isinstance(found, Referred) else None
    pickler.dump(kind)
    pickler.dump(state)
    return file.getvalue()


EMPTY = record(OOBTree, None)
ADDED = record(OOBTree, (((("a", 1),),),))
OTHER = record(OOBTree, (((("b", 2),),),))


def hostile(canary: Path) -> dict[str, bytes]:
    name = str(canary).encode()
    make = b"cos\nmkdir\n(X" + len(name).to_bytes(4, "little") + name + b"tR"
    tree = pickle.dumps(OOBTree, 3)
    mkdir = Called(os.mkdir, str(canary))
    return {
        "class": b"\x80\x03" + make + b"." + pickle.dumps(None, 3),
        "class, behind something else": b"\x80\x03N0" + make + b"." + pickle.dumps(None, 3),
        "arguments of the class": b"\x80\x03cBTrees.OOBTree\nOOBTree\n" + make + b"\x85\x86." + pickle.dumps(None, 3),
        "state": tree + b"\x80\x03" + make + b".",
        "value in the state": record(OOBTree, (((("k", mkdir),),),)),
        "old instance": tree + b"(ios\nmkdir\nX" + len(name).to_bytes(4, "little") + name + b"o.",
        "reference": record(OOBTree, (((("k", Referred(mkdir)),),),)),
        "class of a reference": record(OOBTree, (((("k", Referred((p64(9), mkdir))),),),)),
        "another database": record(OOBTree, (((("k", Referred(["m", ("other", p64(9), mkdir)])),),),)),
        # the name of an admitted class, changed into another one when it has been looked at
        "changed name": record(OOBTree, None)[:-4]
        + b"\x80\x03cBTrees.OOBTree\nOOBTree\nN}(X\x06\x00\x00\x00moduleX\x02\x00\x00\x00osX\x04\x00\x00\x00name"
        + b"X\x05\x00\x00\x00mkdiru\x86b.",
        "a class that writes a file": record(OOBTree, Called(__import__("ZODB.blob").blob.Blob, b"x")),
        "not a class": record("text", None),
        "cut": ADDED[:-3],
        "nothing": b"",
        "no pickle": b"\xff" * 40,
        "other class": record(Piece, {"data": b""}),
        "class outside": record(Called, None),
    }


@pytest.mark.parametrize("place", ["old", "committed", "new"])
@pytest.mark.parametrize("what", list(hostile(Path("x"))))
def test_a_hostile_state_executes_nothing_and_is_a_conflict(
    storage: LakeStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, place: str
) -> None:
    canary = tmp_path / "canary"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "drafts"))
    assert resolve(EMPTY, ADDED, OTHER) == record(OOBTree, (((("a", 1, "b", 2),),),))
    states = {"old": EMPTY, "committed": ADDED, "new": OTHER} | {place: hostile(canary)[what]}
    with pytest.raises((ConflictError, RefusedClassError, UnpicklingError, EOFError, TypeError, AttributeError)):
        resolve(states["old"], states["committed"], states["new"])
    storage.loadSerial = lambda _oid, serial: states["old" if serial == p64(1) else "committed"]
    with pytest.raises(ConflictError) as conflict:
        storage.tryToResolveConflict(z64, p64(2), p64(1), states["new"], states["committed"])
    with pytest.raises(ConflictError):
        storage.tryToResolveConflict(z64, p64(2), p64(1), states["new"])
    assert conflict.value.serials == (p64(2), p64(1))
    assert not canary.exists()


def test_the_hostile_states_would_do_it_elsewhere(tmp_path: Path) -> None:
    """The canary is one: the same bytes, with ZODB's own loading of them."""
    from ZODB.ConflictResolution import tryToResolveConflict

    done = set()
    for what, data in hostile(tmp_path / "canary").items():

        class Plain:
            _crs_untransform_record_data = _crs_transform_record_data = staticmethod(lambda found: found)
            loadSerial = staticmethod(lambda _oid, _serial, data=data: data)  # noqa: N815

        with pytest.raises(ConflictError):
            tryToResolveConflict(Plain(), z64, p64(2), p64(1), data if what.startswith("class") else ADDED, data)
        if (tmp_path / "canary").exists():
            done.add(what)
            (tmp_path / "canary").rmdir()
    assert done >= {"class", "state", "value in the state", "reference"}


def test_a_merged_record_is_what_zodb_writes() -> None:
    """References keep their classes, also where two states name one record."""
    leaf, piece = Referred((p64(7), Leaf)), Referred((p64(8), Piece))
    states = [
        record(OOBucket, (("a", leaf),)),
        record(OOBucket, (("a", leaf, "b", piece),)),
        record(OOBucket, (("a", leaf, "c", Referred(p64(9))),)),
    ]
    expected = record(OOBucket, (("a", leaf, "b", piece, "c", Referred(p64(9))),))
    assert _plain(resolve(*states)) == _plain(expected)


def _plain(data: bytes) -> Any:
    reader = Unpickler(BytesIO(data))
    reader.persistent_load = lambda found: ("reference", found)
    return reader.load(), reader.load()


def test_only_the_lakes_own_containers_are_merged() -> None:
    assert {name for _, name in RESOLVABLE} == {
        "ArrayState", "Leaf", "LOBTree", "LOBucket", "OOBTree", "OOBucket", "OOTreeSet", "OOSet",
    }  # fmt: skip
    assert all(hasattr(kind, "_p_resolveConflict") for kind in (LOBTree, OOBTree, OOTreeSet, Leaf))
