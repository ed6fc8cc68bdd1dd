"""The role worker: converged by Ansible, its program started as its slot says, doing a job."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.opening import open_lake

from .making import TOKEN, Server, wait_for
from .test_roles import BIN, Home, start


@pytest.fixture
def running() -> "Iterator[list[subprocess.Popen[bytes]]]":
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in reversed(processes):
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_a_worker_does_a_job(tmp_path: Path, server: Server, running: "list[subprocess.Popen[bytes]]") -> None:
    home = Home(tmp_path, "127.77.0.7")
    (home.directory / "envs/science").symlink_to(BIN.parent)
    with open_lake(server.url, token=TOKEN) as lake:
        secret = lake.tokens.create(scopes=["work", "write"])[1]
        options: dict[str, Any] = {"worker_processes": 2, "worker_memory_mib": 832, "worker_seconds": 600}
        slot = home.add(
            "worker",
            1,
            ["worker_token"],
            worker_url=server.url,
            worker_token=secret,
            worker_environment="science",
            **options,
        )
        first = home.converge()
        assert secret not in first
        assert "changed=0" in home.converge().partition("PLAY RECAP")[2]
        assert (slot / "etc/token").stat().st_mode & 0o777 == 0o640
        settings = json.loads((slot / "etc/worker.json").read_text())
        assert (settings["memory_mib"], settings["name"], settings["ca_file"]) == (384, "home.worker", None)
        assert settings["python"] == str(home.directory / "envs/science/bin/python")

        running.append(start(slot, "worker"))
        job = lake.submit(lambda: (os.getcwd(), 6 * 7))
        folder, found = job.result(40)
        assert found == 42
        assert folder.startswith(str(slot / "var/work/job-"))
        assert job.document["worker"] == "home.worker"
        assert {item["worker"] for item in lake.jobs.workers()} == {"home.worker"}
        assert len(lake.jobs.workers()) == 2

    takes = json.loads((slot / "etc/promises.d/takes.json").read_text())
    looks = json.loads((slot / "etc/promises.d/looks.json").read_text())
    wait_for((slot / looks["path"]).exists, "status")
    done = subprocess.run(takes["command"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 jobs run\n", "")
