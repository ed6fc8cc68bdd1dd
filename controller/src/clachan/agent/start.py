"""The agent's start: what is needed to join first, the rest afterwards (see `invitation`)."""

import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from clachan.agent import invitation
from clachan.agent.layout import AgentError, Layout

KEPT = {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"}
KEPT_SUFFIXES = ("_proxy", "_PROXY")


def quickly(arguments: list[str]) -> None:
    """Run and end the process, when it is the command line of a service; else do nothing, and Typer reads it."""
    if arguments[:2] == ["run", "--home"] and len(arguments) == 3:
        try:
            run(Layout(Path(arguments[2]).absolute()))
        except AgentError as error:
            sys.exit(f"clachan agent: {error}")
        sys.exit()


def run(layout: Layout) -> None:
    """Until SIGTERM. Raises AgentError when it cannot begin."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    clean_environment()
    stop = threading.Event()
    ends: list[Callable[[], None]] = [stop.set]

    def end(_signal: int, _frame: FrameType | None) -> None:
        for one in ends:
            one()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    _only_one(layout)
    if not invitation.accept(layout, stop):
        return
    # only now: a machine that joins does so sooner
    from clachan.agent.loop import Agent
    from clachan.agent.supervisord import Supervisord

    config, identity = layout.load_config(), layout.load_identity()
    agent = Agent(layout, config, identity, Supervisord(Path(config.supervisor_socket)))
    ends.append(agent.end)
    if not stop.is_set():
        agent.run()


def _only_one(layout: Layout) -> None:
    """Hold the lock as long as this process lives."""
    try:
        lock = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AgentError(f"agent of {layout.home}: another one runs, expected none") from error
    except OSError as error:
        raise AgentError(f"file {layout.lock}: {error.strerror}, expected a node's home") from error


def clean_environment() -> None:
    """Nothing of whoever started the agent reaches roles and runs."""
    for name in list(os.environ):
        if name not in KEPT and not name.endswith(KEPT_SUFFIXES):
            del os.environ[name]
