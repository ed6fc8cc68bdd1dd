"""A database of the server's own process beside its clients: each sees at once what the other has committed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clachan_lake import database
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.storage.serving import LakeServer
from ZODB.POSException import ConflictError

COMMITS = 60


@contextmanager
def serving(folder: Path) -> Iterator[tuple[LocalLake, LakeServer]]:
    """As `serve.py` does it."""
    storage = database.own(folder / "lake")
    lake = LocalLake(database.database(storage), close_database=False)
    server = LakeServer(database.socket_address(folder / "s"), storage)
    thread = threading.Thread(target=server.loop)
    thread.start()
    try:
        yield lake, server
    finally:
        lake.close()
        server.close()
        thread.join()
        storage.close()


def client(folder: Path) -> LocalLake:
    found = open_lake(folder / "s", blobs=folder / "lake" / "blobs")
    assert isinstance(found, LocalLake)
    return found


@pytest.mark.parametrize("size", [10, 100_000])
def test_each_sees_at_once_what_the_other_has_committed(tmp_path: Path, size: int) -> None:
    with serving(tmp_path) as (inside, _), client(tmp_path) as outside, inside.session() as reading:
        with inside.transaction():
            inside.streams.create("s")
        for number in range(COMMITS):
            writer, reader = (inside, outside) if number % 2 else (outside, inside)
            with writer.transaction():
                assert writer.streams["s"].append(number.to_bytes(2) * (size // 2), f"c{number}")
            for other in (reader, reading):
                other.refresh()
                assert other.streams["s"].size == (number + 1) * size
                assert other.streams["s"].read(number * size, 2) == number.to_bytes(2)
        for lake in (inside, outside):
            assert lake.streams["s"].verify() == []  # type: ignore[attr-defined]


def test_writers_inside_and_outside_at_the_same_time(tmp_path: Path) -> None:
    """All that was committed is there, in one order; every session ends with the same."""
    wrong: list[BaseException] = []

    def write(lake: Any, who: str) -> None:
        try:
            for number in range(COMMITS):
                while True:
                    try:
                        with lake.transaction():
                            stream = lake.streams["s"]
                            assert stream.size == len(stream.read())
                            stream.append(f"{who}{number:03};".encode())
                        break
                    except ConflictError:
                        continue
        except BaseException as error:
            wrong.append(error)

    with serving(tmp_path) as (inside, _):
        with inside.transaction():
            inside.streams.create("s")
        sessions = [inside.session(), inside.session(), client(tmp_path), client(tmp_path)]
        threads = [threading.Thread(target=write, args=(lake, who)) for lake, who in zip(sessions, "abcd", strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert wrong == []
        found = []
        for lake in sessions:
            lake.refresh()
            found.append(lake.streams["s"].read())
            lake.close()
    assert len(set(found)) == 1
    written = found[0].split(b";")[:-1]
    assert sorted(written) == sorted(f"{who}{n:03}".encode() for who in "abcd" for n in range(COMMITS))
    for who in b"abcd":
        numbers = [int(one[1:]) for one in written if one[0] == who]
        assert numbers == sorted(numbers)


def test_clients_come_and_go_while_the_process_commits(tmp_path: Path) -> None:
    """Who connects in the middle of it sees all that was committed before."""
    with serving(tmp_path) as (inside, _):
        with inside.transaction():
            inside.streams.create("s")
        ended, committed = threading.Event(), [0]

        def write() -> None:
            with inside.session() as lake:
                while not ended.is_set():
                    with lake.transaction():
                        lake.streams["s"].append(b"x")
                    committed[0] += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(15):
                with client(tmp_path) as lake:
                    for _ in range(3):
                        before = committed[0]
                        lake.refresh()
                        size = lake.streams["s"].size
                        assert size >= before
                        # its end only: the process would append faster than a client reads all of it
                        assert lake.streams["s"].read(max(0, size - 100)) == b"x" * min(size, 100)
        finally:
            ended.set()
            thread.join()
