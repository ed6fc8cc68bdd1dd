"""Every block of code in docs/arrays.md runs, in order, and prints what it says."""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "arrays.md"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"print\(.*\)  # (.+)$", re.MULTILINE)


class Shell:
    """Runs blocks of shell commands; what they leave running is ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._groups: list[int] = []

    def run(self, commands: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with (self._folder / "said").open("wb") as said:
            running = subprocess.Popen(
                ["bash", "-e", "-c", commands],
                cwd=self._folder,
                env={**os.environ, "PATH": path, "COLUMNS": "200"},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._groups.append(running.pid)
            status = running.wait(60)
        assert status == 0, (self._folder / "said").read_text()

    def close(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for group in self._groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, sign)
            time.sleep(0.5)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    if shutil.which("bash") is None:
        pytest.skip("this machine cannot: no bash")
    made = Shell(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_the_document_runs(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask", reason="this machine cannot: no dask")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, Any] = {"__name__": "docs"}
    blocks = BLOCK.findall(DOCUMENT.read_text())
    assert len(blocks) >= 15
    for kind, code in blocks:
        if kind == "sh":
            shell.run(code)
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, str(DOCUMENT), "exec"), names)
        assert said.getvalue().splitlines() == PRINTED.findall(code), code
    assert (tmp_path / "year.png").stat().st_size > 1000
    assert (tmp_path / "year.zarr" / "zarr.json").exists()
    assert (tmp_path / "restored" / "data.fs").exists()
    assert "the first year" in (tmp_path / "said").read_text()
