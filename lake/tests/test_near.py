"""Arrays at a URL whose lake is on this machine: mapped from the files that the server hands over."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from clachan_lake import near
from clachan_lake.errors import LakeReadOnlyError, RemoteError
from clachan_lake.ingest import certificate
from clachan_lake.keeping.leases import oldest
from clachan_lake.keeping.packing import disk_bytes, pack
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.remote import RemoteArray, RemoteLake

from .handed import MIB, at_distance, at_socket, is_near, make, run, scatter, told
from .making import TOKEN, Server, wait_for
from .test_array_routes import remote
from .test_tls import TlsServer

# -- the same with the same code


def filled(lake: LocalLake, name: str, dtype: Any, order: str) -> None:
    """Chunks, scattered ones, zeros, pieces of the tail and a longer part of it."""
    kind = np.dtype(dtype)
    shape = (0, 64) if order == "C" else (64, 0)
    raw = np.random.default_rng(3).integers(0, 100, 3 * MIB // kind.itemsize // 64 * 64 * kind.itemsize, np.uint8)
    table = raw.view(kind).reshape(-1, 64)
    rows: Any = (lambda low, high: table[low:high]) if order == "C" else (lambda low, high: table[low:high].T)
    half = len(table) // 2
    with lake.transaction():
        array = lake.arrays.create(name, shape, kind, chunk_bytes=65536, order=order)
        array.append(rows(0, half))
    with lake.transaction():
        array.resize(*((half + 5000, 64) if order == "C" else (64, half + 5000)))
    with lake.transaction():
        key: Any = slice(half + 4000, half + 4007)
        array[key if order == "C" else (slice(None), key)] = rows(0, 7)
    for low, high in ((half, half + 3), (half + 3, half + 4), (half + 4, half + 3000), (half + 3000, half + 3001)):
        with lake.transaction():
            array.append(rows(low, high))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i2", ">f8", "c16", "M8[s]", "S3", [("t", "<i8"), ("v", ">f4", (2,))]])
def test_it_is_the_same_as_over_http(server: Server, dtype: Any, order: str) -> None:
    name = f"same/{order}/{dtype}"
    with at_socket(server) as local, remote(server) as lake, at_distance(server) as other:
        filled(local, name, dtype, order)
        here, there = lake.arrays[name], other.arrays[name]
        assert is_near(here[:] if order == "C" else here[:].T)
        keys: list[Any] = [..., slice(None), slice(9, -3), slice(None, None, -7), -1, (slice(None), 5), (3, slice(2))]
        for key in [*keys, (2, 3), [0, 2], (slice(None), slice(None, 40)), (..., np.newaxis)]:
            mine, theirs, expected = here[key], there[key], local.arrays[name][key]
            assert (mine.shape, mine.dtype, mine.strides) == (theirs.shape, theirs.dtype, theirs.strides)
            assert mine.tobytes() == theirs.tobytes() == expected.tobytes()
        for first, rows in here.blocks(700_000):
            count = rows.shape[here.axis]
            assert rows.tobytes("A") == there.read_rows(first, first + count).tobytes("A")
        for past in (here.snapshot(), here.at(here.history()[3].id)):
            assert past[:].tobytes("A") == there.at(past.address[2] or "")[:].tobytes("A")
            assert past[2].tobytes() == there.at(past.address[2] or "")[2].tobytes()
        assert np.asarray(here).tobytes() == np.asarray(there).tobytes()


@pytest.mark.parametrize("values", [np.array(5.5), np.zeros((0, 3)), np.zeros((3, 0)), np.arange(7)])
def test_the_smallest_ones(server: Server, values: Any) -> None:
    name = f"small/{values.shape}"
    make(server, name, values)
    with remote(server) as lake:
        for array in (lake.arrays[name], lake.arrays[name].snapshot()):
            np.testing.assert_array_equal(array[...], values)


def test_what_is_read_is_for_reading_near_and_far(server: Server) -> None:
    make(server, "reading", np.ones(MIB))
    with remote(server) as lake, at_distance(server) as other:
        for array in (lake.arrays["reading"], lake.arrays["reading"].snapshot(), other.arrays["reading"]):
            for rows in (array[:], array[5:8], np.asarray(array)):
                with pytest.raises(ValueError, match="assignment destination is read-only"):
                    rows[0] = 1
            copy = array[:].copy()
            copy += 1
            assert array[[1, 2]].flags.writeable
        with pytest.raises(ValueError, match="cannot set WRITEABLE flag to True"):
            lake.arrays["reading"][:].flags.writeable = True
        with pytest.raises(LakeReadOnlyError):
            lake.arrays["reading"][0] = 1


def test_each_read_is_of_what_is_committed_then(server: Server) -> None:
    make(server, "then", np.zeros((100, 1000)))
    with remote(server) as lake, at_socket(server) as local:
        array = lake.arrays["then"]
        before, past = array[:], array.snapshot()
        # nothing has changed: nothing is mapped anew
        assert array[:].ctypes.data == before.ctypes.data
        assert array[40:].ctypes.data == before[40:].ctypes.data
        assert past[:].ctypes.data == past[:].ctypes.data
        with local.transaction():
            local.arrays["then"][50:] = 7
            local.arrays["then"].append(np.full((5, 1000), 8))
        after = array[:]
        assert (after.shape, after.sum()) == ((100, 1000), 50 * 7000)
        assert before.sum() == past[:].sum() == 0
        assert lake.arrays["then"][:].sum() == 50 * 7000 + 5 * 8000
        with local.transaction():
            local.arrays["then"].resize(10, 1000)
        with pytest.raises(RemoteError, match="400 rows: 0 to 100, expected inside 0 to 10"):
            array[:]
        with local.transaction():
            del local.arrays["then"]
            local.arrays.create("then", (100, 1000), "f8")[:] = 1
        assert array[:].sum() == 100_000
        assert before.sum() == past[:].sum() == 0


def test_the_past_asks_nothing_once_it_is_mapped(server: Server) -> None:
    make(server, "past", np.arange(MIB))
    with remote(server) as lake:
        past = lake.arrays["past"].snapshot()
        assert past[77] == 77
        lake.get = refused  # type: ignore[method-assign, assignment]
        assert past[: MIB // 8].sum() == sum(range(MIB // 8))


def refused(*_: Any, **__: Any) -> Any:
    raise AssertionError("asked")


def test_sessions_of_threads(server: Server) -> None:
    make(server, "threads", np.arange(MIB))
    sums = []

    def work(lake: RemoteLake) -> None:
        with lake.session() as session:
            sums.extend(int(session.arrays["threads"][start:].sum()) for start in range(20))

    with remote(server) as lake:
        threads = [threading.Thread(target=work, args=[lake]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    whole = MIB * (MIB - 1) // 2
    assert sorted(sums) == sorted([whole - start * (start - 1) // 2 for start in range(20)] * 4)


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    directory = tmp_path_factory.mktemp("near-tls")
    pair = {"certificate": directory / "cert.pem", "key": directory / "key.pem"}
    certificate.certificate(*pair.values(), ["127.0.0.1"])
    running = TlsServer(directory, **{key: str(path) for key, path in pair.items()})
    running.session.verify = str(running.ca)
    running.start()
    yield running
    running.close()


def test_over_tls(tls_server: TlsServer) -> None:
    make(tls_server, "tls", np.arange(MIB))
    with open_lake(tls_server.url, token=TOKEN, ca=tls_server.ca) as lake:
        found = lake.arrays["tls"][:]
        assert is_near(found)
        assert found.sum() == MIB * (MIB - 1) // 2


# -- what happens meanwhile


def test_removed_and_packed_while_it_is_mapped(own_server: Server) -> None:
    """An extent is one file: a pack makes holes in it where no record refers to it any more."""
    own_server.start()
    values = np.random.default_rng(1).integers(1, 99, 4 * MIB)
    make(own_server, "kept", values)
    make(own_server, "gone", values)
    blobs = own_server.folder / "blobs"
    with remote(own_server) as lake:
        kept, gone, past = lake.arrays["kept"][:], lake.arrays["gone"][:], lake.arrays["kept"].snapshot()
        assert past[5] == values[5]
    with at_socket(own_server) as local:
        with local.transaction():
            local.arrays["kept"][MIB:] = 0
            del local.arrays["gone"]
        local.refresh()
        pack(local, 0)
        full = disk_bytes(local.root()._p_jar.db().storage)
        own_server.kill()
        own_server.start()
    with at_socket(own_server) as local:
        pack(local, 0)
        np.testing.assert_array_equal(kept, values)
        np.testing.assert_array_equal(gone, values)
        # only parts of it were read before: the rest of this past is there as well
        del kept, gone, lake, past
        wait_for(lambda: (oldest(blobs) or b"") >= local.tid, "end of the leases")
        packed = pack(local, 0)
        assert packed.after_bytes < full - 48 * MIB
        local.refresh()


def test_a_killed_server_takes_no_view_with_it(own_server: Server) -> None:
    own_server.start()
    make(own_server, "killed", np.arange(MIB))
    with remote(own_server) as lake:
        array = lake.arrays["killed"]
        rows, past = array[:], array.snapshot()
        assert past[:8].tolist() == list(range(8))
        own_server.kill()
        assert rows.sum() == MIB * (MIB - 1) // 2
        assert past[3] == 3
        for read in (lambda: array[:], lambda: array[2], lambda: array.snapshot()):
            with pytest.raises(RemoteError, match="expected an answer"):
                read()
        own_server.start()
        assert array[:].sum() == MIB * (MIB - 1) // 2
        assert rows.sum() == MIB * (MIB - 1) // 2
        again = lake.arrays["killed"].snapshot()[:]
        assert is_near(again)


def test_without_the_socket_it_is_read_over_http(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    make(server, "refused", np.arange(MIB))
    calls = []

    def fetch(*_: Any) -> list[int]:
        calls.append(1)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("clachan_lake.arrays.near.fetch", fetch)
    with remote(server) as lake:
        for array in (lake.arrays["refused"], lake.arrays["refused"], lake.arrays["refused"].snapshot()):
            for _ in range(3):
                assert array[:].sum() == MIB * (MIB - 1) // 2
        # not tried at each read
        assert len(calls) == 1
        monkeypatch.undo()
        lake.nearness._until = 0.0
        assert is_near(lake.arrays["refused"][:])


def test_a_server_that_cannot_hand_files_over(server: Server) -> None:
    """A chunk that is made of too many files is read over HTTP."""
    with at_socket(server) as local:
        with local.transaction():
            array = local.arrays.create("pieces", 0, "u1", chunk_bytes=64 * MIB)
        for number in range(near.FILES + 2):
            with local.transaction():
                array.append(np.full(132_000, number, "u1"))
    answer = told(server, "pieces")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("array pieces, chunk 0: too many parts, expected those of 128")
    with remote(server) as lake:
        found = lake.arrays["pieces"]
        np.testing.assert_array_equal(found[:], np.repeat(np.arange(near.FILES + 2), 132_000))


# -- limits of the reader


FILES = """
import os, resource, sys
import numpy as np
from clachan_lake.opening import open_lake
url, token, count, before = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(before)]
with open_lake(url, token=token) as lake:
    array = lake.arrays["files"]
    found = array[:]
    mapped = open("/proc/self/maps").read().count(".blob")
    numbers = np.arange(2 * count)
    assert (found.reshape(-1, 4096).max(1) == np.where(numbers % 2, 0, 1 + numbers // 2 % 250)).all()
    print(mapped, len(os.listdir("/proc/self/fd")) - before < 20)
"""


def test_more_files_than_the_reader_may_open(server: Server) -> None:
    count = 1100
    scatter(server, "files", count)
    assert run(FILES, server.url, TOKEN, count, 0) == f"{count} True"
    # few are left: fewer at a time; none: over HTTP
    assert run(FILES, server.url, TOKEN, count, 180) == f"{count} True"
    assert run(FILES, server.url, TOKEN, count, 238).split() == ["0", "True"]


DATA = """
import resource, sys
import numpy as np
from clachan_lake.opening import open_lake
url, token = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_DATA, (256 << 20, 256 << 20))
with open_lake(url, token=token) as lake:
    array = lake.arrays["data"]
    rows = array[:]
    print(rows.nbytes >> 20, int(rows[::4096].sum()), rows[:100].tolist() == list(range(100)), rows[-1])
    lake.nearness.rule_out()
    try:
        array[:]
    except MemoryError:
        print("refused")
"""


def test_more_than_the_reader_may_allocate(server: Server) -> None:
    """RLIMIT_DATA counts private pages that can be stored to, and no shared ones for reading."""
    with at_socket(server) as lake, lake.transaction():
        array = lake.arrays.create("data", 1 << 30, "u1", chunk_bytes=2 * MIB)
        array[:100] = np.arange(100)
        array[-1] = 9
        array[10 * MIB : 30 * MIB] = 1
    assert run(DATA, server.url, TOKEN).split("\n") == [f"1024 {20 * MIB // 4096} True 9", "refused"]


def test_an_answer_that_cannot_be_is_not_mapped(server: Server) -> None:
    """A server that is wrong about its files is read over HTTP, and nothing outside the array's addresses is mapped."""
    make(server, "wrong", np.arange(MIB))
    wrong: list[dict[str, Any]] = [
        {"runs": [[0, 1 << 60, 0, 0]]},
        {"runs": [[-(1 << 40), 8 * MIB, 0, 0]]},
        {"runs": [[0, 8 * MIB, 5, 0]]},
        {"runs": [[0, 8 * MIB, 0, 4096]]},
        {"runs": [[0, 4096, None, "AAAA"]]},
        {"stop": 0},
        {"version": 5, "more": 1},
    ]
    for change in wrong:
        with remote(server) as lake:
            get = lake.get

            def changed(path: str, *a: Any, get: Any = get, change: Any = change, **parameters: Any) -> Any:
                answer = get(path, *a, **parameters)
                if path == "/arrays/files":
                    known = {**answer.json(), **change}
                    answer.json = lambda: known
                return answer

            lake.get = changed  # type: ignore[method-assign]
            array = lake.arrays["wrong"]
            assert isinstance(array, RemoteArray)
            assert array[:].sum() == MIB * (MIB - 1) // 2, change
            assert not is_near(array[:]), change
