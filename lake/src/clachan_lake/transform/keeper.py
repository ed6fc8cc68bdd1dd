"""Keeps the worker: starts it when a transformation is due, and gives up on a stream that it died of twice."""

import asyncio
import json
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter

from starlette.concurrency import run_in_threadpool

from clachan_lake.ingest.config import Config
from clachan_lake.local import LocalLake
from clachan_lake.transform import worker

log = logging.getLogger(__name__)
DEATHS = 2
LATER_SECONDS = 10.0


class Keeper:
    """`due()` may be called from any thread; `run()` is a task of the event loop."""

    def __init__(self, config: Config, lake: LocalLake) -> None:
        self._config = config
        self._lake = lake
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._event.set()
        self._process: Process | None = None
        self._current: str | None = None
        self._deaths: Counter[str] = Counter()

    def due(self) -> None:
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._event.set()
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(b"\n")

    async def run(self) -> None:
        try:
            while True:
                await self._event.wait()
                self._event.clear()
                while await run_in_threadpool(self._pending):
                    await self._work()
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.terminate()
                await self._process.wait()

    def _pending(self) -> bool:
        with self._lake.session() as session:
            return bool(session.root()["pending"])

    async def _work(self) -> None:
        config = self._config
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-m", "clachan_lake.transform.worker"),
            *(str(config.socket), str(config.blobs), str(config.worker_seconds)),
            stdin=PIPE,
            stdout=PIPE,
        )
        self._current = None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._current = json.loads(line)
        status = await self._process.wait()
        self._process = None
        if status == worker.LATER:
            await asyncio.sleep(LATER_SECONDS)
        elif status:
            await self._died(status)

    async def _died(self, status: int) -> None:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        log.warning("worker ended with %s at stream %r", how, self._current)
        if self._current is None:
            await asyncio.sleep(LATER_SECONDS)
            return
        self._deaths[self._current] += 1
        if self._deaths[self._current] >= DEATHS:
            del self._deaths[self._current]
            await run_in_threadpool(self._give_up, self._current, how)

    def _give_up(self, name: str, how: str) -> None:
        with self._lake.session() as session:
            worker.fail(session, name, f"the worker died of it {DEATHS} times ({how})")
