"""The part of the agent that carries streams, as a process of its own, for nodes that a test joined itself."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AGENT = """
import sys, threading
from pathlib import Path
from clachan.agent.layout import Layout
from clachan.agent.link import Answers, Link, keep_doing
from clachan.agent.planning import hosts_of
from clachan.agent.streams import Carrier

layout = Layout(Path(sys.argv[1]))
link = Link(layout, layout.load_config())
find = lambda instance: hosts_of(link.client().slice().document.inventory)[0].get(instance)
keep_doing(threading.Event(), "questions", Answers(link, find, Carrier(link).begin, print).step)
"""


@contextlib.contextmanager
def running(*command: str | Path, log: Path) -> Iterator[None]:
    with log.open("ab") as file, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file) as one:
        try:
            yield
        finally:
            one.terminate()


@contextlib.contextmanager
def agent_part(live: Any, node: Any, home: Path) -> Iterator[None]:
    """It runs as the joined node; what it says is in `<home>.log`."""
    own = home / "node"
    own.mkdir(parents=True)
    for name, source in (("key.pem", node.cert[1]), ("cert.pem", node.cert[0]), ("ca.pem", node.ca_file)):
        shutil.copy(source, own / name)
    nowhere = dict.fromkeys(("slots_directory", "supervisor_socket", "platform_path"), "/nonexistent")
    config = {"controller_url": live.url, "node_name": node.name, "mode": "root", "slots": 0, "users": []}
    (own / "config.json").write_text(json.dumps(config | nowhere))
    with running(sys.executable, "-c", AGENT, home, log=home.with_suffix(".log")):
        yield
