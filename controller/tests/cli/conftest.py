"""A real controller for all tests of a worker, and the command run in this process against it.

Tests share the controller: each takes names of its own.
"""

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clachan.cli.app import run
from clachan.cli.scaffold import write_software
from clachan.client import Client
from live import Live, Node, running_controller

COMMAND = str(Path(sys.executable).with_name("clachan"))


@dataclass
class Ran:
    """What came of one command line."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture(scope="session")
def command() -> str:
    """The installed command, for what needs a process of its own."""
    return COMMAND


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running_controller(tmp_path_factory.mktemp("live"), process=True, answer_seconds=2) as running:
        yield running
        running.session.close()


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    """The SDK as the operator."""
    with Client.from_credentials(live.home) as opened:
        yield opened


@pytest.fixture
def environment(live: Live) -> dict[str, str]:
    """Of a command in a process of its own, as the operator."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLACHAN_", "ANSIBLE_"))}
    return kept | {"CLACHAN_HOME": str(live.home)}


@pytest.fixture
def cli(live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Run a command line in this process as the operator; `stdin`: its standard input, which is no terminal."""
    for name in ("CLACHAN_URL", "CLACHAN_TOKEN", "CLACHAN_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLACHAN_HOME", str(live.home))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object, stdin: str = "") -> Ran:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Ran(end.value.code, captured.out, captured.err)

    return invoke


@pytest.fixture(scope="session")
def joined(live: Live) -> Iterator[Node]:
    node = live.join("here", slots=100)
    yield node
    node.session.close()


@pytest.fixture
def machine(joined: Node) -> Node:
    """The node on which the tests' instances are placed, heard of right now: however late the test comes, online."""
    joined.slice()
    return joined


@pytest.fixture
def answers(machine: Node) -> Callable[..., threading.Thread]:
    """In the background the node says of the instance at `path` that it is in these states, one after the other."""

    def begin(path: str, *states: str, seconds: float = 0.5, **last: Any) -> threading.Thread:
        def work() -> None:
            deadline = time.monotonic() + 30
            while path not in machine.slice()["records"] and time.monotonic() < deadline:
                time.sleep(0.05)
            for state in states:
                time.sleep(seconds)
                mine = machine.slice()["records"][path]["clachan_instance"]
                fact = {"kind": "instance", "instance": mine["id"], "revision": mine["revision"], "state": state}
                machine.accepted(fact | (last if state == states[-1] else {}))

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    return begin


PAGE_OPTIONS = """
      page_key:
        description: Key of the page.
        type: str
        no_log: true
      page_count:
        description: How many.
        type: int
        default: 1
      page_style:
        description: How it looks.
        type: str
        choices: [plain, loud]
        default: plain
"""


@pytest.fixture(scope="session")
def page_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with the software acme.web.page: a new one, with a secret, a number and a choice added."""
    collection = tmp_path_factory.mktemp("software") / "web"
    write_software("acme.web.page", collection)
    role = collection / "roles/page"
    specs = role / "meta/argument_specs.yml"
    specs.write_text(specs.read_text().rstrip() + PAGE_OPTIONS)
    meta = role / "meta/clachan.yml"
    meta.write_text(meta.read_text().replace("published:\n", "published:\n  password:\n    secret: true\n"))
    return collection


@pytest.fixture(scope="session")
def page(live: Live, joined: Node, page_collection: Path) -> str:
    """The software acme.web.page, registered and present on the node `here`: its name."""
    environment = os.environ | {"CLACHAN_HOME": str(live.home)}
    subprocess.run(
        [COMMAND, "software", "register", str(page_collection)], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    live.supply("here", "acme.web.page")
    supplied(joined)
    return "acme.web.page"


def supplied(node: Node) -> None:
    """The node says that everything it was to be supplied with is so."""
    for line in node.slice()["supplies"]:
        node.accepted({"kind": "supply", "supply": line["id"], "digest": line["digest"], "state": line["state"]})
