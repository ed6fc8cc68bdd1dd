"""The section of docs/data.md about work that outlives the notebook, typed as it stands there."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.opening import open_lake

from .making import TOKEN, Server
from .test_data_docs import BLOCK, DOCUMENT, PRINTED
from .working import WorkerProcess


@pytest.mark.slow
def test_the_examples_work(server: Server, tmp_path: Path) -> None:
    section = DOCUMENT.read_text().partition("\n## Work that outlives the notebook\n")[2].partition("\n## ")[0]
    blocks = BLOCK.findall(section)
    assert len(blocks) == 3
    worker = WorkerProcess(server, tmp_path / "worker", processes=2)
    try:
        with open_lake(server.url, token=TOKEN) as lake:
            names: dict[str, Any] = {"__name__": "__main__", "lake": lake}
            for _kind, code in blocks:
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    exec(compile(code, str(DOCUMENT), "exec"), names)
                assert said.getvalue().splitlines() == PRINTED.findall(code), code
    finally:
        worker.stop()
