"""What a process has too few of for an array: mappings, addresses, open files, memory; and forks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
BEGIN = """
import os, resource, sys
import numpy as np
from clachan_lake import open_lake
from clachan_lake.errors import MappingError
folder = sys.argv[1]
MIB = 1 << 20

def refused(call):
    try:
        call()
    except MappingError as error:
        assert isinstance(error, MemoryError)
        return str(error)
    raise AssertionError("not refused")
"""


def run(script: str, *arguments: Any, before: str = "", method: str = "") -> str:
    """What the script says; it runs in a process of its own, begun by the shell commands `before`."""
    command = ["sh", "-c", f'{before}\nexec "$@"', "sh", sys.executable, "-W", "error", "-c", BEGIN + script]
    environment = {**os.environ, "CLACHAN_LAKE_PAGES": method}
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-3000:]}"
    return done.stdout.strip()


# -- mappings, addresses, files

MAPPINGS = """
COUNT = 66_000
with open_lake(folder) as lake:
    with lake.transaction():
        lake.arrays.create("a", COUNT * 4096, "u1", chunk_bytes=4096)[:4096] = 9
        lake.arrays.create("b", 100, "u1")[:] = 1
    with lake.transaction():
        # as if each chunk had a file of its own
        opened = lake.arrays["a"]._opened
        entry = opened.table.entry(0)
        for number in range(1, COUNT):
            opened.table.put(number, entry)
with open_lake(folder) as lake:
    a = lake.arrays["a"]
    print(refused(lambda: a[:]))
    # the process goes on, and so does the array
    assert np.ones(10**7).sum() == 10**7
    assert lake.arrays["b"][:].sum() == 100
    assert a[: 100 * 4096].sum() == 9 * 100 * 4096
    with lake.transaction():
        a[5] = 1
    del a
with open_lake(folder) as lake:
    assert lake.arrays["a"][:10].tolist() == [9, 9, 9, 9, 9, 1, 9, 9, 9, 9]
"""


@pytest.mark.slow
def test_more_pieces_than_a_process_may_map(tmp_path: Path) -> None:
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most != 65_530:
        pytest.skip(f"this machine cannot: vm.max_map_count is {most}, not the kernel's own 65,530")
    assert run(MAPPINGS, tmp_path / "lake").endswith(
        ", expected less than 61434; `clachan-lake pack --merge` needs fewer, or set `sysctl vm.max_map_count` higher"
    )


ADDRESSES = """
with open_lake(folder) as lake:
    with lake.transaction():
        lake.arrays.create("small", 100 * MIB, "u1")[-5:] = 3
        lake.arrays.create("large", 4096 * MIB, "u1")
resource.setrlimit(resource.RLIMIT_AS, (2048 * MIB, 2048 * MIB))
with open_lake(folder) as lake:
    assert lake.arrays["small"][:].sum() == 15
    print(refused(lambda: lake.arrays["large"][:]))
    print(refused(lambda: lake.arrays["large"][4000 * MIB]))
    with lake.transaction():
        lake.arrays["small"][7] = 1
    assert lake.arrays["small"][:].sum() == 16
"""


def test_fewer_addresses_than_an_array_has_bytes(tmp_path: Path) -> None:
    for line in run(ADDRESSES, tmp_path / "lake").split("\n"):
        assert "bytes: refused by the kernel, expected room for it; see `ulimit -v`" in line


FILES = """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with open_lake(folder) as lake:
    with lake.transaction():
        a = lake.arrays.create("a", 500 * 4096, "u1", chunk_bytes=4096)
        for number in range(0, 500, 2):
            a[number * 4096 : (number + 1) * 4096] = number % 251
    expected = [number % 251 if number % 2 == 0 else 0 for number in range(500)]
    assert a[:].reshape(500, 4096).max(1).tolist() == expected
    with lake.transaction():
        for number in range(0, 500, 2):
            a[number * 4096 : (number + 1) * 4096] = 1
        lake.savepoint()
    assert a[:].sum() == 250 * 4096
with open_lake(folder, read_only=True) as lake:
    assert lake.arrays["a"][:].sum() == 250 * 4096
    assert lake.arrays["a"].verify() == []
print("done")
"""


def test_a_transaction_writes_more_files_than_it_may_open(tmp_path: Path) -> None:
    assert run(FILES, tmp_path / "lake") == "done"


GROWTH = """
with open_lake(folder) as lake:
    with lake.transaction():
        lake.arrays.create("a", 1000, "u1", chunk_bytes=4 * MIB)
    lake.begin()
    lake.arrays["a"][5] = 1
    lake.arrays["a"].resize(1 << 37)
    print(refused(lambda: lake.arrays["a"][(1 << 37) - 1]))
    lake.commit()
    assert lake.arrays["a"][5] == 1
    assert lake.arrays["a"][(1 << 37) - 1] == 0
    assert lake.arrays["a"].verify() == []
"""


def test_an_array_that_outgrows_its_addresses_loses_no_store(tmp_path: Path) -> None:
    said = run(GROWTH, tmp_path / "lake")
    assert said.startswith("array a: ")
    assert said.endswith("while views of it are in use, or stores are not committed; commit and let go of the views")


# -- fork

FORK = """
with open_lake(folder) as lake:
    with lake.transaction():
        lake.arrays.create("a", 10_000, "i4", chunk_bytes=4096)[:] = 7
    a = lake.arrays["a"]
    view = a[:]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert view.sum() == 70_000 and a[:10].tolist() == [7] * 10
            for write in (lake.begin, lake.refresh, lambda: lake.transaction().__enter__()):
                try:
                    write()
                except RuntimeError as error:
                    assert str(error) == (
                        f"lake: opened by process {os.getppid()}, expected to be opened anew by its fork {os.getpid()}"
                    )
                else:
                    raise AssertionError("not refused")
            lake.close()
            with open_lake(folder, read_only=True) as other:
                assert other.arrays["a"][:].sum() == 70_000
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    # what the child closed is the parent's still
    try:
        open_lake(folder)
    except BlockingIOError:
        pass
    else:
        raise AssertionError("the folder's lock is gone")
    lake.begin()
    a[:] = 8
    if (child := os.fork()) == 0:
        lake.close()
        os._exit(0)
    os.waitpid(child, 0)
    lake.commit()
    assert view.sum() == 80_000 and a.verify() == []
print("done")
"""


def test_a_fork_reads_and_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    assert run(FORK, tmp_path / "lake") == "done"


# -- a file system in memory

MEMORY = """
rng = np.random.default_rng(3)
model = np.zeros((0, 3), "i4")
with open_lake(folder) as lake:
    with lake.transaction():
        lake.arrays.create("a", (0, 3), "i4", chunk_bytes=4096)
        lake.arrays.create("sparse", 64 * MIB, "u1")
    for number in range(60):
        with lake.transaction():
            a = lake.arrays["a"]
            rows = rng.integers(0, 99, (int(rng.integers(1, 900)), 3), "i4")
            a.append(rows)
            model = np.concatenate([model, rows])
            a[number : number + 700] = number
            model[number : number + 700] = number
            if number % 7 == 3:
                lake.savepoint()
            a[number::5, 1] = -number
            model[number::5, 1] = -number
            lake.arrays["sparse"][number * MIB] = 1
        np.testing.assert_array_equal(a[:], model)
    assert lake.arrays["sparse"][: 2 * MIB].sum() == 2
with open_lake(folder, read_only=True) as lake:
    np.testing.assert_array_equal(lake.arrays["a"][:], model)
    assert all(lake.arrays[name].verify() == [] for name in lake.arrays)
    assert lake.arrays["sparse"][:].sum() == 60
print("done")
"""


@contextmanager
def memory_folder() -> Iterator[Path]:
    folder = Path(f"/dev/shm/clachan-lake-{os.getpid()}")
    if not folder.parent.is_dir():
        pytest.skip("this machine cannot: no /dev/shm")
    folder.mkdir()
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-r", folder], check=True)


@pytest.mark.parametrize("method", ["scan", "table"])
def test_a_folder_in_memory(method: str) -> None:
    with memory_folder() as folder:
        assert run(MEMORY, folder / "lake", method=method) == "done"


# -- data larger than memory

LARGER = """
kind = sys.argv[2]
rng = np.random.default_rng(1)
block = rng.integers(0, 255, 8 * MIB, "u1")
SIZE = 256 * MIB

def whole(lake):
    a = lake.arrays.create("a", SIZE, "u1")
    for start in range(0, SIZE, len(block)):
        a[start : start + len(block)] = block

def converted(lake):
    a = lake.arrays.create("a", SIZE, "u1")
    a[:] = 5

def appended(lake):
    a = lake.arrays.create("a", 0, "u1")
    for start in range(0, SIZE, len(block)):
        a.append(block)

def parts(lake):
    a = lake.arrays.create("a", SIZE, "u1")
    for start in range(0, SIZE, MIB):
        a[start + 1 : start + MIB - 1] = block[1 : MIB - 1]
        if start % (8 * MIB) == 7 * MIB:
            lake.savepoint()

def rows(lake):
    a = lake.arrays.create("a", 0, "u1")
    for start in range(0, SIZE, MIB):
        a.append(block[:MIB])
        if start % (8 * MIB) == 7 * MIB:
            lake.savepoint()

with open_lake(folder) as lake:
    with lake.transaction():
        globals()[kind](lake)
with open_lake(folder) as lake:
    a = lake.arrays["a"]
    total = 0
    for first, rows in a.blocks(4 * MIB):
        total += int(rows.sum(dtype="i8"))
    view = a[:]
    assert int(view.sum(dtype="i8")) == total
    assert a.verify() == []
    if kind in ("whole", "appended"):
        assert total == 32 * int(block.sum(dtype="i8"))
    elif kind == "converted":
        assert total == 5 * SIZE
    elif kind == "rows":
        assert total == 256 * int(block[:MIB].sum(dtype="i8"))
    else:
        assert total == 256 * int(block[1 : MIB - 1].sum(dtype="i8"))
print("done")
"""


@contextmanager
def memory_limit(size: int) -> Iterator[str]:
    """The shell command by which a process puts itself under the limit."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    is_first = (first / "memory.limit_in_bytes").exists()
    group = (first if is_first else second) / f"clachan-lake-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if is_first else "memory.max")).write_text(str(size))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"this machine cannot: limit memory by control groups: {error}")
    try:
        yield f"echo $$ > {group}/cgroup.procs"
    finally:
        group.rmdir()


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("kind", ["whole", "converted", "appended", "parts", "rows"])
def test_four_times_the_memory_is_written_and_read(tmp_path: Path, kind: str) -> None:
    with memory_limit(64 * MIB) as enter:
        assert run(LARGER, tmp_path / "lake", kind, before=enter) == "done"
