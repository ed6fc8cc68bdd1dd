"""SIGKILL while arrays are written: each commit that was told of is there, each is whole, and no reader sees one move.

A round starts the writers, lets them work for a moment, and kills them (and the server) at another; then it opens the
lake and looks. Two writers commit counters, each through chunks, single bytes and an array that is cut; and both append
to one array.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.opening import open_lake

from .making import Server, end

CHUNK = 4096
SEED = 20261126
BOTH = ("one", "two")
WRITER = """
import signal, sys, time
import numpy as np
from ZODB.POSException import ConflictError
from clachan_lake import open_lake

target, blobs, name, chosen = sys.argv[1:]
CHUNK = 4096


def change(lake, number):
    a, log = lake.arrays[name], lake.arrays["log"]
    kind = number % 4 if chosen == "all" else int(chosen)
    a[number % 3 * CHUNK : (number % 3 + 2) * CHUNK] = number  # whole chunks
    a[6 * CHUNK + 5] = number  # single values
    a[9 * CHUNK + 9] = number
    if kind == 1:
        lake.savepoint()
    if kind == 2:
        lake.arrays[name + " cut"].resize(number % 50 * 100 + 1)
    lake.arrays[name + " cut"][:] = number
    log.append(np.full((700 if kind == 3 else 90, 2), (name == "two", number), "i8"))
    a[11 * CHUNK + 1] = number


with open_lake(target, blobs=blobs) as lake:
    number = int(lake.arrays[name][6 * CHUNK + 5])
    print("from", number, flush=True)
    while True:
        number += 1
        while True:
            try:
                with lake.transaction():
                    change(lake, number)
                break
            except ConflictError:
                pass
        print(number, flush=True)
"""
READER = """
import hashlib, sys, time
from clachan_lake import open_lake

def digest(views):
    found = hashlib.sha256()
    for view in views:
        found.update(view.tobytes())
    return found.hexdigest()

with open_lake(sys.argv[1], read_only=True) as lake:
    while True:
        views = [lake.arrays[name][:] for name in sorted(lake.arrays)]
        first = digest(views)
        for _ in range(5):
            time.sleep(0.01)
            assert digest(views) == first, "a snapshot changed"
            assert digest([lake.arrays[name][:] for name in sorted(lake.arrays)]) == first, "a snapshot changed"
        print("unchanged", flush=True)
        lake.refresh()
"""


def make(folder: Path) -> None:
    with open_lake(folder) as lake, lake.transaction():
        lake.arrays.create("log", (0, 2), "i8", chunk_bytes=CHUNK)
        for name in BOTH:
            lake.arrays.create(name, 12 * CHUNK, "i8", chunk_bytes=CHUNK)
            lake.arrays.create(f"{name} cut", 100, "i8", chunk_bytes=CHUNK)


class Child:
    """A script in a process, and the lines that it says."""

    def __init__(self, script: str, *arguments: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.fault = ""

    def wait_for_line(self) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.close()
        self.lines.append(line)

    def kill(self) -> None:
        """While it runs; fails when it had ended by itself."""
        self.process.send_signal(signal.SIGKILL)
        status = self.process.wait()
        self.close()
        assert status == -signal.SIGKILL, self.fault

    def close(self) -> str:
        end(self.process)
        if self.process.stdout and self.process.stderr and not self.process.stdout.closed:
            self.lines += self.process.stdout.read().split("\n")[:-1]
            self.fault = self.process.stderr.read()
            self.process.stdout.close()
            self.process.stderr.close()
        return self.fault

    @property
    def told(self) -> int:
        """The last number it told of."""
        return max((int(line.rpartition(" ")[2]) for line in self.lines), default=0)


@contextmanager
def running(*children: Child) -> Iterator[tuple[Child, ...]]:
    try:
        yield children
    finally:
        for child in children:
            child.close()


def check(folder: Path, acknowledged: dict[str, int]) -> dict[str, int]:
    """Each writer's commits: as many as it told of, or one more; the numbers."""
    found = {}
    with open_lake(folder) as lake:
        for name in BOTH:
            a, cut = lake.arrays[name], lake.arrays[f"{name} cut"]
            number = found[name] = int(a[6 * CHUNK + 5])
            assert acknowledged.get(name, 0) <= number <= acknowledged.get(name, 0) + 1
            assert [a[9 * CHUNK + 9], a[11 * CHUNK + 1]] == [number, number]
            assert set(a[number % 3 * CHUNK : (number % 3 + 2) * CHUNK].tolist()) == {number}
            assert set(cut[:].tolist()) <= {number}
        log = lake.arrays["log"][:]
        for index, name in enumerate(BOTH):
            numbers, counts = np.unique(log[log[:, 0] == index][:, 1], return_counts=True)
            assert numbers.tolist() == list(range(1, found[name] + 1)), f"appends of {name}: lost, or there twice"
            assert set(counts.tolist()) <= {90, 700}
        for name in lake.arrays:
            assert lake.arrays[name].verify() == [], name
    return found


def let_work(children: tuple[Child, ...], chance: random.Random) -> None:
    """Until a moment in the first commits, or in later ones."""
    for child in children:
        child.wait_for_line()
        for _ in range(chance.choice([0, 1, 2, 5])):
            child.wait_for_line()
    time.sleep(chance.expovariate(10))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Child]:
    """Beside all kills: it reads the folder, refreshes, and ends when something moves under it."""
    make(tmp_path / "lake")
    with running(Child(READER, tmp_path / "lake")) as (child,):
        child.wait_for_line()
        yield child


def check_reader(child: Child) -> None:
    child.kill()
    assert child.fault == ""
    assert child.lines.count("unchanged") > 1


def kill_embedded(folder: Path, rounds: int, chosen: str) -> None:
    chance = random.Random(f"{SEED} {chosen} {rounds}")
    numbers: dict[str, int] = {}
    for number in range(rounds):
        name = BOTH[number % 2]
        with running(Child(WRITER, folder, folder / "blobs", name, chosen)) as (writer,):
            let_work((writer,), chance)
            writer.kill()
        numbers[name] = max(numbers.get(name, 0), writer.told)
        numbers = check(folder, numbers)
    assert min(numbers.values()) > 0


def kill_served(server: Server, rounds: int) -> None:
    """In turn: the writers and then the server are killed; the server ends after them; it is killed under them."""
    chance = random.Random(f"{SEED} served {rounds}")
    numbers: dict[str, int] = {}
    for number in range(rounds):
        server.start()
        made = [Child(WRITER, server.socket, server.folder / "blobs", name, "all") for name in BOTH]
        with running(*made) as writers:
            let_work(writers, chance)
            if number % 3 == 2:
                server.kill()
            else:
                for writer in chance.sample(writers, len(writers)):
                    writer.kill()
                    time.sleep(chance.choice([0, 0, 0.02]))
        server.stop() if number % 3 == 1 else server.kill()
        for name, writer in zip(BOTH, writers, strict=True):
            numbers[name] = max(numbers.get(name, 0), writer.told)
        numbers = check(server.folder, numbers)
    assert min(numbers.values()) > 0


@pytest.mark.slow
def test_writers_are_killed_that_have_the_folder(tmp_path: Path, reader: Child) -> None:
    kill_embedded(tmp_path / "lake", 6, "all")
    check_reader(reader)


@pytest.mark.slow
def test_writers_and_the_server_are_killed(tmp_path: Path, reader: Child, own_server: Server) -> None:
    kill_served(own_server, 4)
    check_reader(reader)


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.parametrize("chosen", ["0", "1", "2", "3", "all"], ids=["write", "savepoint", "resize", "append", "all"])
def test_writers_are_killed_that_have_the_folder_a_hundred_times(tmp_path: Path, reader: Child, chosen: str) -> None:
    kill_embedded(tmp_path / "lake", 100, chosen)
    check_reader(reader)


@pytest.mark.heavy
@pytest.mark.long
def test_writers_and_the_server_are_killed_a_hundred_times(tmp_path: Path, reader: Child, own_server: Server) -> None:
    kill_served(own_server, 100)
    check_reader(reader)
