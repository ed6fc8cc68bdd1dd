"""The lake's process: owns the folder, serves it to this machine over a unix socket (ZEO) and to all over HTTP.

`python -m clachan_lake.serve CONFIG`. One process, so that idle it takes the memory of one; the transformations run in
a worker that lives while there is work.
"""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import uvloop
from BTrees.LOBTree import LOBTree

from clachan_lake import database
from clachan_lake.access.guarding import Guard
from clachan_lake.ingest import defaults
from clachan_lake.ingest.app import application
from clachan_lake.ingest.committer import Committer
from clachan_lake.ingest.config import Config, load
from clachan_lake.ingest.heap import keep_freed
from clachan_lake.ingest.protocol import BodyProtocol
from clachan_lake.ingest.receiving import Front
from clachan_lake.ingest.registry import Registry
from clachan_lake.ingest.tending import Tending
from clachan_lake.keeping.upkeep import Upkeep
from clachan_lake.local import LocalLake
from clachan_lake.settings import read_token
from clachan_lake.storage.serving import LakeServer
from clachan_lake.transform.keeper import Keeper

log = logging.getLogger(__name__)
WATCH_SECONDS = 2.0
LEAF_CHUNKS = 16
Tokens = tuple[str, dict[str, frozenset[str]]]
"""The one that may do everything, and the scopes of the others."""


class Server:
    """The HTTP service and the transformations over an open lake, until SIGTERM or SIGINT."""

    def __init__(self, config: Config, tokens: Tokens, storage: database.LakeStorage, lake: LocalLake) -> None:
        self.failed = False
        self._config = config
        self._tokens = tokens
        self._storage = storage
        self._lake = lake

    async def run(self, listener: socket.socket) -> None:
        keeper = Keeper(self._config, self._lake)
        config, lake = self._config, self._lake
        defaults.declare(lake, config)
        registry = Registry(lake.session(), *self._tokens, config.dead_mib << 20)
        self._tending = Tending(lake.session(), registry)
        self._tending.count()
        self._committer = Committer(lake.session(), registry, config.idle_seconds, keeper.due)
        for thread in (self._tending, self._committer):
            thread.start()
        upkeep = Upkeep(lake, config.history_seconds, config.pack_seconds)
        upkeep.start()
        app = application(config, registry, lake, self._committer, faults=self.faults, due=keeper.due)
        front = Front(app, Guard(app, registry.principal), app.state.ingestion)
        server = uvicorn.Server(_settings(front, config))
        app.state.jobs.closing = lambda: server.should_exit
        running = (keeper.run(), self._watch(server), app.state.jobs.run(), app.state.handing.run())
        tasks = [asyncio.create_task(one) for one in running]
        # nobody is to look through all that was loaded for cycles, again and again
        gc.freeze()
        _tell(config, listener)
        # uvicorn raises the signal again when it has shut down; the rest must still be closed then
        signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in tasks:
                task.cancel()
            upkeep.stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            for stop in (self._committer.stop, self._tending.stop, registry.close):
                await asyncio.to_thread(stop)

    def faults(self) -> list[str]:
        """What ails the process; an operator's `/healthz` and its own watch read it."""
        found = []
        if not self._committer.is_alive():
            found.append("committer: ended, expected to run")
        if not self._tending.is_alive():
            found.append("tending: ended, expected to run")
        if self._storage.broken:
            found.append("storage: a write failed, expected to be opened again")
        return found

    async def _watch(self, server: uvicorn.Server) -> None:
        """A process that cannot store any more ends, so that its supervisor starts it again."""
        while not (found := self.faults()):
            # what this session could still read no pack may take away
            self._lake.refresh()
            await asyncio.sleep(WATCH_SECONDS)
        log.error("ending: %s", "; ".join(found))
        self.failed = True
        server.should_exit = True


@contextmanager
def _storage(config: Config) -> Iterator[tuple[database.LakeStorage, LocalLake]]:
    """The folder's storage, served at the socket by a thread, and a lake of this process directly on it."""
    storage = database.own(config.folder)
    try:
        lake = LocalLake(database.database(storage), close_database=False)
        config.socket.unlink(missing_ok=True)
        zeo = LakeServer(database.socket_address(config.socket), storage)
        config.socket.chmod(0o660)
        thread = threading.Thread(target=zeo.loop, name="zeo", daemon=True)
        thread.start()
        try:
            yield storage, lake
        finally:
            lake.close()
            zeo.close()
            thread.join(5)
    finally:
        config.socket.unlink(missing_ok=True)
        if not storage.broken:
            storage.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"address {host}:{port}: {error.strerror}, expected a free one of this machine"
        ) from None
    listener.listen(256)
    return listener


def _tell(config: Config, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.certificate else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    log.info("lake %s at %s and %s", config.folder, url, config.socket)
    if config.address_file:
        draft = config.address_file.with_suffix(".tmp")
        draft.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        draft.rename(config.address_file)


def _settings(app: object, config: Config) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
        http=BodyProtocol,
        ws="none",
        lifespan="off",
        ssl_certfile=config.certificate,
        ssl_keyfile=config.key,
    )


def main(path: str) -> int:
    """Exit status: 0 after a signal, 1 when it failed, 2 for a wrong configuration."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("ZEO").setLevel(logging.WARNING)
    os.umask(0o027)
    keep_freed()
    # each append writes the last leaf of its stream anew: a commit with many streams takes half the time with short
    # ones, and in other processes that write there are seldom many
    LOBTree.max_leaf_size = LEAF_CHUNKS
    try:
        config = load(Path(path))
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 2
    try:
        return _run(config)
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 0


def _run(config: Config) -> int:
    tokens = (read_token(config.token_file), {read_token(one.file): one.scopes for one in config.tokens})
    with _listen(config.host, config.port) as listener, _storage(config) as (storage, lake):
        server = Server(config, tokens, storage, lake)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.run(listener))
        return 1 if server.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
