"""Transformations on a Dask cluster by its address: a scheduler and a worker as processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.local import LocalLake
from clachan_lake.transform.worker import run_pending

from .making import wait_for
from .transforming import at, declare, feed, letters

PID = """
    import os, numpy as np
    def transform(batch, output, state):
        state["calls"] = state.get("calls", 0) + 1
        output.append(np.array([[os.getpid(), state["calls"], len(batch.data)]]))
        output.append(batch.data, "copy")
        output.warn("from afar")
"""


def started(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__DAEMON": "false"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, set[int]]]:
    """Its address, and the ids of its worker's processes."""
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    scheduler = started(
        folder, "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)
    )
    try:
        wait_for(file.exists, "the scheduler", 60)
        worker = started(
            folder,
            "dask_worker",
            "--scheduler-file",
            str(file),
            "--no-nanny",
            "--no-dashboard",
            "--nthreads",
            "4",
            "--host",
            "127.0.0.1",
        )
        try:
            yield json.loads(file.read_text())["address"], {worker.pid}
        finally:
            worker.terminate()
            worker.wait(20)
    finally:
        scheduler.terminate()
        scheduler.wait(20)


@pytest.mark.slow
def test_the_function_runs_there_and_the_commit_is_made_here(lake: LocalLake, cluster: tuple[str, set[int]]) -> None:
    address, pids = cluster
    declare(lake, PID, scheduler=address)
    feed(lake, b"abc")
    run_pending(lake)
    feed(lake, b"de")
    run_pending(lake)
    found = lake.arrays["x.out"][:]
    assert found[:, 1:].tolist() == [[1, 3], [2, 2]]
    assert set(found[:, 0].tolist()) == pids
    assert lake.streams["copy"].read() == b"abcde"
    assert at(lake)["warnings"] == ["from afar"] * 2


@pytest.mark.slow
def test_what_fails_there_fails_as_here(lake: LocalLake, cluster: tuple[str, set[int]]) -> None:
    address, _ = cluster
    cases: dict[str, tuple[str, str]] = {
        "raises": ("raise RuntimeError('far away')", "RuntimeError: far away"),
        "hangs": ("import time; time.sleep(5)", "TimeoutError: the call took longer than 2 s"),
        "reads": ("batch.read(0, 1)", "ValueError: stream x: read on a cluster, expected only the batch's own content"),
        "shape": (
            "output.append([1]); output.append([[2]])",
            "output x.shape: rows of int64, shape (1, 1), expected int64",
        ),
    }
    for name, (code, _message) in cases.items():
        declare(
            lake,
            f"def transform(batch, output, state):\n    {code}",
            name,
            scheduler=address,
            attempts=1,
            output=f"{{name}}.{name}",
            timeout_seconds=2,
        )
    feed(lake, b"x")
    run_pending(lake)
    reasons: dict[str, Any] = {one["transformation"]: one["reason"] for one in letters(lake)}
    assert reasons.keys() == cases.keys()
    for name, (_code, message) in cases.items():
        assert message in reasons[name]
    assert [one for one in lake.arrays if one.startswith("x.")] == []


def test_a_cluster_that_is_not_there_gives_up_nothing(lake: LocalLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clachan_lake.transform.calling.CONNECT_SECONDS", 0.5)
    declare(lake, PID, scheduler="tcp://127.0.0.1:9", attempts=1)
    feed(lake, b"x")
    run_pending(lake)
    found = at(lake)
    assert (found["state"], found["position"], letters(lake)) == ("retrying", 0, [])
    assert "scheduler tcp://127.0.0.1:9: " in found["message"]
    assert "expected a dask.distributed cluster there" in found["message"]
