"""Jobs whose workers, services and submitters go away: each ends once, and what ends it is kept with its result."""

import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clachan_lake.errors import JobError
from clachan_lake.interface import Lake
from clachan_lake.jobs.job import Job
from clachan_lake.opening import open_lake

from .making import TOKEN, Server, wait_for
from .working import WorkerProcess, alive, told_pid

pytestmark = pytest.mark.slow
LEASE = 2.0
OWN = [sys.modules[__name__]]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, job_lease_seconds=LEASE).start()
    yield made
    made.close()


@pytest.fixture
def workers() -> Iterator[list[WorkerProcess]]:
    made: list[WorkerProcess] = []
    yield made
    for worker in made:
        worker.stop()


def stay(file: str, seconds: float) -> str:
    """Says that it began, once for each time."""
    with open(file, "a") as out:
        out.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return Path(file).read_text()


def lake_of(served: Server) -> Lake:
    return open_lake(served.url, token=TOKEN)


def begun(file: Path, times: int = 1) -> list[int]:
    def look() -> list[int]:
        found = [int(line) for line in file.read_text().split()] if file.exists() else []
        return found if len(found) >= times else []

    return wait_for(look, f"begin {times} of a job", 30)


def test_a_job_of_a_worker_that_was_killed_is_given_to_another(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    """Its process dies with it."""
    workers.append(WorkerProcess(served, tmp_path / "first"))
    file = tmp_path / "begun"
    with lake_of(served) as lake:
        job = lake.submit(stay, str(file), 3, modules=OWN)
        (first,) = begun(file)
        workers[0].kill()
        workers.append(WorkerProcess(served, tmp_path / "second"))
        assert len(job.result(30).split()) == 2
        assert not alive(first)
        document = job.document
        assert (document["attempt"], document["worker"], document["state"]) == (2, "second", "done")


def test_a_job_that_takes_every_worker_along_is_lost(served: Server, tmp_path: Path) -> None:
    worker = WorkerProcess(served, tmp_path / "worker")
    file = tmp_path / "begun"
    with lake_of(served) as lake:
        job = lake.submit(stay, str(file), 60, modules=OWN)
        for times in (1, 2, 3):
            begun(file, times)
            worker.kill()
            if times < 3:
                worker.restart()
        assert job.wait(20) == "lost"
        with pytest.raises(JobError, match=r"lost: worker worker not heard of for 2 s; it was begun 3 times"):
            job.result()
    assert not [pid for pid in begun(file, 3) if alive(pid)]


def test_a_worker_that_was_killed_ends_what_its_jobs_had_started_when_it_is_back(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    def start(file: str) -> None:
        import subprocess
        import sys

        script = f"import os, time; os.setsid(); open({file!r}, 'w').write(str(os.getpid())); time.sleep(300)"
        subprocess.Popen([sys.executable, "-c", script])
        time.sleep(300)

    workers.append(WorkerProcess(served, tmp_path / "worker"))
    with lake_of(served) as lake:
        job = lake.submit(start, str(tmp_path / "pid"))
        grandchild = told_pid(tmp_path / "pid")
        workers[0].kill()
        job.cancel()
        assert job.wait(20) == "cancelled"
    assert alive(grandchild)
    workers[0].restart()
    wait_for(lambda: not alive(grandchild), "end of what the job had started")
    assert not list((tmp_path / "worker/work").glob("job-*"))


def test_a_worker_that_is_stopped_gives_its_job_back_at_once(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    workers.append(WorkerProcess(served, tmp_path / "worker"))
    file = tmp_path / "begun"
    with lake_of(served) as lake:
        job = lake.submit(stay, str(file), 60, modules=OWN)
        (pid,) = begun(file)
        assert workers[0].stop() == 0
        assert (job.state, job.message) == ("queued", "its worker was stopped")
        assert not alive(pid)
        # that was none of its attempts
        assert job.document["attempts"] == 4
        job.cancel()


def test_the_service_is_killed_and_comes_back_while_a_job_runs(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    """It is away for longer than a lease; a job goes on, another that waits is begun, a result in between is kept."""
    workers.append(WorkerProcess(served, tmp_path / "worker"))
    files = [tmp_path / "long", tmp_path / "short"]
    with lake_of(served) as lake:
        long = lake.submit(stay, str(files[0]), 5, modules=OWN)
        begun(files[0])
        short = lake.submit(stay, str(files[1]), 0, into=None, modules=OWN)
        served.kill()
        time.sleep(2 * LEASE + 2.5)
        served.start()
        assert len(long.result(40).split()) == 1
        assert len(short.result(40).split()) == 1
        assert [job.document["attempt"] for job in (long, short)] == [1, 1]


def test_a_worker_that_was_frozen_finds_that_its_job_is_anothers(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    """Its result comes late, and is not taken."""
    workers.append(WorkerProcess(served, tmp_path / "first"))
    file = tmp_path / "begun"
    with lake_of(served) as lake:
        job = lake.submit(stay, str(file), 1, into=None, modules=OWN)
        begun(file)
        os.kill(workers[0].process.pid, 19)
        try:
            workers.append(WorkerProcess(served, tmp_path / "second"))
            assert len(job.result(30).split()) == 2
        finally:
            os.kill(workers[0].process.pid, 18)
        wait_for(lambda: "which is over" in workers[0].log_file.read_text(), "the late worker to be told")
        assert len(job.result().split()) == 2
        assert job.document["worker"] == "second"
        # it goes on with others
        workers[1].stop()
        assert lake.submit(len, "four").result(30) == 4


def test_many_jobs_of_two_workers_that_are_killed_now_and_then_each_end_once(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    """Each job appends its number to an array of the lake with its result's commit: there it is once."""
    workers += [WorkerProcess(served, tmp_path / name, processes=2) for name in ("one", "two")]
    chance = random.Random(7)
    with lake_of(served) as lake:
        jobs: list[Job] = [
            lake.submit(lambda n: __import__("numpy").full(3, n), number, into=f"out/{number:02d}")
            for number in range(16)
        ]
        for _ in range(3):
            time.sleep(chance.uniform(0.3, 1.2))
            victim = chance.choice(workers)
            victim.kill()
            victim.restart()
        served.kill()
        served.start()
        states = [job.wait(60) for job in jobs]
        assert set(states) <= {"done", "lost"}
        done = [number for number, state in enumerate(states) if state == "done"]
        assert len(done) >= 13
        assert list(lake.arrays) == [f"out/{number:02d}" for number in done]
        for number in done:
            assert lake.arrays[f"out/{number:02d}"][:].tolist() == [number] * 3
            assert lake.jobs[jobs[number].id].message == ""


def test_two_workers_share_jobs_and_none_is_done_twice(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    workers += [WorkerProcess(served, tmp_path / name, processes=2) for name in ("one", "two")]
    folder = tmp_path / "begun"
    folder.mkdir()
    with lake_of(served) as lake:
        jobs = [lake.submit(stay, str(folder / str(number)), 0.1, modules=OWN) for number in range(12)]
        assert [len(job.result(60).split()) for job in jobs] == [1] * 12
        assert {job.document["worker"] for job in jobs} == {"one", "two"}
        assert {item["worker"] for item in lake.jobs.workers()} == {"one", "two"}


def test_a_token_that_is_revoked_stops_a_worker_until_it_has_another(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    with lake_of(served) as lake:
        key, secret = lake.tokens.create(scopes=["work", "write"])
        file = tmp_path / "worker-token"
        file.write_text(secret)
        workers.append(WorkerProcess(served, tmp_path / "worker", token_file=str(file)))
        assert lake.submit(len, "one").result(30) == 3
        lake.tokens.revoke(key)
        job = lake.submit(len, "three")
        wait_for(lambda: " 401 " in workers[0].log_file.read_text(), "the worker to be refused", 60)
        assert job.state == "queued"
        file.write_text(lake.tokens.create(scopes=["work", "write"])[1])
        assert job.result(60) == 5
        # which may not submit
        with (
            open_lake(served.url, token=file.read_text()) as other,
            pytest.raises(Exception, match="without the scope"),
        ):
            other.submit(len, "x")


def test_a_disk_that_is_full_keeps_the_result_waiting(
    served: Server, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    workers.append(WorkerProcess(served, tmp_path / "worker"))
    with lake_of(served) as lake:
        job = lake.submit(stay, str(tmp_path / "begun"), 1, modules=OWN)
        begun(tmp_path / "begun")
        served.stop()
        served.settings["minimum_free_mib"] = 1 << 40
        served.start()
        wait_for(lambda: "507" in workers[0].log_file.read_text(), "the result to be refused", 30)
        time.sleep(1.5 * LEASE)
        assert job.state == "running"
        served.stop()
        served.settings["minimum_free_mib"] = 0
        served.start()
        assert len(job.result(30).split()) == 1


def test_a_call_and_a_result_that_take_longer_than_a_lease(tmp_path: Path, workers: list[WorkerProcess]) -> None:
    """They are on their way for longer than a lease, and the attempt is the first."""
    served = Server(tmp_path, job_lease_seconds=1).start()
    try:
        workers.append(WorkerProcess(served, tmp_path / "worker"))
        with lake_of(served) as lake:
            given = np.arange(12 << 20)
            job = lake.submit(lambda rows: rows[::-1], given, into="large")
            assert np.array_equal(job.result(120)[-3:], [2, 1, 0])
            assert job.document["attempt"] == 1
    finally:
        served.close()
