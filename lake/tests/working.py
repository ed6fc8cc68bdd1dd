"""Workers as processes, and functions that jobs call."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from clachan_lake.jobs.job import Job

from .making import Server, wait_for


class WorkerProcess:
    """`clachan-lake work` as a process."""

    def __init__(self, server: Server, directory: Path, **settings: Any) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.log_file = directory / "worker.log"
        config = {
            "url": server.url,
            "token_file": str(server.token_file),
            "directory": str(directory / "work"),
            "name": directory.name,
            **settings,
        }
        (directory / "worker.json").write_text(json.dumps(config))
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log_file.open("ab") as log:
            command = [sys.executable, "-I", "-m", "clachan_lake.jobs.worker", str(self.directory / "worker.json")]
            process = subprocess.Popen(command, stderr=log)
        wait_for(lambda: "taking jobs" in self.log_file.read_text() or process.poll() is not None, "worker")
        assert process.poll() is None, self.log_file.read_text()
        return process

    @property
    def children(self) -> list[int]:
        """Its jobs' processes."""
        listed = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for file in listed for pid in file.read_text().split()]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)

    def restart(self) -> None:
        self.log_file.unlink()
        self.process = self._start()


def running(job: Job) -> bool:
    return wait_for(lambda: job.state != "queued", f"job {job.id} to begin")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def told_pid(file: Path) -> int:
    return int(wait_for(lambda: file.exists() and file.read_text(), f"file {file}"))


def hostile(file: Path) -> "Hostile":
    return Hostile(file)


class Hostile:
    """Opening its pickle makes a file that says which process it was."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"echo $PPID >> '{self.file}'",)
