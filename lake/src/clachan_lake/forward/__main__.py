"""`python -m clachan_lake.forward CONFIG` runs the forwarder until SIGTERM;
`python -m clachan_lake.forward --check STATUS SECONDS` exits with 1 and says why when it does badly."""

import logging
import signal
import sys
import threading
from pathlib import Path

from clachan_lake.forward import config, status
from clachan_lake.forward.sender import Sender
from clachan_lake.forward.shipping import Forwarder
from clachan_lake.forward.state import State
from clachan_lake.settings import read_token

log = logging.getLogger("clachan_lake.forward")


def run(path: Path) -> int:
    """Exit status: 0 after a signal, 1 when it failed, 2 for a wrong configuration."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = config.load(path)
        token = read_token(settings.token_file)
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        state = State(settings.state)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 1
    sender = Sender(settings, token)
    log.info("shipping %s to %s", settings.directory, settings.url)
    try:
        Forwarder(settings, state, sender, lambda seconds: not stop.wait(seconds)).run()
    finally:
        sender.close()
        state.close()
    return 0


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
