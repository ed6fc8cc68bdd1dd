"""Jobs that a Dask cluster does: its scheduler and its worker are processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clachan_lake.errors import JobError
from clachan_lake.interface import Lake
from clachan_lake.opening import open_lake

from .making import TOKEN, Server, end, wait_for
from .working import told_pid

pytestmark = pytest.mark.slow
pytest.importorskip("distributed", reason="this machine cannot: distributed is not installed")


class Cluster:
    """Both see neither the lake's token nor its folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        told = directory / "scheduler.json"
        self.processes = [self._start("dask_scheduler", "--port", "0", "--scheduler-file", str(told))]
        self.address = json.loads(wait_for(lambda: told.exists() and told.read_text(), "scheduler", 60))["address"]
        self.processes.append(self._start("dask_worker", self.address, "--no-nanny", "--nthreads", "2"))

    def _start(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments, "--no-dashboard"]
        with (self._directory / "dask.log").open("ab") as log:
            return subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=log, stderr=log, cwd=self._directory)

    def close(self) -> None:
        for process in reversed(self.processes):
            end(process)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture
def lake(worked_server: Server) -> Iterator[Lake]:
    with open_lake(worked_server.url, token=TOKEN) as opened:
        yield opened


def test_the_cluster_calls_the_function_with_the_jobs_lake(lake: Lake, cluster: Cluster) -> None:
    def work(count: int) -> tuple[int, list[str], np.ndarray]:
        from clachan_lake import open_lake

        with open_lake() as here:
            here.arrays.create("of-dask", 2, "i4")
            return os.getpid(), list(here.arrays), np.arange(count)

    job = lake.submit(work, 5, scheduler=cluster.address)
    pid, names, values = job.result(60)
    assert (pid, names, values.tolist()) == (cluster.processes[1].pid, ["of-dask"], [0, 1, 2, 3, 4])
    assert job.document["scheduler"] == cluster.address


def test_what_a_function_raises_there_is_said(lake: Lake, cluster: Cluster) -> None:
    def broken() -> None:
        raise LookupError("nothing there")

    job = lake.submit(broken, scheduler=cluster.address)
    with pytest.raises(JobError, match="failed: LookupError: nothing there"):
        job.result(60)
    assert "in broken" in job.log


def test_cancelled_the_cluster_is_left_alone(lake: Lake, cluster: Cluster, tmp_path: Path) -> None:
    def work(file: str) -> None:
        Path(file).write_text(str(os.getpid()))
        time.sleep(5)

    job = lake.submit(work, str(tmp_path / "pid"), scheduler=cluster.address)
    assert told_pid(tmp_path / "pid") == cluster.processes[1].pid
    job.cancel()
    assert job.wait(10) == "cancelled"
    assert lake.submit(len, "four", scheduler=cluster.address).result(60) == 4


def test_a_cluster_that_is_not_there(lake: Lake) -> None:
    job = lake.submit(len, "x", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(JobError, match=r"failed: OSError: Timed out .* tcp://127\.0\.0\.1:9"):
        job.result(60)
