"""The worker: runs the transformations that are due, in its own process, so that none can harm the lake's.

`python -m clachan_lake.transform.worker SOCKET BLOBS SECONDS`. It tells the name of each stream that it begins with as
a line of JSON on its standard output, so that its keeper knows what it died of; a line on its standard input says that
there is more work, the end of the input that nobody keeps it. Without work for SECONDS it ends.
"""

import json
import logging
import os
import select
import sys
from collections.abc import Callable

from ZODB.POSException import ConflictError

from clachan_lake.errors import CorruptError
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.streams.stream import LocalStream
from clachan_lake.transform import wav

log = logging.getLogger(__name__)
ATTEMPTS = 10
LATER = os.EX_TEMPFAIL
"""Exit status: the disk or the lake failed, not the stream; try again later."""


def run_pending(lake: LocalLake, begin: Callable[[str], None] = lambda name: None) -> int:
    """Transform every ended stream that is due; the output and the position are one commit. Returns how many."""
    done = 0
    lake.refresh()
    while due := list(lake.root()["pending"].keys()):
        for name in due:
            begin(name)
            transform(lake, name)
            done += 1
        lake.refresh()
    return done


def transform(lake: LocalLake, name: str) -> None:
    """One stream. What is wrong with its content is recorded on it; errors of the disk are raised."""
    for attempt in range(ATTEMPTS):
        try:
            _transform(lake, name)
            return
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise


def _transform(lake: LocalLake, name: str) -> None:
    try:
        with lake.transaction():
            stream = lake.streams[name]
            if stream.due():
                array, warnings = wav.run(stream, lake.arrays)
                stream.transformed("done", f"array {array.name} {array.shape} {array.dtype}", warnings)
    except CorruptError as error:
        fail(lake, name, str(error))
    except (ConflictError, OSError, MemoryError):
        raise
    except Exception as error:
        fail(lake, name, str(error) or repr(error))


def fail(lake: LocalLake, name: str, message: str) -> None:
    """Record on the stream why there is no array of it."""
    log.warning("stream %r: %s", name, message)
    with lake.transaction():
        stream: LocalStream = lake.streams[name]
        if stream.due():
            stream.transformed("failed", message[:1000], ())


def main(socket: str, blobs: str, seconds: str) -> None:
    os.nice(5)
    with open_lake(socket, blobs=blobs) as lake:
        assert isinstance(lake, LocalLake)
        more = True
        while more:
            run_pending(lake, _begin)
            more = _wait(float(seconds))


def _begin(name: str) -> None:
    print(json.dumps(name), flush=True)  # noqa: T201 - the keeper reads it


def _wait(seconds: float) -> bool:
    """Whether there is more work."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], seconds)
    return bool(ready and os.read(sys.stdin.fileno(), 4096))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        main(*sys.argv[1:4])
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except OSError as error:
        log.warning("not now: %s", error)
        sys.exit(LATER)
