"""Arrays of a lake at a URL: as local ones, by many writers at once, through kills and cut connections."""

import io
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import zarr
from clachan_lake.errors import (
    ChunkError,
    LakeReadOnlyError,
    MissingError,
    RemoteError,
    RequestError,
    TakenError,
)
from clachan_lake.keeping.leases import NAME
from clachan_lake.opening import open_lake
from clachan_lake.remote import RemoteArray, RemoteLake

from .making import TOKEN, Server, wait_for
from .test_array_routes import post, put, remote


@pytest.mark.parametrize("dtype", ["<i8", [["t", "<i8"], ["v", ">f4", [2]]]])
def test_rows_in_order_f_are_columns(server: Server, dtype: Any) -> None:
    name = f"fortran/{len(dtype)}"
    assert put(server, name, {"shape": [3, 0], "dtype": dtype, "order": "F"}).status_code == 201
    with remote(server) as lake:
        array = lake.arrays[name]
        raw = np.random.default_rng(1).integers(0, 100, (3, 20_000 * array.dtype.itemsize), np.uint8)
        values = raw.view(array.dtype)
        array.append(values[:, :7])
        array.append(values[:, 7:])
        assert (array.shape, array.order) == ((3, 20_000), "F")
        for key in (..., (slice(None), slice(5, 9)), (1, 7), (slice(2), slice(None, None, -300)), 2, [0, 2]):
            np.testing.assert_array_equal(lake.arrays[name][key], values[key])
        assert lake.arrays[name][:].flags.f_contiguous
        for first, rows in array.blocks(9999):
            assert rows.tobytes() == values[:, first : first + rows.shape[1]].tobytes()
    assert server.get("/arrays/data", name=name, start=5, stop=9).content == values[:, 5:9].tobytes("F")
    read = np.load(io.BytesIO(server.get("/arrays/data", name=name, npy=1, start=1).content))
    assert read.flags.f_contiguous
    np.testing.assert_array_equal(read, values[:, 1:])
    assert server.get("/arrays/data", name=name, stop=20_001).status_code == 400


def test_many_writers_lose_nothing(server: Server) -> None:
    put(server, "many", {"shape": [0, 3], "dtype": "<i8"})

    def write(number: int) -> None:
        with remote(server) as lake:
            array = lake.arrays["many"]
            for part in range(12):
                array.append(np.full((1 + part * 50, 3), number * 100 + part))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    with remote(server) as lake:
        rows = lake.arrays["many"][:]
    assert (rows == rows[:, :1]).all()
    numbers, counts = np.unique(rows[:, 0], return_counts=True)
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == {
        number * 100 + part: 1 + part * 50 for number in range(6) for part in range(12)
    }


def test_of_many_writers_with_one_place_one_comes_there(server: Server) -> None:
    """Beside writers at the socket, whose appends say no place."""
    put(server, "place", {"shape": [0], "dtype": "<i8"})
    placed: dict[int, int] = {}
    late: list[int | None] = []

    def write(number: int) -> None:
        with remote(server) as lake:
            for part in range(8):
                value = number * 100 + part
                while value not in placed.values():
                    rows = len(lake.arrays["place"])
                    try:
                        lake.arrays["place"].append([value], after=rows)
                        placed[rows] = value
                    except ChunkError as error:
                        late.append(error.size)

    with open_lake(server.socket, blobs=server.folder / "blobs") as lake, ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        others = list(range(900, 930))
        for number in others:
            with lake.transaction():
                lake.arrays["place"].append([number])
        for writer in writers:
            writer.result()
    assert late
    assert None not in late
    found = np.frombuffer(server.get("/arrays/data", name="place").content, "<i8").tolist()
    assert sorted(found) == sorted([*placed.values(), *others])
    assert {rows: found[rows] for rows in placed} == placed


@pytest.mark.slow
def test_killed_during_appends_the_array_has_each_row_once(own_server: Server) -> None:
    """A writer that repeats with `after` until it has an answer, a server that is killed again and again."""
    own_server.start()
    put(own_server, "k", {"shape": [0], "dtype": "<i8"})
    sizes = [1 + number * 997 % 9000 for number in range(120)]
    going = threading.Event()
    going.set()

    def write() -> None:
        rows = 0
        for number, size in enumerate(sizes):
            while True:
                try:
                    answer = post(own_server, np.full(size, number).tobytes(), name="k", rows=size, after=rows)
                except requests.RequestException:
                    time.sleep(0.05)
                    continue
                assert answer.status_code in {204, 409}, answer.text
                assert answer.headers["Clachan-Array-Rows"] == str(rows + size)
                break
            rows += size
        going.clear()

    writer = threading.Thread(target=write)
    writer.start()
    kills = 0
    while going.is_set() and kills < 6:
        time.sleep(0.05 + 0.07 * kills)
        own_server.kill()
        kills += 1
        own_server.start()
    writer.join(60)
    assert not writer.is_alive()
    assert kills >= 2
    own_server.kill()
    with open_lake(own_server.folder) as lake:
        np.testing.assert_array_equal(lake.arrays["k"][:], np.repeat(np.arange(120), sizes))
        assert list(lake.arrays["k"].verify()) == []  # type: ignore[attr-defined]


def test_the_remote_lake_writes(server: Server) -> None:
    with remote(server) as lake:
        array = lake.arrays.create("written", (0, 2), "i2", {"rate": 8000}, units="V")
        assert (array.shape, array.units) == ((0, 2), "V")
        array.append([[1, 2], [3, 4]])
        array.append(np.zeros((0, 2), "i2"))
        assert (array.shape, array[:].tolist()) == ((2, 2), [[1, 2], [3, 4]])
        array.attrs["names"] = ["left", "right"]
        array.attrs.update(rate=1, more=None)
        del array.attrs["units"]
        with pytest.raises(KeyError):
            del array.attrs["units"]
        expected = {"rate": 1, "names": ["left", "right"], "more": None}
        assert dict(array.attrs) == dict(lake.arrays["written"].attrs) == expected
        assert repr(array.attrs) == f"RemoteAttributes({expected})"
        with pytest.raises(TakenError, match="array 'written': exists, expected a new name"):
            lake.arrays.create("written", (0, 2), "i2", {"rate": 8000})
        assert dict(lake.arrays["written"].attrs) == expected
        for rows in ([1, 2], [[1, 2, 3]], 5):
            with pytest.raises(ValueError, match=r"array written, appended rows: shape .*, expected .'n', 2."):
                array.append(rows)
        with pytest.raises(TypeError, match="same_kind"):
            array.append([[1.5, 2.5]])
        with pytest.raises(TypeError, match="without Python objects"):
            lake.arrays.create("objects", 3, object)
        with pytest.raises(RequestError, match="400 array refused, chunk_bytes: 5") as refused:
            lake.arrays.create("refused", 3, "i2", chunk_bytes=5)
        assert isinstance(refused.value, ValueError)
        with pytest.raises(ChunkError, match="after: 7, expected its rows 2") as stale:
            array.append([[5, 6]], after=7)
        assert stale.value.size == 2
        assert lake.arrays.create("number", 3, "f8").shape == (3,)
        del lake.arrays["written"]
        with pytest.raises(MissingError, match="array 'written': none of this name"):
            del lake.arrays["written"]
        with pytest.raises(MissingError):
            array.append([[5, 6]])
    with open_lake(server.url, token="wrong-wrong") as lake, pytest.raises(RemoteError, match="401 credentials"):
        lake.arrays.create("wrong", 3, "i2")


def test_what_a_url_does_not_do_says_why(server: Server) -> None:
    with remote(server) as lake:
        array = lake.arrays.create("limits", (3, 2), "i2")
        with pytest.raises(LakeReadOnlyError, match="every call is one of its own, expected calls without one"):
            lake.transaction()
        with pytest.raises(LakeReadOnlyError, match="writing into an array at a URL: not served"):
            array[0] = 1
        with pytest.raises(LakeReadOnlyError, match="changing a shape at a URL: not served"):
            array.resize(5, 2)
        with pytest.raises(LakeReadOnlyError, match="appending to a stream at a URL: not served"):
            lake.streams.create("s").append(b"x")


def test_the_past_over_http(server: Server) -> None:
    with remote(server) as lake:
        array = lake.arrays.create("past", (0,), "i8")
        array.append(np.arange(5))
        past = array.snapshot()
        array.append(np.arange(5))
        assert (past.shape, past[:].tolist(), past.at(past.address[2] or "").shape) == ((5,), [0, 1, 2, 3, 4], (5,))
        assert lake.arrays["past"].shape == (10,)
        with open_lake(server.socket, blobs=server.folder / "blobs") as local:
            assert array.history() == local.arrays["past"].history()  # type: ignore[attr-defined]
        revisions = array.history(2)
        assert [revision.shape for revision in revisions] == [(10,), (5,)]
        assert array.at(revisions[1].time)[:].tolist() == array.at(revisions[1].id)[:].tolist() == [0, 1, 2, 3, 4]
        del lake.arrays["past"]
        assert past[3:].tolist() == [3, 4]
        for write in (lambda: past.append([1]), lambda: past.attrs.update(x=1)):
            with pytest.raises(LakeReadOnlyError, match="array past: of the past"):
                write()
        with pytest.raises(RequestError, match="400 moment: 'nope', expected a time"):
            past.at("nope")


def test_blocks_come_ahead(server: Server) -> None:
    with remote(server) as lake:
        array = lake.arrays.create("ahead", (0, 4), "i8")
        array.append(np.arange(4000).reshape(-1, 4))
        found = list(array.blocks(3200))
        assert [(first, len(rows)) for first, rows in found] == [(first, 100) for first in range(0, 1000, 100)]
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in found]), array[:])
        assert [len(rows) for _, rows in array.blocks(30_000)] == [937, 63]
        for first, _rows in array.blocks(3200):
            if first == 200:
                break
        before = threading.active_count()
        walk = array.blocks(3200)
        next(walk)
        walk.close()
        assert threading.active_count() == before
        del lake.arrays["ahead"]
        with pytest.raises(MissingError):
            list(array.blocks(3200))
        assert list(lake.arrays.create("ahead", (0, 4), "i8").blocks()) == []


def test_formats_over_http(server: Server, tmp_path: Path) -> None:
    values = np.asfortranarray(np.random.default_rng(0).random((50, 999)))
    np.save(tmp_path / "in.npy", values)
    with remote(server) as lake:
        lake.arrays.from_npy("npy", tmp_path / "in.npy")
        lake.arrays["npy"].attrs["rate"] = 5
        lake.arrays["npy"].to_zarr(tmp_path / "out.zarr")
        back = lake.arrays.from_zarr("zarr", tmp_path / "out.zarr")
        assert (back.order, dict(back.attrs)) == ("F", {"rate": 5})
        back.to_npy(tmp_path / "out.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), values)
        np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr")[:], values)


def test_a_failed_import_leaves_no_array(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is a transaction at a URL: what was made is deleted again."""
    monkeypatch.setattr("clachan_lake.exchange.npy.BLOCK_BYTES", 100)
    zarr.create_array(tmp_path / "z", data=np.arange(1000.0), chunks=10)
    (tmp_path / "z" / "c" / "90").write_bytes(b"torn")
    np.save(tmp_path / "a.npy", np.arange(1000))
    with remote(server) as lake:
        monkeypatch.setattr("clachan_lake.exchange.zarr.BLOCK_BYTES", 800)
        with pytest.raises(ValueError, match="expected chunks that can be read"):
            lake.arrays.from_zarr("failed", tmp_path / "z")
        stop = Stopping(3)
        with pytest.raises(KeyboardInterrupt):
            from_npy_telling(lake, tmp_path / "a.npy", stop)
        assert "failed" not in list(lake.arrays)


class Stopping:
    """Somebody presses ^C after some blocks."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks

    def __call__(self, _done: int, _total: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def from_npy_telling(lake: RemoteLake, file: Path, tell: Callable[[int, int], None]) -> None:
    from clachan_lake.exchange.npy import from_npy

    from_npy(lake.arrays, "failed", file, tell)


@pytest.mark.parametrize("body", [b"x" * 10, b""])
def test_an_answer_that_is_cut_is_an_error(body: bytes) -> None:
    """A server that promises 16 bytes and dies."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(9999)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n" + body)

        thread = threading.Thread(target=answer)
        thread.start()
        with RemoteLake(f"http://127.0.0.1:{listener.getsockname()[1]}", None, 10) as lake:
            meta = {"name": "x", "shape": [2], "dtype": "<i8", "order": "C", "attrs": {}}
            with pytest.raises(RemoteError, match=rf"array x: .* after {len(body)} bytes, expected 16"):
                RemoteArray(lake, meta)[:]
        thread.join()


def leases(server: Server) -> int:
    """How many sessions there are: each has a lock."""
    inode = (server.folder / "blobs" / NAME).stat().st_ino
    return sum(1 for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line)


def test_a_reader_that_goes_away_keeps_nothing_open(server: Server) -> None:
    put(server, "leave", {"shape": [0, 1 << 20], "dtype": "u1"})
    post(server, bytes(40 << 20), name="leave", rows=40)
    before = leases(server)
    for _ in range(12):
        with requests.get(
            f"{server.url}/arrays/data?name=leave",
            headers={"Authorization": f"Bearer {TOKEN}"},
            stream=True,
            timeout=10,
        ) as answer:
            assert answer.raw.read(1000) == bytes(1000)
    wait_for(lambda: leases(server) <= before, "the sessions' end")
    assert "Traceback" not in server.log
    assert server.get("/healthz").status_code == 200
