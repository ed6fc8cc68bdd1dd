"""How many workers of a Dask cluster run: as many as its work wants, between two numbers, until its time is over.

`dask scheduler --preload clachan_lake.elastic.sizing`, with the variable CLACHAN_DASK_SIZING: a file, see `Settings`;
numbers that change there hold at once.
Each place of a worker (`standby`) asks over TLS with the cluster's credential: a line {"name", "number"}, answered by
{"run": whether its worker is to run}. Low numbers run first; idle workers go first, those that hold no data before
others, and none whose data no other can take.

`python -m clachan_lake.elastic.sizing --check FILE` says how it stands and what it has cost, and fails when nobody says
it any more.
"""

import asyncio
import json
import logging
import os
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clachan_lake import settings
from clachan_lake.telling import tell, told

log = logging.getLogger(__name__)
VARIABLE = "CLACHAN_DASK_SIZING"
STEP_SECONDS = 1.0
ASK_SECONDS = 5.0
HEARD_SECONDS = 15.0
OLD_SECONDS = 60.0
LINE_BYTES = 4096
HOUR = 3600


@dataclass(frozen=True)
class Settings:
    host: str
    port: int
    credential: Path
    """PEM, key and certificate: the one certificate that is trusted, too."""
    state: Path
    """Where it writes how it stands, and goes on from when it is started again."""
    maximum: int
    minimum: int = 0
    idle_seconds: float = 60.0
    """A worker for which there was no work for so long ends."""
    seconds: int = 0
    """Of the cluster's life, from its first start; then no worker runs. 0: for ever."""
    price: float = 0.0
    """Of one worker for an hour, in whatever its owner counts in."""


class Sizing:
    """What `scheduler` (distributed's) needs is asked for by `step`, once a second."""

    def __init__(self, scheduler: Any, given: Settings, clock: Callable[[], float] = time.time) -> None:
        self._scheduler = scheduler
        self.settings = given
        self._clock = clock
        self._last = clock()
        self._surplus_since: float | None = None
        self._places: dict[str, tuple[int, float]] = {}
        self.running: set[str] = set()
        """Names of the places whose worker is to run."""
        before = told(given.state)
        self._began = float(before.get("began", self._last))
        self._worker_seconds = float(before.get("worker_seconds", 0.0))

    @property
    def ends(self) -> float | None:
        return self._began + self.settings.seconds if self.settings.seconds else None

    @property
    def is_over(self) -> bool:
        return self.ends is not None and self._clock() >= self.ends

    def asked(self, name: str, number: int) -> bool:
        """A place is there; whether its worker is to run."""
        self._places[name] = (number, self._clock())
        return name in self.running

    async def step(self) -> None:
        now = self._clock()
        self._worker_seconds += max(0.0, now - self._last) * len(self._scheduler.workers)
        self._last = now
        self._forget(now)
        wanted = self._wanted()
        self._grow(wanted)
        await self._shrink(wanted, now)
        self._tell(now, wanted)

    def _wanted(self) -> int:
        if self.is_over:
            return 0
        return min(self.settings.maximum, max(self.settings.minimum, int(self._scheduler.adaptive_target())))

    def _forget(self, now: float) -> None:
        """Places that ask no more, as those of a node that is away: another one's worker runs instead."""
        here = self._names()
        for name, (_, heard) in list(self._places.items()):
            if now - heard > HEARD_SECONDS and name not in here:
                del self._places[name]
                self.running.discard(name)

    def _names(self) -> set[str]:
        return {str(worker.name) for worker in self._scheduler.workers.values()}

    def _grow(self, wanted: int) -> None:
        waiting = sorted((number, name) for name, (number, _) in self._places.items() if name not in self.running)
        for _, name in waiting[: max(0, wanted - len(self.running))]:
            self.running.add(name)

    async def _shrink(self, wanted: int, now: float) -> None:
        surplus = len(self.running) - wanted
        if surplus <= 0:
            self._surplus_since = None
            return
        if self._surplus_since is None:
            self._surplus_since = now
        if self.is_over:
            await self._retire(list(self.running & self._names()))
            self.running.clear()
        elif now - self._surplus_since >= self.settings.idle_seconds:
            await self._end(surplus)

    async def _end(self, surplus: int) -> None:
        here = self._names()
        starting = sorted(self.running - here, key=lambda name: self._places.get(name, (0, 0))[0], reverse=True)
        self.running.difference_update(starting[:surplus])
        idle = self._scheduler.workers_to_close(minimum=self.settings.minimum, attribute="name")
        chosen = [name for name in map(str, idle) if name in self.running][: max(0, surplus - len(starting))]
        await self._retire(chosen)
        # one whose data no other could take is still there
        self.running.difference_update(set(chosen) - self._names())

    async def _retire(self, names: list[str]) -> None:
        if names:
            log.info("ending idle workers: %s", ", ".join(sorted(names)))
            await self._scheduler.retire_workers(names=names, close_workers=True)

    def _tell(self, now: float, wanted: int) -> None:
        standing = {
            "time": now,
            "began": self._began,
            "ends": self.ends,
            "wanted": wanted,
            "workers": len(self._scheduler.workers),
            "places": len(self._places),
            "worker_seconds": self._worker_seconds,
            "price": self.settings.price,
        }
        tell(self.settings.state, standing)


def context(credential: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    """Of TLS between those who have the credential, and nobody else."""
    made = ssl.create_default_context(purpose, cafile=str(credential))
    made.load_cert_chain(credential)
    # the certificate is one for all, and names no host
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    return made


class Service:
    """Answers places, and has the sizing step, until it is closed."""

    def __init__(self, scheduler: Any, file: Path) -> None:
        """Raises ValueError, OSError for what is wrong with the file."""
        self._file, self._read = file, file.stat().st_mtime_ns
        self._sizing = Sizing(scheduler, settings.load(file, Settings))
        self._server: asyncio.Server | None = None
        self._steps: asyncio.Task[None] | None = None

    async def start(self) -> None:
        given = self._sizing.settings
        secured = context(given.credential, ssl.Purpose.CLIENT_AUTH)
        self._server = await asyncio.start_server(
            self._answer, given.host, given.port, ssl=secured, limit=LINE_BYTES, ssl_handshake_timeout=ASK_SECONDS
        )
        self._steps = asyncio.create_task(self._step())

    async def close(self) -> None:
        if self._server:
            self._server.close()
        if self._steps:
            self._steps.cancel()

    async def _step(self) -> None:
        while True:
            try:
                self._again()
                await self._sizing.step()
            except Exception:
                # the scheduler is not to end by it; `--check` fails when it does not write any more
                log.exception("size of the cluster")
            await asyncio.sleep(STEP_SECONDS)

    def _again(self) -> None:
        """Read the settings, when they were written anew."""
        if (written := self._file.stat().st_mtime_ns) != self._read:
            self._sizing.settings, self._read = settings.load(self._file, Settings), written

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await asyncio.wait_for(reader.readline(), ASK_SECONDS))
            run = self._sizing.asked(str(asked["name"])[:1000], int(asked["number"]))
            writer.write(json.dumps({"run": run}).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), ASK_SECONDS)
        except (OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
            log.debug("a place that asked wrongly: %r", error)
        finally:
            writer.close()
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), ASK_SECONDS)


async def dask_setup(scheduler: Any) -> None:
    """Called by distributed, in the scheduler's loop. Raises ValueError, OSError for what is wrong with the file."""
    scheduler.clachan_sizing = Service(scheduler, Path(os.environ[VARIABLE]))
    await scheduler.clachan_sizing.start()


async def dask_teardown(scheduler: Any) -> None:
    await scheduler.clachan_sizing.close()


def said(file: Path, now: float) -> tuple[str, bool]:
    """How the cluster stands, for people, and whether all is well."""
    one = told(file)
    if not one or now - one["time"] > OLD_SECONDS:
        return f"size {file}: not written for {OLD_SECONDS:.0f} s, expected so by the scheduler", False
    hours = one["worker_seconds"] / HOUR
    text = f"{one['workers']} of {one['places']} workers run, {one['wanted']} wanted; {hours:.2f} worker hours"
    if one["price"]:
        text += f", cost {hours * one['price']:.2f}"
    if one["ends"]:
        left = one["ends"] - now
        text += f"; ends in {left / HOUR:.1f} h" if left > 0 else "; its time is over, so no worker runs"
    return text, True


def main(arguments: list[str]) -> int:
    """Exit status: 0, 1 for what is not well, 2 for wrong use."""
    if len(arguments) != 2 or arguments[0] != "--check":
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    text, well = said(Path(arguments[1]), time.time())
    print(text)  # noqa: T201
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
