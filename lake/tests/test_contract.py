"""The contract that ships with the package, on every storage."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.database import database, join, own
from clachan_lake.local import LocalLake
from clachan_lake.storage.memory import MemoryStorage
from clachan_lake.testing import LakeContract, OpenSession

from .making import Server
from .postgres import Cluster


class Sessions:
    """Opens them on one database, which is opened again when all were closed."""

    def __init__(self, storage: Callable[[], Any]) -> None:
        self._storage = storage
        self._open: list[LocalLake] = []
        self._db: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> LocalLake:
        with self._lock:
            # a thread may be in the middle of closing its own
            self._open = [lake for lake in self._open if lake._connection.opened]
            if not self._open:
                self.close()
                self._db = database(self._storage())
            self._open.append(LocalLake(self._db, close_database=False))
            return self._open[-1]

    def close(self) -> None:
        for lake in self._open:
            lake.close()
        if self._db is not None:
            self._db.close()
        self._open, self._db = [], None


class Clients:
    """Each session is a client of its own, as those of other processes are."""

    def __init__(self, storage: Callable[[], Any]) -> None:
        self._storage = storage
        self._open: list[LocalLake] = []

    def __call__(self) -> LocalLake:
        lake = LocalLake(database(self._storage()))
        self._open.append(lake)
        return lake

    def close(self) -> None:
        for lake in self._open:
            with suppress(Exception):
                lake.close()


class TestFileStorage(LakeContract):
    @pytest.fixture
    def open_session(self, tmp_path: Path) -> Iterator[OpenSession]:
        sessions = Sessions(lambda: own(tmp_path / "lake"))
        yield sessions
        sessions.close()


class TestMemory(LakeContract):
    """ZODB's MappingStorage: without blobs, and in memory: it is kept when all sessions are closed."""

    @pytest.fixture
    def open_session(self) -> Iterator[OpenSession]:
        storage = MemoryStorage(kept=True)
        sessions = Sessions(lambda: storage)
        yield sessions
        sessions.close()


@pytest.mark.slow
class TestServer(LakeContract):
    """ZEO: the process is one for all, its clients are new."""

    @pytest.fixture
    def open_session(self, server: Server) -> Iterator[OpenSession]:
        clients = Clients(lambda: join(server.socket, server.folder / "blobs", 10))
        yield clients
        clients.close()


@pytest.fixture(scope="module")
def url(postgres: Cluster) -> str:
    return postgres.create()


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("postgresql") / "blobs"


@pytest.mark.slow
class TestPostgreSQL(LakeContract):
    @pytest.fixture
    def open_session(self, url: str, blobs: Path) -> Iterator[OpenSession]:
        from clachan_lake.storage.postgresql import connect

        clients = Clients(lambda: connect(url, blobs, read_only=False, wait_seconds=10))
        yield clients
        clients.close()
