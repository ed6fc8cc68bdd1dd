from collections.abc import Iterator
from pathlib import Path

import pytest
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake

from .making import Server


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


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """Not started yet."""
    made = Server(tmp_path)
    yield made
    made.close()
