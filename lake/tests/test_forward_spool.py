"""What the forwarder keeps of records until the lake has them, and how it takes the machine's metrics."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clachan_lake.forward.metrics import Sampler
from clachan_lake.forward.spool import Spool

METRICS = {
    "time",
    "node",
    "cpu",
    "cpus",
    "load",
    "memory_bytes",
    "memory_available_bytes",
    "swap_used_bytes",
    "disk_bytes",
    "disk_free_bytes",
    "disk_read_bytes",
    "disk_written_bytes",
    "network_received_bytes",
    "network_sent_bytes",
}


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", 1000)
    yield made
    made.close()


# the spool


def test_a_chunk_that_was_sealed_stays_as_it_is(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 1000)
    spool.add("a", b"1\n")
    spool.add("b", b"x\n")
    spool.add("a", b"2\n")
    assert spool.due("a", 60) is None
    first = spool.due("a", 0)
    assert first
    assert (first.tag, first.data) == ("a", b"1\n2\n")
    spool.add("a", b"3\n")
    spool.close()
    spool = Spool(tmp_path / "spool", 1000)
    assert spool.due("a", 60) == first
    assert spool.tags() == ["a", "b"]
    spool.done(first)
    assert spool.due("a", 60) is None
    second = spool.due("a", 0)
    assert second
    assert (second.data, second.id != first.id) == (b"3\n", True)
    spool.done(second)
    assert (spool.tags(), spool.filling().bytes) == (["b"], 2)
    spool.close()


def test_equal_lines_at_other_times_are_other_chunks(spool: Spool) -> None:
    names = set()
    for _ in range(3):
        spool.add("a", b"same\n")
        chunk = spool.due("a", 0)
        assert chunk
        names.add(chunk.id)
        spool.done(chunk)
    assert len(names) == 3


def test_full_it_keeps_the_oldest_and_counts_the_loss(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 10)
    assert [spool.add("a", b"%03d\n" % number) for number in range(5)] == [True, True, False, False, False]
    assert (spool.filling().lines, spool.filling().lost) == (2, 3)
    spool.close()
    spool = Spool(tmp_path / "spool", 10)
    chunk = spool.due("a", 0)
    assert chunk
    assert (chunk.data, spool.filling().lost) == (b"000\n001\n", 3)
    assert spool.filling().lost_at == pytest.approx(time.time(), abs=60)
    spool.done(chunk)
    assert spool.add("a", b"005\n")
    spool.close()


def test_many_lines_do_not_wait(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 10 << 20)
    spool.add_seen("a", [(str(n), "2026", b"%d\n" % n) for n in range(5000)], "")
    first = spool.due("a", 3600)
    assert first
    assert first.data.count(b"\n") == 4096
    spool.done(first)
    assert spool.due("a", 3600) is None
    spool.add("b", b"x" * 200_000 + b"\n")
    spool.add("b", b"y" * 200_000 + b"\n")
    second = spool.due("b", 3600)
    assert second
    assert second.data == b"x" * 200_000 + b"\n"
    spool.close()


def test_what_was_seen_is_not_kept_again(spool: Spool) -> None:
    assert spool.add_seen("u", [("1", "2026-01-01", b"1\n"), ("2", "2026-01-03", b"2\n")], "") == 2
    assert spool.add_seen("u", [("2", "2026-01-03", b"2\n"), ("3", "2026-01-02", b"3\n")], "2026-01-02") == 1
    assert spool.latest() == "2026-01-03"
    chunk = spool.due("u", 0)
    assert chunk
    assert chunk.data == b"1\n2\n3\n"
    # older than what is remembered
    assert spool.add_seen("u", [("1", "2026-01-01", b"1\n")], "") == 1


def test_a_full_disk_counts_as_loss_and_keeps_the_rest(spool: Spool) -> None:
    assert spool.add("a", b"kept\n")
    # no page more than the file has
    pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count = {pages}")
    spool._maximum = 1 << 30
    assert not spool.add("a", b"z" * 100_000)
    with pytest.raises(OSError, match="spool: database or disk is full, expected to write it"):
        spool.add_seen("u", [("1", "2026", b"z" * 100_000)], "")
    assert (spool.filling().lines, spool.filling().bytes, spool.filling().lost) == (1, 5, 1)
    spool._db.execute("PRAGMA max_page_count = 1000000")
    assert spool.add_seen("u", [("1", "2026", b"z")], "") == 1
    chunk = spool.due("a", 0)
    assert chunk
    assert chunk.data == b"kept\n"


def test_two_forwarders_do_not_share_a_spool(spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="in use, expected no other forwarder on it"):
        Spool(tmp_path / "spool", 10)
    (tmp_path / "other").write_bytes(b"no database" * 100)
    with pytest.raises((OSError, sqlite3.DatabaseError), match="not a database"):
        Spool(tmp_path / "other", 10)


# metrics


def test_the_metrics_are_this_machines(tmp_path: Path) -> None:
    sampler = Sampler("here", tmp_path)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    line = sampler.sample()
    assert line.endswith(b"}\n")
    found = json.loads(line)
    assert set(found) == METRICS
    assert found["node"] == "here"
    assert 0 < found["cpu"] <= 1
    assert found["cpus"] == os.cpu_count()
    assert found["time"] == pytest.approx(time.time(), abs=5)
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < found["memory_available_bytes"] <= found["memory_bytes"]
    assert found["disk_bytes"] == shutil.disk_usage(tmp_path).total


def test_they_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "stat").write_text("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3 4\n")
    (proc / "loadavg").write_text("0.75 0.5 0.1 1/100 999\n")
    (proc / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 400 kB\nSwapTotal: 9 kB\nSwapFree: 5 kB\n"
    )
    disks = [
        "8 0 sda 1 0 10 0 1 0 20 0",
        "8 1 sda1 1 0 10 0 1 0 20 0",
        "259 0 nvme0n1 1 0 1 0 1 0 2 0",
        "7 0 loop0 1 0 9 0 1 0 9 0",
    ]
    (proc / "diskstats").write_text("\n".join(disks) + "\n")
    net = [
        "Inter-| Receive",
        " face |bytes",
        "    lo: 5 0 0 0 0 0 0 0 5 0",
        "  eth0: 7 0 0 0 0 0 0 0 8 0",
        "wlan0:1 0 0 0 0 0 0 0 2 0",
    ]
    (proc / "net/dev").write_text("\n".join(net) + "\n")
    sampler = Sampler("n", tmp_path, proc)
    (proc / "stat").write_text("cpu  130 0 120 740 110 0 0 0 50 0\n")
    found = sampler.record()
    assert (found["cpu"], found["load"]) == (0.5, 0.75)
    assert (found["memory_bytes"], found["memory_available_bytes"], found["swap_used_bytes"]) == (1024000, 409600, 4096)
    assert (found["disk_read_bytes"], found["disk_written_bytes"]) == (11 * 512, 22 * 512)
    assert (found["network_received_bytes"], found["network_sent_bytes"]) == (8, 10)
    assert sampler.record()["cpu"] == 0
