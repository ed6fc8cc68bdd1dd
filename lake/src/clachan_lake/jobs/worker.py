"""The worker: takes jobs from the lake at a URL, and runs each in a process of its own.

`python -m clachan_lake.jobs.worker CONFIG` until SIGTERM, which gives back what is not done;
`python -m clachan_lake.jobs.worker --check STATUS` exits with 1 and says why when the lake does not answer.

Each of its slots has one job at a time, and a thread. Idle it has neither numpy nor ZODB in memory. Whoever may submit
to the lake may do what this process's user may, and what its token may: it has both of its own.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clachan_lake import settings
from clachan_lake.forward.connection import UnreachableError
from clachan_lake.jobs.asking import Asking, OverError
from clachan_lake.jobs.beating import Beats
from clachan_lake.jobs.child import MARK, Child, end_marked, remove
from clachan_lake.settings import read_token
from clachan_lake.telling import tell

log = logging.getLogger("clachan_lake.jobs")
OWNER = "CLACHAN_WORKER"
TAKE_SECONDS = 25.0
TIMEOUT_SECONDS = 60.0
LONGEST_PAUSE = 30.0
STATUS_SECONDS = 5.0
SILENT_SECONDS = 120.0
KEPT = ("PATH", "LANG", "LC_ALL", "TZ")


@dataclass(frozen=True)
class Config:
    url: str
    """The lake's."""
    token_file: Path
    """Of a token with the scopes `work`, and `read`, `write` or what else the jobs' functions need."""
    directory: Path
    """Its own: the jobs' folders, and `status.json`."""
    processes: int = 1
    """So many jobs at a time."""
    name: str = field(default_factory=socket.gethostname)
    """Shown as the worker of its jobs."""
    ca_file: Path | None = None
    """Certificate of an https URL whose authority the system does not know, or of that authority."""
    python: str = sys.executable
    """Runs the jobs: that of an environment with their packages, and with this one."""
    memory_mib: int = 0
    """Of data that a job may have in memory at most; 0: what the machine gives."""
    seconds: float = 86400.0
    """How long a job may take at most."""
    threads: int = 0
    """Of numpy's libraries in each job; 0: the processors, divided by the processes."""


def load(path: Path) -> Config:
    """Raises ValueError that names the file and the key, OSError when it cannot be read."""
    config = settings.load(path, Config)
    parts = urlsplit(config.url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
        raise ValueError(f"file {path}, key url: {config.url}, expected http(s)://host:port without credentials")
    if not 1 <= config.processes <= 1024:
        raise ValueError(f"file {path}, key processes: {config.processes}, expected 1-1024")
    return config


class Worker:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._stop = threading.Event()
        self._run = uuid.uuid4().hex
        self._seen = time.time()
        self._error = ""
        self._busy: dict[int, str] = {}

    def run(self) -> None:
        """Until `stop`."""
        folder = self._config.directory
        folder.mkdir(parents=True, exist_ok=True)
        # of a former run that was killed
        end_marked(OWNER, str(folder))
        for left in folder.glob("job-*"):
            remove(left)
        threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"slot-{number}", daemon=True)
            for number in range(self._config.processes)
        ]
        for thread in threads:
            thread.start()
        log.info("taking jobs of %s, %d at a time", self._config.url, len(threads))
        while not self._stop.wait(STATUS_SECONDS):
            self._tell()
        while any(self._busy.values()) and any(thread.is_alive() for thread in threads):
            time.sleep(0.05)

    def stop(self) -> None:
        self._stop.set()

    def _serve(self, number: int) -> None:
        config = self._config
        asking, pause = Asking(config.url, config.token_file, config.ca_file, TIMEOUT_SECONDS), 0.5
        while not self._stop.is_set():
            try:
                job = asking.take(self._config.name, f"{self._run}-{number}", TAKE_SECONDS)
                self._heard()
                pause = 0.5
                if job is not None:
                    self._work(asking, number, job)
            except (UnreachableError, PermissionError, ValueError, OverError) as error:
                self._failed(error)
                self._stop.wait(max(pause, getattr(error, "retry_after", 0.0)))
                pause = min(LONGEST_PAUSE, pause * 2)
                with contextlib.suppress(OSError, ValueError):
                    asking.renew()
            except Exception:
                log.exception("slot %d", number)
                self._stop.wait(LONGEST_PAUSE)

    def _work(self, asking: Asking, number: int, job: dict[str, Any]) -> None:
        folder = self._config.directory / f"job-{number}-{job['id']}-{job['attempt']}"
        self._busy[number] = job["id"]
        try:
            if folder.exists():
                remove(folder)
            folder.mkdir(mode=0o700)
            Attempt(self._config, asking, job, folder, stop=self._stop, heard=self._heard).run()
        finally:
            remove(folder)
            self._busy[number] = ""

    def _heard(self) -> None:
        self._seen, self._error = time.time(), ""

    def _failed(self, error: Exception) -> None:
        if str(error) != self._error:
            log.warning("%s", error)
        self._error = str(error)

    def _tell(self) -> None:
        running = sorted(job for job in self._busy.values() if job)
        standing = {"seen": self._seen, "error": self._error, "running": running}
        tell(self._config.directory / "status.json", standing)


class Attempt:
    """One job, from its call to its end."""

    def __init__(
        self,
        config: Config,
        asking: Asking,
        job: dict[str, Any],
        folder: Path,
        *,
        stop: threading.Event,
        heard: Callable[[], None],
    ) -> None:
        self._config = config
        self._asking = asking
        self._job = job
        self._id, self._attempt = job["id"], job["attempt"]
        self._folder = folder
        self._stop = stop
        self._heard = heard
        self._seconds_between = min(1.0, job["lease_seconds"] / 5)
        self._pending = b""
        self._printed = 0
        self._why: tuple[str, str] | None = None

    def run(self) -> None:
        beating = Beats(
            self._asking.another(), self._id, self._attempt, seconds=self._seconds_between, heard=self._heard
        )
        with beating:
            try:
                self._do(beating)
            except OverError as error:
                log.warning("%s; it is given up here", error)
            except (OSError, ValueError) as error:
                # as when the disk is full, or Python is not where the configuration says
                log.warning("job %s: %s", self._id, error)
                self._say({"state": "failed", "message": f"worker: {error}"[:1000]}, None)

    def _do(self, beats: Beats) -> None:
        if not self._again(lambda: self._asking.fetch_call(self._id, self._attempt, self._folder / "call")):
            self._release()
            return
        child = Child(self._folder, self._config.python, self._settings(), self._environment())
        try:
            ended = self._watch(child, beats)
        finally:
            child.end()
        if ended:
            self._finish(child)
        else:
            self._release()

    def _watch(self, child: Child, beats: Beats) -> bool:
        """Whether there is something to say of its end. Raises OverError."""
        end = time.monotonic() + self._seconds()
        while not child.wait(self._seconds_between):
            if self._stop.is_set():
                return False
            if time.monotonic() > end:
                self._why = "failed", f"time limit: {self._seconds():g} s are over, expected it to end before"
                return True
            if beats.over.is_set():
                raise OverError(f"job {self._id}: attempt {self._attempt}, which is over")
            if beats.cancelled.is_set():
                self._why = "cancelled", "cancelled while it ran"
                return True
            with contextlib.suppress(UnreachableError, PermissionError):
                self._send_log(child)
        return True

    def _send_log(self, child: Child) -> None:
        self._pending = self._pending or child.output()
        if self._pending:
            self._asking.log(self._id, self._attempt, self._printed, self._pending)
            self._printed += len(self._pending)
            self._pending = b""

    def _finish(self, child: Child) -> None:
        outcome = child.outcome()
        if self._why:
            outcome = {"state": self._why[0], "message": self._why[1], "kind": None}
        result = child.result if outcome["state"] == "done" else None
        for _ in range(3):
            if not self._again(lambda: self._send_log(child)):
                break
        self._say(outcome, result)

    def _say(self, outcome: dict[str, Any], result: Path | None) -> None:
        if not self._again(lambda: self._asking.finish(self._id, self._attempt, outcome, result)):
            self._release()

    def _again(self, what: Callable[[], None]) -> bool:
        """Until it is done; False when the worker is to stop before. Raises OverError, ValueError."""
        pause = 0.2
        while True:
            try:
                what()
                return True
            except (UnreachableError, PermissionError) as error:
                log.warning("job %s: %s", self._id, error)
                if self._stop.wait(max(pause, getattr(error, "retry_after", 0.0))):
                    return False
                pause = min(2.0, pause * 2)
                self._renew()

    def _renew(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._asking.renew()

    def _release(self) -> None:
        try:
            self._asking.release(self._id, self._attempt)
        except (UnreachableError, OverError, PermissionError, ValueError) as error:
            log.warning("job %s: not given back: %s", self._id, error)

    def _seconds(self) -> float:
        return min(self._job["timeout_seconds"] or self._config.seconds, self._config.seconds)

    def _settings(self) -> dict[str, Any]:
        limits = [limit for limit in (self._job["memory_mib"], self._config.memory_mib) if limit]
        return {
            "memory_mib": min(limits, default=None),
            "scheduler": self._job["scheduler"],
            "environment": self._job["environment"],
        }

    def _environment(self) -> dict[str, str]:
        threads = str(self._config.threads or max(1, (os.cpu_count() or 1) // self._config.processes))
        kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("DASK_")}
        ca = {"CLACHAN_LAKE_CA_FILE": str(self._config.ca_file.absolute())} if self._config.ca_file else {}
        return {
            **kept,
            **ca,
            **{f"{library}_NUM_THREADS": threads for library in ("OMP", "OPENBLAS", "MKL")},
            "CLACHAN_LAKE": self._config.url,
            "CLACHAN_LAKE_TOKEN_FILE": str(self._config.token_file.absolute()),
            MARK: f"{self._id}/{self._attempt}",
            OWNER: str(self._config.directory),
        }


def check(path: Path) -> int:
    try:
        found = json.loads(path.read_text())
        silent = time.time() - found["seen"]
        fault = found["error"] if found["error"] else ""
        fault = f"lake: no answer for {silent:.0f} s; {fault}" if silent > SILENT_SECONDS else ""
        print(fault or f"{len(found['running'])} jobs run")  # noqa: T201
        return 1 if fault else 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"file {path}: {error}, expected the worker's status")  # noqa: T201
        return 1


def run(path: Path) -> int:
    """Exit status: 0 after a signal, 2 for a wrong configuration."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = load(path)
        read_token(config.token_file)
        worker = Worker(config)
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()
    return 0


def main(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "--check":
        return check(Path(arguments[1]))
    if len(arguments) == 1:
        return run(Path(arguments[0]))
    print(__doc__, file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
