"""`python -m clachan_lake.forward CONFIG` runs the forwarder until SIGTERM;
`python -m clachan_lake.forward --check STATUS SECONDS` exits with 1 and says why when it does badly."""

import logging
import signal
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path

from clachan_lake.forward import config, status
from clachan_lake.forward.recording import recorders
from clachan_lake.forward.records import Records
from clachan_lake.forward.sender import Sender
from clachan_lake.forward.shipping import Forwarder
from clachan_lake.forward.spool import Spool
from clachan_lake.forward.state import State
from clachan_lake.settings import read_token

log = logging.getLogger("clachan_lake.forward")


def run(path: Path) -> int:
    """Exit status: 0 after a signal, 1 when it failed, 2 for a wrong configuration."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = config.load(path)
        token = read_token(settings.token_file)
        usage_token = read_token(settings.usage_token_file) if settings.usage_token_file else ""
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _ship(settings, token, usage_token, stop)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 1
    return 0


def _ship(settings: config.Config, token: str, usage_token: str, stop: threading.Event) -> None:
    """Until `stop`; raises OSError or ValueError when it cannot begin."""
    with ExitStack() as opened:
        state = opened.enter_context(closing(State(settings.state)))
        sender = opened.enter_context(closing(Sender(settings, token)))
        records, recording = None, []
        if settings.records:
            spool = opened.enter_context(closing(Spool(settings.spool_file, settings.spool_mib << 20)))
            recording = recorders(settings, spool, usage_token, stop)
            records = Records(settings, spool, sender, recording)
        for recorder in recording:
            recorder.start()
        log.info("shipping %s to %s", settings.directory or "records", settings.url)
        try:
            Forwarder(settings, state, sender, lambda seconds: not stop.wait(seconds), records).run()
        finally:
            stop.set()
            for recorder in recording:
                recorder.join(5)


def check(path: Path, maximum_lag: float) -> int:
    found = status.faults(path, maximum_lag)
    print("; ".join(found) if found else status.summary(path))  # noqa: T201
    return 1 if found else 0


def main(arguments: list[str]) -> int:
    if len(arguments) == 3 and arguments[0] == "--check":
        return check(Path(arguments[1]), float(arguments[2]))
    if len(arguments) == 1:
        return run(Path(arguments[0]))
    print(__doc__, file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
