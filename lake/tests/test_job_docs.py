"""The section of docs/data.md about work that outlives the notebook, typed as it stands there."""

from pathlib import Path

import pytest
from clachan_lake.opening import open_lake

from .documented import BLOCK, DOCS, run_blocks
from .making import TOKEN, Server
from .working import WorkerProcess

DOCUMENT = DOCS / "data.md"


@pytest.mark.slow
def test_the_examples_work(server: Server, tmp_path: Path) -> None:
    section = DOCUMENT.read_text().partition("\n## Work that outlives the notebook\n")[2].partition("\n## ")[0]
    blocks = BLOCK.findall(section)
    assert len(blocks) == 3
    worker = WorkerProcess(server, tmp_path / "worker", processes=2)
    try:
        with open_lake(server.url, token=TOKEN) as lake:
            run_blocks(blocks, DOCUMENT.name, None, lake=lake)
    finally:
        worker.stop()
