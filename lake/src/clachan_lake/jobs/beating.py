"""The signs of life of an attempt, beside all that it does: also while a large call or result is on its way."""

import contextlib
import logging
import threading
from collections.abc import Callable

from clachan_lake.forward.connection import UnreachableError
from clachan_lake.jobs.asking import Asking, OverError

log = logging.getLogger("clachan_lake.jobs")


class Beats(threading.Thread):
    """As a context manager it beats until the end of the block. `cancelled` is set when the job is to end, `over` when
    the attempt is not this worker's any more. A lake that is away for a while is no reason for either."""

    def __init__(self, asking: Asking, job: str, attempt: int, *, seconds: float, heard: Callable[[], None]) -> None:
        super().__init__(name="beats", daemon=True)
        self.cancelled, self.over = threading.Event(), threading.Event()
        self._asking = asking
        self._job, self._attempt = job, attempt
        self._seconds = seconds
        self._heard = heard
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._seconds) and not self.over.is_set():
            try:
                if self._asking.beat(self._job, self._attempt):
                    self.cancelled.set()
                self._heard()
            except OverError:
                self.over.set()
            except (UnreachableError, PermissionError, ValueError) as error:
                if self._ended.is_set():
                    return
                log.warning("job %s: %s", self._job, error)
                with contextlib.suppress(OSError, ValueError):
                    self._asking.renew()

    def __enter__(self) -> "Beats":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(2)
        self._asking.close()
