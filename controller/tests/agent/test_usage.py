"""What is counted of processes that really work, in windows of one second."""

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from clachan.agent.processes import Process, process
from clachan.agent.spool import Spool
from clachan.agent.usage import Meter, Metered
from clachan.contract.facts import Fact, UsageFact

pytestmark = pytest.mark.slow

BUSY = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\ntime.sleep(60)"
KEY = ("s000", "main")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool.db", "node-1")


def usage(spool: Spool) -> list[UsageFact]:
    found = [Fact.model_validate(raw.model_dump()).content for raw in spool.batch().facts]
    return [one for one in found if isinstance(one, UsageFact)]


def total(spool: Spool, meter: str) -> int:
    return sum(one.quantity for one in usage(spool) if one.meter == meter)


def run(meter: Meter, metered: list[Metered], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        meter.step(metered)
        time.sleep(0.1)


def test_processor_memory_disk_and_time(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "slot").mkdir()
    (tmp_path / "slot/file").write_bytes(b"x" * 4 * 1024 * 1024)
    worker = subprocess.Popen([sys.executable, "-c", BUSY])

    def find(key: tuple[str, str]) -> Process | None:
        assert key == KEY
        return process(worker.pid)

    try:
        meter = Meter(spool, 1, find)
        run(meter, [Metered("i", tmp_path / "slot", (KEY,))], 4)
    finally:
        worker.kill()
        worker.wait()
    assert 450 <= total(spool, "cpu_milliseconds") <= 900
    assert 2 <= total(spool, "instance_seconds") <= 4
    assert total(spool, "memory_mib_seconds") >= 10
    assert 8 <= total(spool, "disk_mib_seconds") <= 20
    for fact in usage(spool):
        assert fact.window_start.endswith(".000000Z")
        assert fact.window_start < fact.window_end
    ids = [raw.id for raw in spool.batch().facts]
    assert len(ids) == len(set(ids))


def test_what_an_instance_keeps_beside_its_slot_counts_as_its_disk(spool: Spool, tmp_path: Path) -> None:
    """Data volumes and backups: what is allocated of a sparse file, whoever owns it; none is no error."""
    for path in ("slot", "volumes/lab.web", "backups/lab.web/data"):
        (tmp_path / path).mkdir(parents=True)
    for path, mib in (("volumes/lab.web/data.raw", 4), ("backups/lab.web/data/monday.qcow2", 2)):
        with (tmp_path / path).open("wb") as file:
            file.write(b"x" * mib * 1024 * 1024)
            file.truncate(1 << 30)
    kept = tuple(tmp_path / kind / "lab.web" for kind in ("volumes", "backups", "nothing"))
    run(Meter(spool, 1, lambda _: None), [Metered("i", tmp_path / "slot", (), None, kept)], 3)
    seconds = total(spool, "instance_seconds")
    assert 6 * seconds <= total(spool, "disk_mib_seconds") <= 6.2 * (seconds + 1)


@pytest.mark.parametrize("services", [(), (KEY,)], ids=["no service", "a service"])
def test_what_runs_as_the_slots_user_counts_once(spool: Spool, tmp_path: Path, services: tuple[Any, ...]) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    own = 61000 + os.getpid() % 4000  # nobody else's
    worker = subprocess.Popen([sys.executable, "-ISc", BUSY], user=own, group=own)
    try:
        meter = Meter(spool, 1, lambda _: process(worker.pid))
        run(meter, [Metered("i", tmp_path, services, own)], 4)
    finally:
        worker.kill()
        worker.wait()
    assert 450 <= total(spool, "cpu_milliseconds") <= 900


def test_time_goes_on_over_a_restart_of_the_agent(spool: Spool, tmp_path: Path) -> None:
    one = [Metered("i", tmp_path, ())]
    began = time.time()
    run(Meter(spool, 1, lambda _: None), one, 2.2)
    time.sleep(1.5)  # no agent
    run(Meter(spool, 1, lambda _: None), one, 2.2)
    passed = time.time() - began
    assert passed - 2 <= total(spool, "instance_seconds") <= passed
    windows = [(fact.window_start, fact.window_end) for fact in usage(spool) if fact.meter == "instance_seconds"]
    assert all(end == begin for (_, end), (begin, _) in pairwise(windows)), windows


def test_an_instance_that_ended_is_counted_to_its_end(spool: Spool, tmp_path: Path) -> None:
    meter = Meter(spool, 1, lambda _: None)
    run(meter, [Metered("i", tmp_path, ())], 1.5)
    run(meter, [], 2.2)
    counted = total(spool, "instance_seconds")
    assert 1 <= counted <= 2
    assert spool.counters() == {}
    run(meter, [], 1.2)
    assert total(spool, "instance_seconds") == counted
