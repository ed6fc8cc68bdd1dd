import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake

from .documented import Shell
from .making import Server
from .postgres import MISSING, PROGRAMS, Cluster, cluster
from .working import WorkerProcess


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[LocalLake]:
    with open_lake(tmp_path / "lake") as opened:
        assert isinstance(opened, LocalLake)
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for a file's tests; each takes names of its own."""
    running = Server(tmp_path_factory.mktemp("server")).start()
    yield running
    running.close()


@pytest.fixture(scope="module")
def worked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for a file's tests, with a worker of two jobs at a time."""
    made = Server(tmp_path_factory.mktemp("served")).start()
    worker = WorkerProcess(made, made.directory / "worker", processes=2)
    yield made
    assert worker.stop() == 0
    made.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """Not started yet."""
    made = Server(tmp_path)
    yield made
    made.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    if shutil.which("bash") is None:
        pytest.skip("this machine cannot: no bash")
    made = Shell(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """One for all tests; each takes a database of its own."""
    if not PROGRAMS:
        pytest.skip(MISSING)
    pytest.importorskip("psycopg2", reason="this machine cannot: no psycopg2")
    pytest.importorskip("relstorage", reason="this machine cannot: no RelStorage")
    with cluster() as running:
        yield running


@pytest.fixture
def url(postgres: Cluster) -> str:
    """Of a new database."""
    return postgres.create()
