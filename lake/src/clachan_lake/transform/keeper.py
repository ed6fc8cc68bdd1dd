"""Keeps the worker: starts it when something is due, ends it when a call takes too long, and notes what it died of."""

import asyncio
import json
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

from starlette.concurrency import run_in_threadpool

from clachan_lake.ingest.config import Config
from clachan_lake.local import LocalLake
from clachan_lake.transform import engine, queue, worker
from clachan_lake.transform.engine import Call

log = logging.getLogger(__name__)
LATER_SECONDS = 10.0
POLL_SECONDS = 0.25
"""So often it looks whether other processes have committed something."""
LINE_BYTES = 1 << 20


class Keeper:
    """`due()` may be called from any thread; `run()` is a task of the event loop."""

    def __init__(self, config: Config, lake: LocalLake) -> None:
        self._config = config
        self._lake = lake.session()
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._event.set()
        self._seen = self._revision = b""
        self._known: queue.Known = {}
        self._retry: float | None = None
        self._process: Process | None = None
        self._call: Call | None = None
        self._late = False

    def due(self) -> None:
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._event.set()
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(b"\n")

    async def run(self) -> None:
        try:
            while True:
                await self._wait()
                while await run_in_threadpool(self._pending):
                    await self._work()
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.terminate()
                await self._process.wait()

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), POLL_SECONDS)
        self._event.clear()

    def _pending(self) -> bool:
        self._lake.refresh()
        retry = self._retry is not None and time.monotonic() >= self._retry
        if self._lake.tid == self._seen and not retry:
            return False
        seen = self._lake.tid
        found = queue.ready(self._lake, self._known)
        revision = queue.revision(self._lake)
        if declared := revision != self._revision:
            self._revision = revision
        self._retry = None if found.seconds is None else time.monotonic() + found.seconds
        if not found.keys:
            # else it is asked again when the worker has ended
            self._seen = seen
        return bool(found.keys) or (declared and bool(len(self._lake.transformations)))

    async def _work(self) -> None:
        config = self._config
        self._call, self._late = None, False
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-m", "clachan_lake.transform.worker"),
            *(str(config.socket), str(config.blobs), str(config.worker_seconds)),
            stdin=PIPE,
            stdout=PIPE,
            limit=LINE_BYTES,
        )
        await self._watch(self._process)
        status = await self._process.wait()
        self._process = None
        if status == worker.LATER:
            await asyncio.sleep(LATER_SECONDS)
        elif status:
            await self._died(status)

    async def _watch(self, process: Process) -> None:
        """Follow what it tells until it ends; end it when a call takes longer than it may."""
        assert process.stdout is not None
        while True:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), self._call.seconds if self._call else None)
            except TimeoutError:
                self._late = True
                process.kill()
                return
            if not line:
                return
            told = json.loads(line)
            self._call = told and Call(**{**told, "key": tuple(told["key"])})

    async def _died(self, status: int) -> None:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        call = self._call
        if call is None:
            log.warning("worker ended with %s", how)
            await asyncio.sleep(LATER_SECONDS)
            return
        message = f"the call took longer than {call.seconds:g} s" if self._late else f"the worker died of it ({how})"
        try:
            await run_in_threadpool(engine.fail, self._lake, call, message, "function")
        except OSError as error:
            log.warning("transformation %s: not noted that it failed: %s", call.key[2], error)
            await asyncio.sleep(LATER_SECONDS)
