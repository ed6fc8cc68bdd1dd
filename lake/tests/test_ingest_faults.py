"""Ingestion with a bad network, kills, power cuts and full disks: what was acknowledged is stored, and stored once."""

import asyncio
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from clachan_lake.opening import open_lake

from . import cutting, ingesting
from .flaky import EVENT_BYTES, FATES, Proxy, Sender
from .making import Server
from .test_power_cut import Unpickler

SEED = 20261126


async def send(server: Server, events: int, each: int, kills: int) -> tuple[Sender, Proxy]:
    """All events through the bad network, while the server is killed and started again."""
    chance = random.Random(SEED)
    async with Proxy(lambda: server.port, chance, 0.04) as proxy:
        sender = Sender(proxy.port, chance, events, each)
        sending = asyncio.create_task(sender.run(restarts=3))
        for number in range(kills):
            goal = sender.count * (number + 1) // (kills + 1)
            while len(sender.acknowledged) < goal and not sending.done():
                await asyncio.sleep(chance.uniform(0.01, 0.05))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await sending
        return sender, proxy


def check(folder: Path, sender: Sender, each: int) -> int:
    """That the lake has each acknowledged chunk once, and nothing else but what had no answer; how many events."""
    stored: Counter[int] = Counter()
    with open_lake(folder) as lake:
        for name, stream in lake.streams.items():
            data = stream.read()
            assert len(data) == stream.size == stream.describe()["chunks"] * each * EVENT_BYTES
            for at in range(0, len(data), each * EVENT_BYTES):
                number = int.from_bytes(data[at : at + EVENT_BYTES]) // each
                assert sender.stream(number) == name
                assert data[at : at + each * EVENT_BYTES] == sender.body(number)
                stored[number] += 1
            assert stream.verify() == []  # type: ignore[attr-defined]
    assert max(stored.values()) == 1
    assert sender.acknowledged <= set(stored)
    assert set(stored) <= sender.acknowledged | sender.given_up
    assert sender.acknowledged | sender.given_up == set(range(sender.count))
    return sum(stored.values()) * each


@pytest.mark.slow
def test_events_over_a_bad_network_to_a_server_that_is_killed(own_server: Server) -> None:
    sender, proxy = asyncio.run(send(own_server.start(), 6_000, 10, 3))
    assert all(proxy.fates[fate] for fate in FATES), proxy.fates
    own_server.kill()
    assert check(own_server.folder, sender, 10) >= 5_900


@pytest.mark.heavy
def test_a_million_events_over_a_bad_network_to_a_server_that_is_killed(own_server: Server) -> None:
    began = time.monotonic()
    sender, proxy = asyncio.run(send(own_server.start(), 1_000_000, 100, 10))
    elapsed = time.monotonic() - began
    own_server.kill()
    stored = check(own_server.folder, sender, 100)
    assert stored >= 990_000
    print(f"{stored} events in {elapsed:.0f} s, {sender.tries} requests, {proxy.fates}")


# -- power cuts


def record(tmp_path: Path, skipped: str = "") -> cutting.Record:
    """What a process wrote that took chunks in."""
    top = tmp_path / "top"
    top.mkdir()
    command = [sys.executable, ingesting.__file__, top, tmp_path / "record", skipped]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "record").open("rb") as file:
        found: cutting.Record = Unpickler(file).load()
    assert found.events[-1].acknowledged == ingesting.COUNT - 1
    return found


def faults(found: cutting.Record, tmp_path: Path, count: int | None) -> list[str]:
    chance = random.Random(SEED)
    events = list(enumerate(found.events))
    chosen = events if count is None else sorted(chance.sample(events, min(count, len(events))), key=lambda one: one[0])
    wrong = []
    for number, event in chosen:
        for mode in cutting.MODES:
            where = tmp_path / "cut"
            cutting.materialize(found, event, mode, random.Random(f"{SEED} {number} {mode}"), where)
            try:
                ingesting.check(where / "lake", event.acknowledged)
            except Exception as error:
                wrong.append(f"event {number} ({event.step}), {mode}: {error!r}")
            shutil.rmtree(where)
    return wrong


@pytest.mark.slow
def test_every_acknowledged_chunk_is_there_after_a_power_cut(tmp_path: Path) -> None:
    found = record(tmp_path)
    assert len(found.events) > 60
    assert faults(found, tmp_path, 25) == []


@pytest.mark.heavy
@pytest.mark.long
def test_every_acknowledged_chunk_is_there_after_a_power_cut_at_each_step(tmp_path: Path) -> None:
    assert faults(record(tmp_path), tmp_path, None) == []


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [r"\.blob$", r"/incoming/", r"/blobs/.*/0x[0-9a-f]{2}$", r"data\.fs$"])
def test_a_sync_of_ingestion_that_is_left_out_is_found(tmp_path: Path, skipped: str) -> None:
    """The test above can fail."""
    assert faults(record(tmp_path, skipped), tmp_path, 15)


# -- a full disk

FULL = """
import asyncio, os, pathlib, sys
from clachan_lake import open_lake
from clachan_lake.refusal import RefusedError
from tests import ingesting

folder, kind = pathlib.Path(sys.argv[1]), int(sys.argv[2])
lake, filler = folder / "lake", folder / "filler"
PAGE = 4096


def fill(free):
    "Leave so many pages."
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, os.statvfs(folder).f_bavail - free) * PAGE)


def stored():
    with open_lake(lake, read_only=True) as found:
        numbers = set()
        for stream in found.streams.values():
            data = stream.read()
            while data:
                number = int.from_bytes(data[:4])
                assert data.startswith(ingesting.body(number))
                assert number not in numbers
                numbers.add(number)
                data = data[len(ingesting.body(number)) :]
            assert stream.verify() == []
        return numbers


async def main():
    acknowledged, failures, reopened, free, number = set(), 0, 0, 0, kind
    while free < 400:
        async with ingesting.service(lake) as send:
            while free < 400:
                fill(free)
                try:
                    await send(number)
                except RefusedError as error:
                    assert error.status == 507 and "No space left on device" in str(error), error
                else:
                    filler.unlink()
                    acknowledged.add(number)
                    assert stored() == acknowledged
                    return failures, reopened
                filler.unlink()
                failures, free = failures + 1, free + 1
                assert stored() == acknowledged, free
                assert not list((lake / "incoming").iterdir())
                try:
                    await send(number + 3)
                except RefusedError as error:
                    assert "a write failed before, expected to be opened again" in str(error), error
                    reopened += 1
                    break
                acknowledged.add(number + 3)
                number += 6
        assert stored() == acknowledged
        async with ingesting.service(lake) as send:
            await send(number + 3)
        acknowledged.add(number + 3)
        number += 6
    raise AssertionError("no success with 400 pages")

print(*asyncio.run(main()))
"""


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("kind", [0, 2], ids=["piece", "file"])
def test_a_full_disk_at_each_write_of_ingestion(tmp_path: Path, kind: int) -> None:
    """From no free page on, one more each time, until there are enough for the chunk: 507, and nothing half stored."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine cannot: a file system of its own size needs root and a namespace")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = 'mount -t tmpfs -o size=24m clachan-full "$1" && shift && exec "$@"'
    child = [sys.executable, "-c", FULL, disk, str(kind)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, "sh", disk, *child],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    failures, _reopened = map(int, done.stdout.split())
    assert failures >= 2
