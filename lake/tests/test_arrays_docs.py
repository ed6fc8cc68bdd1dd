"""Every block of code in docs/arrays.md runs, in order, and prints what it says."""

from pathlib import Path

import pytest

from .documented import BLOCK, DOCS, Shell, run_blocks

DOCUMENT = DOCS / "arrays.md"


@pytest.mark.slow
def test_the_document_runs(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask", reason="this machine cannot: no dask")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    blocks = BLOCK.findall(DOCUMENT.read_text())
    assert len(blocks) >= 15
    run_blocks(blocks, DOCUMENT.name, shell)
    assert (tmp_path / "year.png").stat().st_size > 1000
    assert (tmp_path / "year.zarr" / "zarr.json").exists()
    assert (tmp_path / "restored" / "data.fs").exists()
    assert "the first year" in (tmp_path / "said").read_text()
