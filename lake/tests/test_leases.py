"""Which snapshots are in use: told by locks, whatever becomes of the processes that hold them."""

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from clachan_lake.keeping.leases import NAME, Lease, oldest
from clachan_lake.opening import open_lake
from ZODB.blob import FilesystemHelper
from ZODB.utils import p64, u64

from .making import end, wait_for


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    FilesystemHelper(str(tmp_path / "blobs"), "bushy").create()
    return tmp_path / "blobs"


def test_the_smallest_of_all_is_the_oldest(blobs: Path) -> None:
    assert oldest(blobs) is None
    first, second = Lease(blobs, p64(7)), Lease(blobs, p64(5))
    assert oldest(blobs) == p64(5)
    second.hold(p64(9))
    assert oldest(blobs) == p64(7)
    first.hold(p64(12))
    assert oldest(blobs) == p64(9)
    second.release()
    second.release()
    assert oldest(blobs) == p64(12)
    second.hold(p64(3))
    assert oldest(blobs) == p64(3)
    second.hold(p64(3))
    assert oldest(blobs) == p64(3)
    first.release()
    second.release()
    assert oldest(blobs) is None
    assert (blobs / NAME).stat().st_size == 0


def test_of_very_many(blobs: Path) -> None:
    """Numbers as they are: neighbours, the same ones, the smallest and the greatest."""
    chance = random.Random(4)
    numbers = [chance.randrange(1 << 58, (1 << 58) + 300) for _ in range(300)] + [0, 1, (1 << 63) - 2]
    leases = [Lease(blobs, p64(number)) for number in numbers]
    for _ in range(200):
        at = chance.randrange(len(leases))
        numbers[at] += chance.randrange(3) if numbers[at] < 1 << 62 else 0
        leases[at].hold(p64(numbers[at]))
        assert oldest(blobs) == p64(min(numbers))
    while leases:
        leases.pop(at := numbers.index(min(numbers))).release()
        numbers.pop(at)
        assert oldest(blobs) == (p64(min(numbers)) if numbers else None)


def test_a_lease_that_nobody_refers_to_is_none(blobs: Path) -> None:
    lease = Lease(blobs, p64(7))
    assert oldest(blobs) == p64(7)
    del lease
    assert oldest(blobs) is None


def test_without_a_blob_folder_there_is_no_lease(tmp_path: Path) -> None:
    lease = Lease(None, p64(7))
    lease.hold(p64(8))
    lease.release()
    assert oldest(None) is None
    assert oldest(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


HOLDER = """
import os, sys, time
from pathlib import Path
from clachan_lake.keeping.leases import Lease

lease = Lease(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
PREPARE
print(os.getpid(), flush=True)
time.sleep(60)
"""


def holder(blobs: Path, prepare: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER.replace("PREPARE", prepare), str(blobs), p64(5).hex()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_holds_nothing(blobs: Path) -> None:
    with holder(blobs) as process:
        try:
            assert process.stdout
            assert int(process.stdout.readline()) == process.pid
            assert oldest(blobs) == p64(5)
        finally:
            end(process)
    assert oldest(blobs) is None


def test_a_child_keeps_what_its_parent_had(blobs: Path) -> None:
    """It has the parent's mapped files: neither its parent's end nor its parent's next snapshot takes them away."""
    for prepare in ("if os.fork(): os._exit(0)", "if os.fork(): lease.hold(b'12345678'); os._exit(0)"):
        with holder(blobs, prepare) as parent:
            assert parent.stdout
            child = int(parent.stdout.readline())
            try:
                assert parent.wait() == 0
                assert child != parent.pid
                assert oldest(blobs) == p64(5)
            finally:
                os.kill(child, 9)
        wait_for(lambda: oldest(blobs) is None, "end of the child's lease")


def test_a_child_neither_releases_nor_changes_its_parents(blobs: Path) -> None:
    lease = Lease(blobs, p64(5))
    for steps in ([4, 9], [9, 4], []):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                found = []
                for number in steps:
                    lease.hold(p64(number))
                    found.append(oldest(blobs))
                lease.release()
                code = 0 if found == [p64(min(5, number)) for number in steps] and oldest(blobs) == p64(5) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert oldest(blobs) == p64(5)
    lease.hold(p64(6))
    assert oldest(blobs) == p64(6)
    lease.release()
    assert oldest(blobs) is None


def test_no_session_is_ever_without_its_lease(blobs: Path) -> None:
    stop = threading.Event()
    found: list[bytes | None] = []
    kept = Lease(blobs, p64(1 << 40))

    def look() -> None:
        while not stop.is_set():
            found.append(oldest(blobs))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        lease = Lease(blobs, p64(1))
        for number in range(2, 20_000):
            lease.hold(p64(number))
        assert oldest(blobs) == p64(19_999)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    kept.release()
    seen = [u64(tid) for tid in found if tid is not None]
    assert len(seen) == len(found) > 100
    assert seen[-1] < 1 << 40


READER = """
import logging, os, sys, time
from pathlib import Path
from clachan_lake.keeping.leases import Lease
logging.basicConfig(format="%(message)s")
os.setgroups([])
os.setuid(65534)
for number in range(3):
    lease = Lease(Path(sys.argv[1]), b"\\0\\0\\0\\0\\0\\0\\0\\5")
    lease.hold(b"\\0\\0\\0\\0\\0\\0\\0\\6")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.root
@pytest.mark.parametrize("made", [True, False])
def test_who_may_read_the_blobs_can_hold_one(blobs: Path, made: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: becoming another user needs root")
    for folder in (blobs, *blobs.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    before = os.umask(0o077)
    try:
        if made:
            Lease(blobs, p64(9)).release()
    finally:
        os.umask(before)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(blobs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout
        assert reader.stdout.readline() == "held\n"
        found = oldest(blobs)
        _, said = reader.communicate()
    assert found == (p64(6) if made else None), said
    assert said.count("expected to lock a file; a pack may end this snapshot") == (0 if made else 1)


def test_the_file_does_not_disturb_zodb(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        lake.streams.create("s").append(b"x" * 100_000)
    helper = FilesystemHelper(str(tmp_path / "lake/blobs"))
    assert helper.layout_name == "bushy"
    assert (tmp_path / "lake/blobs" / NAME).is_file()
    assert len([oid for oid, _path in helper.listOIDs()]) == 1
    with open_lake(tmp_path / "lake") as lake:
        assert oldest(tmp_path / "lake/blobs") == lake.tid  # type: ignore[attr-defined]
        assert lake.streams["s"].read() == b"x" * 100_000
    assert oldest(tmp_path / "lake/blobs") is None
