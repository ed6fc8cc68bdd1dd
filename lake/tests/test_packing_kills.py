"""SIGKILL at random moments of packs and backups, while others write and read: each commit is there, and no reader's
snapshot changes."""

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from clachan_lake.errors import RemoteError
from clachan_lake.keeping.backup import restore
from clachan_lake.keeping.packing import pack
from clachan_lake.keeping.verifying import verify
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from ZEO.Exceptions import ClientDisconnected

from .making import Server, end

ROWS = 24
STATE = """
import random, sys, time
import numpy as np
from clachan_lake.opening import open_lake

ROWS = 24

def make(lake):
    if "a" not in lake.arrays:
        with lake.transaction():
            lake.arrays.create("a", (ROWS, 8192), "<i8", chunk_bytes=65536)[:] = 0
            lake.arrays.create("count", (1,), "<i8")
            lake.arrays.create("log", (0,), "<i8")

def write(lake):
    "The commit of number n sets row n % ROWS, and appends n."
    with lake.transaction():
        number = int(lake.arrays["count"][0]) + 1
        lake.arrays["count"][0] = number
        lake.arrays["a"][number % ROWS] = number
        lake.arrays["log"].append([number])
    return number

def value(number, row):
    "Of a row after the commit of that number: the last that set it."
    last = number - (number - row) % ROWS
    return max(0, last)

def check(lake, pause=0.0):
    number = int(lake.arrays["count"][0])
    for row in random.sample(range(ROWS), ROWS):
        found = lake.arrays["a"][row]
        if not (found == value(number, row)).all():
            raise AssertionError(f"commit {number}, row {row}: {set(found.tolist())}, expected {value(number, row)}")
        time.sleep(pause)
    if lake.arrays["log"][:].tolist() != list(range(1, number + 1)):
        raise AssertionError(f"commit {number}: log of {len(lake.arrays['log'])}")
    return number
"""
OWNER = (
    STATE
    + """
from clachan_lake.keeping.packing import pack

with open_lake(sys.argv[1]) as lake:
    make(lake)
    while True:
        for _ in range(random.randrange(1, 30)):
            print(write(lake), flush=True)
        pack(lake, random.choice([0, 0, 0.2]))
"""
)
READER = (
    STATE
    + """
from ZEO.Exceptions import ClientDisconnected

lake = open_lake(sys.argv[1], read_only=True, blobs=sys.argv[2])
count = 0
while True:
    try:
        lake.refresh()
        number = check(lake, 0.01)
        assert check(lake) == number
    except ClientDisconnected:
        time.sleep(0.1)
        continue
    count += 1
    print(count, flush=True)
"""
)
BACKER = (
    STATE
    + """
from pathlib import Path
from clachan_lake.keeping.backup import backup

with open_lake(sys.argv[1], read_only=True) as lake:
    while True:
        lake.refresh()
        backup(lake, Path(sys.argv[2]))
        print(int(lake.arrays["count"][0]), flush=True)
"""
)
_state: dict[str, Callable[..., int]] = {}
exec(STATE, _state)  # the same check here and in the processes


class Process:
    """A script whose lines are numbers; the last one is known."""

    def __init__(self, script: str, *arguments: str | Path) -> None:
        self.last = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines = threading.Thread(target=self._read)
        self._lines.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.last = int(line)

    def kill(self) -> None:
        """It must have lived until now."""
        alive = self.process.poll() is None
        end(self.process)
        self._lines.join()
        assert self.process.stderr
        error = self.process.stderr.read()
        self.process.stderr.close()
        assert self.process.stdout
        self.process.stdout.close()
        assert alive, error
        assert self.process.returncode == -signal.SIGKILL

    def wait(self, seconds: float = 20) -> None:
        """For its first line."""
        until = time.monotonic() + seconds
        while not self.last and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        if not self.last:
            self.kill()
        assert self.last


def check(lake: LocalLake) -> int:
    number = _state["check"](lake)
    assert list(verify(lake)) == []
    return number


def opened(target: Path, **how: object) -> LocalLake:
    lake = open_lake(target, **how)  # type: ignore[arg-type]
    assert isinstance(lake, LocalLake)
    return lake


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_owner_is_killed_while_it_packs(tmp_path: Path) -> None:
    chance, folder, told, readers = random.Random(11), tmp_path / "lake", 0, []
    try:
        for number in range(40):
            owner = Process(OWNER, folder)
            owner.wait()
            if number == 0:
                readers = [Process(READER, folder, folder / "blobs") for _ in range(2)]
            time.sleep(chance.uniform(0.05, 0.9))
            owner.kill()
            with opened(folder, read_only=True) as lake:
                found = check(lake)
                assert max(told, owner.last) <= found <= max(told, owner.last) + 1
                told = found
        counts = [reader.last for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
    assert min(counts) > 10
    with opened(folder) as lake:
        assert check(lake) == told
        pack(lake, 0)
        assert check(lake) == told
    blobs = [path.stat().st_blocks * 512 for path in folder.rglob("*.blob")]
    assert sum(blobs) <= 1.3 * ROWS * 65536


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_server_is_killed_while_a_client_packs(own_server: Server) -> None:
    chance, reader, told = random.Random(12), None, 0
    blobs = own_server.folder / "blobs"
    interrupted = 0
    try:
        for number in range(25):
            own_server.start()
            with opened(own_server.socket, blobs=blobs) as lake:
                _state["make"](lake)
                assert check(lake) == told
                for _ in range(chance.randrange(5, 40)):
                    told = _state["write"](lake)
                if number == 0:
                    reader = Process(READER, own_server.socket, blobs)
                    reader.wait()
                killer = threading.Timer(chance.uniform(0, 0.15), own_server.kill)
                killer.start()
                with suppress(RemoteError, ClientDisconnected):
                    for _ in range(20):
                        pack(lake, 0)
                    raise AssertionError("pack: still there after twenty, expected to be killed")
                interrupted += 1
                killer.join()
        own_server.start()
        assert reader
        before = reader.last
        time.sleep(5)
        assert reader.last > before > 5
    finally:
        if reader:
            reader.kill()
    assert interrupted == 25
    with opened(own_server.socket, blobs=blobs) as lake:
        assert check(lake) == told


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_backup_is_killed_while_the_owner_writes_and_packs(tmp_path: Path) -> None:
    chance, folder, target, told = random.Random(13), tmp_path / "lake", tmp_path / "backup", 0
    owner = Process(OWNER, folder)
    owner.wait()
    try:
        first = Process(BACKER, folder, target)
        first.wait()
        told = first.last
        first.kill()
        for _ in range(40):
            backer = Process(BACKER, folder, target)
            time.sleep(chance.uniform(0.4, 1.2))
            backer.kill()
            shutil.rmtree(tmp_path / "restored", ignore_errors=True)
            restore(target, tmp_path / "restored")
            with opened(tmp_path / "restored", read_only=True) as lake:
                found = check(lake)
            assert found >= max(told, backer.last)
            told = found
    finally:
        owner.kill()
    assert told > 100
