"""The place of a Dask worker: asks the scheduler whether its worker is to run, and has it run or not.

`python -m clachan_lake.elastic.standby FILE`, see `Settings`. Beside a worker that does not run it takes about 22 MiB.
`--check FILE` says how it stands, and fails when the worker is to run and does not answer.
"""

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clachan_lake import settings
from clachan_lake.elastic.sizing import ASK_SECONDS, LINE_BYTES, OLD_SECONDS, context
from clachan_lake.orphans import die_with
from clachan_lake.telling import tell, told

log = logging.getLogger(__name__)
PAUSE_SECONDS = 1.0
GRACE_SECONDS = 30.0
"""A worker that is not to run any more gives its data to others, and ends by itself."""
STOP_SECONDS = 20.0
LONGEST_PAUSE = 60.0
START_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    name: str
    """Of the worker, as the scheduler knows it."""
    number: int
    """Places with low ones run first."""
    sizing: str
    """HOST:PORT of the scheduler's `sizing`."""
    credential: Path
    state: Path
    """Where it writes how it stands."""
    listens: str
    """HOST:PORT of the worker."""
    command: tuple[str, ...]


def load(path: Path) -> Settings:
    """Raises ValueError that names the file and the key, OSError when it cannot be read."""
    return settings.load(path, Settings, {"command": _words, "sizing": _address, "listens": _address})


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(word, str | int) for word in value):
        raise ValueError(f"{value!r:.80}, expected a command, a list of words")
    return tuple(map(str, value))


def _address(value: Any) -> str:
    host, _, port = str(value).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{value!r:.80}, expected HOST:PORT")
    return str(value)


class Standby:
    def __init__(self, given: Settings) -> None:
        self._settings = given
        self._context = context(given.credential, ssl.Purpose.SERVER_AUTH)
        self._stop = threading.Event()
        self._worker: subprocess.Popen[bytes] | None = None
        self._started = self._unwanted_since = self._not_before = 0.0
        self._failures = 0
        self._wanted: bool | None = None
        """None: the scheduler does not say."""

    def run(self) -> None:
        """Until `stop`."""
        while not self._stop.is_set():
            self._wanted = self._ask()
            self._reap()
            if self._wanted:
                self._unwanted_since = 0.0
                self._start()
            elif self._wanted is False:
                self._let_go()
            self._tell()
            self._stop.wait(PAUSE_SECONDS)
        self._end()

    def stop(self) -> None:
        self._stop.set()

    def _ask(self) -> bool | None:
        host, _, port = self._settings.sizing.rpartition(":")
        asked = json.dumps({"name": self._settings.name, "number": self._settings.number}).encode() + b"\n"
        try:
            with (
                socket.create_connection((host, int(port)), ASK_SECONDS) as plain,
                self._context.wrap_socket(plain) as line,
            ):
                line.sendall(asked)
                return bool(json.loads(_line(line.recv))["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if self._wanted is not None:
                log.warning("scheduler %s: %s, expected an answer", self._settings.sizing, error)
            return None

    def _reap(self) -> None:
        worker = self._worker
        if worker is None or worker.poll() is None:
            return
        self._worker = None
        lived = time.monotonic() - self._started
        self._failures = 0 if lived > START_SECONDS or not self._wanted else self._failures + 1
        pause = min(LONGEST_PAUSE, 2.0**self._failures - 1)
        self._not_before = time.monotonic() + pause
        log.info("worker ended after %.0f s with %d", lived, worker.returncode)

    def _start(self) -> None:
        if self._worker is not None or time.monotonic() < self._not_before:
            return
        log.info("starting the worker")
        self._started = time.monotonic()
        # between fork and exec only what the kernel does: nothing here has threads
        self._worker = subprocess.Popen(self._settings.command, preexec_fn=partial(die_with, os.getpid()))  # noqa: PLW1509

    def _let_go(self) -> None:
        if self._worker is None:
            return
        now = time.monotonic()
        self._unwanted_since = self._unwanted_since or now
        if now - self._unwanted_since > GRACE_SECONDS:
            self._end()

    def _end(self) -> None:
        worker = self._worker
        if worker is None:
            return
        worker.terminate()
        try:
            worker.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        self._worker = None

    def _tell(self) -> None:
        since = time.time() - (time.monotonic() - self._started)
        standing = {
            "time": time.time(),
            "wanted": self._wanted,
            "listens": self._settings.listens,
            "started": since if self._worker else None,
        }
        tell(self._settings.state, standing)


def _line(receive: Callable[[int], bytes]) -> bytes:
    found = b""
    while not found.endswith(b"\n") and len(found) < LINE_BYTES:
        more = receive(LINE_BYTES)
        if not more:
            break
        found += more
    return found


def said(file: Path, now: float) -> tuple[str, bool]:
    """How the place stands, for people, and whether all is well."""
    one = told(file)
    if not one or now - one["time"] > OLD_SECONDS:
        return f"worker {file}: not written for {OLD_SECONDS:.0f} s, expected so", False
    if one["wanted"] is None:
        return "the scheduler does not answer", False
    if not one["wanted"]:
        return "stands by: there is no work for it", True
    try:
        host, _, port = one["listens"].rpartition(":")
        socket.create_connection((host, int(port)), ASK_SECONDS).close()
    except OSError as error:
        young = one["started"] is not None and now - one["started"] < START_SECONDS
        return ("the worker starts", True) if young else (f"worker {one['listens']}: {error.strerror}", False)
    return "the worker runs", True


def main(arguments: list[str]) -> int:
    """Exit status: 0, 1 for what is not well, 2 for wrong use."""
    if len(arguments) == 2 and arguments[0] == "--check":
        text, well = said(Path(arguments[1]), time.time())
        print(text)  # noqa: T201
        return 0 if well else 1
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        standby = Standby(load(Path(arguments[0])))
    except (OSError, ValueError) as error:
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: standby.stop())
    standby.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
