"""SIGKILL while a process writes: every commit that it told of is there, whole, and nothing more than one besides."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clachan_lake.opening import open_lake

WRITER = """
import sys
from clachan_lake import open_lake

with open_lake(sys.argv[1]) as lake:
    if "a" not in lake.arrays:
        with lake.transaction():
            lake.arrays.create("a", (0, 2), "<i8", chunk_bytes=4096)
            lake.streams.create("s")
    number = len(lake.arrays["a"]) // 100
    while True:
        with lake.transaction():
            lake.arrays["a"].append([[number, n] for n in range(100)])
            lake.streams["s"].append(number.to_bytes(4, "big") * (10 if number % 3 else 20_000), str(number))
        number += 1
        print(number, flush=True)
"""


@pytest.mark.slow
def test_killed_while_appending(tmp_path: Path) -> None:
    chance, told = random.Random(7), 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "lake")], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout
        first = writer.stdout.readline()
        assert first
        time.sleep(chance.uniform(0.01, 0.4))
        writer.kill()
        told = max([told, int(first), *(int(line) for line in writer.stdout.read().split("\n")[:-1])])
        writer.stdout.close()
        writer.wait()
        check(tmp_path / "lake", told)


def check(folder: Path, told: int) -> None:
    with open_lake(folder) as lake:
        array, stream = lake.arrays["a"], lake.streams["s"]
        count = len(array) // 100
        assert told <= count <= told + 1
        assert len(array) % 100 == 0
        assert array[:].tolist() == [[number, n] for number in range(count) for n in range(100)]
        expected = b"".join(number.to_bytes(4, "big") * (10 if number % 3 else 20_000) for number in range(count))
        assert stream.read() == expected
        assert array.verify() == []  # type: ignore[attr-defined]
        assert stream.verify() == []  # type: ignore[attr-defined]
