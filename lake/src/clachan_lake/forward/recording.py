"""What runs beside the shipping and fills the spool: this machine's metrics, the platform's usage records."""

import logging
import threading
import time
from collections.abc import Callable

from clachan_lake.forward.config import Config
from clachan_lake.forward.connection import Connection, UnreachableError
from clachan_lake.forward.metrics import Sampler
from clachan_lake.forward.spool import Spool
from clachan_lake.forward.usage import UsageReader

log = logging.getLogger(__name__)
METRICS_TAG = "metrics/{node}"


class Recorder(threading.Thread):
    """Does `work` every `seconds` until `stop`; what fails is said, kept in `failing` and done again."""

    def __init__(self, name: str, work: Callable[[], None], seconds: float, stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._seconds = seconds
        self._stopped = stop
        self.failing: tuple[float, str] | None = None
        """Since when (seconds since 1970), and the last reason."""

    def run(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + self._seconds, time.monotonic())
            pause = self._once()
            if self._stopped.wait(max(pause, due - time.monotonic(), 0.0)):
                return

    def _once(self) -> float:
        """How long to wait at least."""
        try:
            self._work()
        except Exception as error:
            # whatever it is, it may be another the next time; the status says it
            since = self.failing[0] if self.failing else time.time()
            if not self.failing or self.failing[1] != str(error):
                log.warning("%s: %s", self.name, error)
            self.failing = since, str(error)
            return error.retry_after if isinstance(error, UnreachableError) else 0.0
        self.failing = None
        return 0.0


def recorders(config: Config, spool: Spool, usage_token: str, stop: threading.Event) -> list[Recorder]:
    """Those that the configuration asks for, not started. Raises OSError when the machine or a CA's file is not as
    expected."""
    made = []
    if config.metrics_seconds:
        sampler = Sampler(config.node, config.state.parent)
        tag = METRICS_TAG.format(node=config.node)
        made.append(Recorder("metrics", lambda: _keep(spool, tag, sampler), config.metrics_seconds, stop))
    if config.usage_url:
        connection = Connection(
            "controller", config.usage_url, usage_token, config.timeout_seconds, config.usage_ca_file
        )
        made.append(Recorder("usage", UsageReader(connection, spool).turn, config.usage_seconds, stop))
    return made


def _keep(spool: Spool, tag: str, sampler: Sampler) -> None:
    # what does not fit is counted by the spool
    spool.add(tag, sampler.sample())
