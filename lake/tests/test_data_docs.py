"""The tutorial of docs/data.md, typed as it stands there; and what the document says of the forwarder."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from .test_forward_records import record
from .test_forward_spool import METRICS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"print\(.*\)  # (.+)$", re.MULTILINE)
PORT = "8075"


class Shell:
    """One bash, in which block follows block as for somebody who types; what it leaves running is ended."""

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._said = folder / "said"
        self._out = self._said.open("wb")
        self._bash = subprocess.Popen(
            ["bash", "-e"],
            cwd=folder,
            env={**os.environ, "PATH": path, "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._count = 0

    def run(self, commands: str) -> None:
        self._count += 1
        done = f"block {self._count} is done"
        assert self._bash.stdin
        self._bash.stdin.write(f"{commands}\necho {done}\n".encode())
        self._bash.stdin.flush()
        end = time.monotonic() + 90
        while done not in self.said:
            assert self._bash.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.05)

    @property
    def said(self) -> str:
        return self._said.read_text()

    def close(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._bash.pid, sign)
            time.sleep(1)
        self._bash.communicate()
        self._out.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    if shutil.which("bash") is None:
        pytest.skip("this machine cannot: no bash")
    made = Shell(tmp_path)
    yield made
    made.close()


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


@pytest.mark.slow
def test_the_tutorial_works(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    tutorial = DOCUMENT.read_text().partition("\n## From fluentd to a plot\n")[2].partition("\n## ")[0]
    port = free_port()
    names: dict[str, Any] = {"__name__": "docs"}
    blocks = BLOCK.findall(tutorial.replace(PORT, port))
    assert len(blocks) == 6
    for kind, code in blocks:
        if kind == "sh":
            shell.run(code)
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, str(DOCUMENT), "exec"), names)
        assert said.getvalue().splitlines() == PRINTED.findall(code), code
    assert "weather/roof" in shell.said
    assert "Weather, roof" in shell.said
    assert "caught up" in shell.said
    assert (tmp_path / "weather.png").read_bytes().startswith(b"\x89PNG")
    [gadget] = re.findall(r'src="(http://127\.0\.0\.1:\d+/gadget[^"]+)"', (tmp_path / "page.html").read_text())
    page = requests.get(gadget, timeout=20)
    assert page.status_code == 200, page.text
    assert "weather/roof" in page.text
    other = requests.get(gadget.replace("name=weather/roof", "name=weather/cellar"), timeout=20)
    assert other.status_code == 403


def test_the_records_are_described() -> None:
    """Each key of what the forwarder ships stands in the document."""
    forwarder = DOCUMENT.read_text().partition("\n## The forwarder\n")[2]
    missing = [key for key in {*METRICS, *record(1)} if f"`{key}`" not in forwarder]
    assert not missing
    samples = [json.loads(line) for line in re.findall(r'^\{"(?:time|id)".*\}$', forwarder, re.MULTILINE)]
    assert [set(sample) for sample in samples] == [METRICS, set(record(1))]
