"""The worker: runs the transformations that are due, in its own process, so that none can harm the lake's.

`python -m clachan_lake.transform.worker SOCKET BLOBS SECONDS`. It tells each call that it begins as a line of JSON on
its standard output, and `null` when the function has returned, so that its keeper knows what it died of or hangs in; a
line on its standard input says that there is more work, the end of the input that nobody keeps it: then it ends at
once, whatever it is doing. Without work for SECONDS it ends too.
"""

import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict

from ZODB.POSException import ConflictError

from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.transform import queue
from clachan_lake.transform.calling import Caller
from clachan_lake.transform.engine import Call, Engine

log = logging.getLogger(__name__)
LATER = os.EX_TEMPFAIL
"""Exit status: the disk or the lake failed, not a function; try again later."""
POLL_SECONDS = 0.25
"""So often it looks whether other processes have committed something."""
SOURCES = 50
"""With so many it works in one session."""
SLICE_SECONDS = 1.0
"""So long it stays with one source while others wait."""


def run_pending(lake: LocalLake) -> int:
    """Run what is due in this process; how many calls succeeded."""
    return Engine(lake).run_due()


class Worker:
    def __init__(self, lake: LocalLake, seconds: float) -> None:
        self._source = lake
        self._lake = lake.session()
        self._seconds = seconds
        self._caller = Caller()
        self._engine = Engine(self._lake, _tell, self._caller)
        self._more = threading.Event()
        self._known: queue.Known = {}
        self._revision = b""

    def listen(self) -> None:
        """A thread of its own: a call may hang, and a commit waits for ever for a server that is gone."""
        while os.read(sys.stdin.fileno(), 4096):
            self._more.set()
        os._exit(0)

    def run(self) -> None:
        threading.Thread(target=self.listen, daemon=True).start()
        end = time.monotonic() + self._seconds
        while True:
            self._more.clear()
            self._source.refresh()
            self._lake.refresh()
            seen = self._lake.tid
            self._adopt()
            found = queue.ready(self._lake, self._known)
            for number, key in enumerate(found.keys, 1):
                if number % SOURCES == 0:
                    self._renew()
                until = time.monotonic() + SLICE_SECONDS
                while self._engine.step(key) and time.monotonic() < until:
                    pass
            if found.keys:
                end = time.monotonic() + self._seconds
                continue
            if not self._wait(seen, end, found.seconds):
                return

    def _renew(self) -> None:
        """Another session: one looks after every array that it has seen, at each transaction."""
        self._lake.close()
        self._lake = self._source.session()
        self._engine = Engine(self._lake, _tell, self._caller)

    def _adopt(self) -> None:
        """After each declaration, as it does not see sources that are made at the same time."""
        if (revision := queue.revision(self._lake)) != self._revision:
            with suppress(ConflictError), self._lake.transaction("transformations: sources"):
                self._lake.transformations.adopt()
                self._revision = revision

    def _wait(self, seen: bytes, end: float, soonest: float | None) -> bool:
        """Until there may be work; False when there was none until `end`."""
        retry = None if soonest is None else time.monotonic() + soonest
        while time.monotonic() < end:
            if self._more.wait(POLL_SECONDS):
                return True
            self._lake.refresh()
            if self._lake.tid != seen or (retry is not None and time.monotonic() >= retry):
                return True
        return False


def _tell(call: Call | None) -> None:
    print(json.dumps(call and asdict(call)), flush=True)  # noqa: T201 - the keeper reads it


def main(socket: str, blobs: str, seconds: str) -> None:
    os.nice(5)
    # what functions print must not be taken for what the keeper reads
    told = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(told, "w")
    with open_lake(socket, blobs=blobs) as lake:
        assert isinstance(lake, LocalLake)
        Worker(lake, float(seconds)).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        main(*sys.argv[1:4])
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except OSError as error:
        log.warning("not now: %s", error)
        sys.exit(LATER)
