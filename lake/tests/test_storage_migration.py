"""A lake of an earlier format is migrated when it is opened for writing: whole, once, and killed it goes on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clachan_lake import migration, open_lake
from clachan_lake.errors import CorruptError, FormatError
from clachan_lake.format import FORMAT
from clachan_lake.local import LocalLake

from .making import Server

DATA = Path(__file__).parent / "data"
KILLED = 77


@pytest.fixture(params=[1, 2, 3])
def earlier(request: pytest.FixtureRequest) -> int:
    """The format that `old` has."""
    return int(request.param)


@pytest.fixture
def old(tmp_path: Path, earlier: int) -> Path:
    subprocess.run(["tar", "-xzf", DATA / f"format{earlier}.tar.gz", "-C", tmp_path], check=True)
    return tmp_path / "lake"


def number(folder: Path) -> int:
    return json.loads((folder / "format.json").read_bytes())["clachan_lake"]


def check(lake: LocalLake) -> None:
    """All that make_earlier.py has put into it."""
    arrays = lake.arrays
    assert set(arrays) - {"good"} == {"empty", "many", "odd", "scalar", "sparse", "structured", "whole"}
    assert np.array_equal(arrays["whole"][:], np.arange(12).reshape(3, 4))
    assert dict(arrays["whole"].attrs) == {"unit": "m", "rate": 48000}
    assert np.array_equal(arrays["many"][:], np.arange(2800.0).reshape(1400, 2))
    odd = np.concatenate([np.arange(start, start + 4000) % 3000 for start in (0, 500, 1000)])
    assert np.array_equal(arrays["odd"][:], odd)
    sparse = arrays["sparse"][:]
    assert sparse[500_000:500_003].tolist() == [7, 8, 9]
    assert sparse.sum() == 24
    assert arrays["structured"][:]["t"].tolist() == [0, 5]
    assert arrays["structured"][:]["v"].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert arrays["scalar"][()] == 2.5
    assert arrays["empty"].shape == (0, 7)
    assert [str(arrays[name].dtype) for name in ("whole", "many", "odd", "empty")] == [
        "int32",
        "float64",
        "int16",
        ">u2",
    ]
    stream = lake.streams["log"]
    assert stream.read() == b"small piece" + b"z" * 40_000
    assert stream.final
    assert stream.verify() == []  # type: ignore[attr-defined]
    assert not stream.append(b"small piece", "id-1")
    assert (stream.start, dict(stream.attrs)) == (0, {})
    following = {"name": "wav", "state": "waiting", "position": 0, "message": "", "warnings": [], "output": None}
    assert stream.describe()["transformations"] == [{**following, "lag_bytes": stream.size}]


@pytest.mark.parametrize("earlier", [2], indirect=True)
def test_what_became_of_streams_is_kept(old: Path) -> None:
    with open_lake(old) as lake:
        assert isinstance(lake, LocalLake)
        found = {name: stream.describe()["transformations"][0] for name, stream in lake.streams.items()}
        assert list(lake.root()["due"]) == [("stream", "due", "wav"), ("stream", "log", "wav")]
        good = lake.streams["good"]
        assert found["good"]["output"] == "good"
        assert (found["good"]["state"], found["good"]["lag_bytes"]) == ("done", 0)
        assert (found["bad"]["state"], found["bad"]["lag_bytes"]) == ("failed", 0)
        assert "RIFF" in found["bad"]["message"]
        assert (found["due"]["state"], found["open"]["state"]) == ("waiting", "waiting")
        assert lake.arrays["good"][:].ravel().tolist() == list(range(100))
        with lake.transaction():
            assert not good.append(good.read(), "id-3")
            assert good.forget_ids(1 << 60) == 0
            lake.streams["open"].append(b"x", "new", final=True)
            assert lake.streams["open"].forget_ids(1 << 60) == 1
        assert ("stream", "open", "wav") in lake.root()["due"]


def test_everything_is_there_and_writable(old: Path) -> None:
    with open_lake(old) as lake:
        assert isinstance(lake, LocalLake)
        with lake.transaction():
            check(lake)
            lake.arrays["many"].append([[-1, -2]])
            lake.arrays["odd"][:3] = -5
        assert lake.arrays["many"][-2:].tolist() == [[2798, 2799], [-1, -2]]
        assert lake.arrays["odd"][:4].tolist() == [-5, -5, -5, 3]
        assert all(array.verify() == [] for array in lake.arrays.values())
    assert number(old) == FORMAT
    with open_lake(old, read_only=True) as lake:
        assert lake.arrays["many"].shape == (1401, 2)


def test_reading_does_not_migrate(old: Path, earlier: int) -> None:
    before = (old / "data.fs").read_bytes()
    expected = f"format: {earlier}, expected {FORMAT} for reading; open it once for writing to migrate it"
    with pytest.raises(FormatError, match=expected):
        open_lake(old, read_only=True)
    assert number(old) == earlier
    assert (old / "data.fs").read_bytes() == before


def test_a_server_migrates_the_lake_that_it_opens(old: Path, tmp_path: Path) -> None:
    server = Server(tmp_path)
    assert server.folder == old
    try:
        server.start()
        with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
            assert lake.arrays["whole"].shape == (3, 4)
        assert number(old) == FORMAT
    finally:
        server.close()


DYING = f"""
import os, sys
import transaction
from clachan_lake import open_lake
from clachan_lake import migration
from clachan_lake.storage import layout

def die(*_):
    os._exit({KILLED})

place = sys.argv[2]
if place == "before the migration":
    migration.migrate = die
elif place == "before its commit":
    migrate = migration.migrate
    migration.migrate = lambda root: die(migrate(root))
elif place == "before its number":
    layout.write_format = die
elif place == "in its number":
    layout.json.dump = die
open_lake(sys.argv[1])
"""


@pytest.mark.parametrize(
    "place", ["before the migration", "before its commit", "before its number", "in its number", "nowhere"]
)
def test_killed_it_is_finished_by_the_next(old: Path, earlier: int, place: str) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, old, place], check=False, capture_output=True, text=True)
    assert done.returncode == (0 if place == "nowhere" else KILLED), done.stderr
    assert number(old) == (FORMAT if place == "nowhere" else earlier)
    with open_lake(old) as lake, lake.transaction():
        check(lake)
    assert number(old) == FORMAT
    assert not (old / "format.json.tmp").exists()


def test_a_migration_that_fails_changes_nothing(old: Path, earlier: int) -> None:
    def fail(_root: object) -> None:
        raise CorruptError("array odd, chunk 1: not there, expected its file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migration, "migrate", fail)
        with pytest.raises(CorruptError, match="array odd, chunk 1"):
            open_lake(old)
    assert number(old) == earlier
    with open_lake(old) as lake, lake.transaction():
        check(lake)
