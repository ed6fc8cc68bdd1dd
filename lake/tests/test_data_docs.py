"""The tutorial of docs/data.md, typed as it stands there; and what the document says of the forwarder."""

import json
import re
import socket
from pathlib import Path

import pytest
import requests

from .documented import BLOCK, DOCS, Shell, run_blocks
from .test_forward_records import record
from .test_forward_spool import METRICS

DOCUMENT = DOCS / "data.md"
PORT = "8075"


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


@pytest.mark.slow
def test_the_tutorial_works(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    tutorial = DOCUMENT.read_text().partition("\n## From fluentd to a plot\n")[2].partition("\n## ")[0]
    port = free_port()
    blocks = BLOCK.findall(tutorial.replace(PORT, port))
    assert len(blocks) == 6
    run_blocks(blocks, DOCUMENT.name, shell)
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
