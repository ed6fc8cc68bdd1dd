"""What keeps the services of slots running, whichever it is: roles and the rest of the agent see no difference."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clachan.agent.layout import AgentError

PYTHON = os.path.realpath(sys.executable)
LAUNCHER = Path(__file__).with_name("launch.py")

Key = tuple[str, str]
"""(slot's name, service's name)"""


class SupervisorError(AgentError):
    """The supervisor does not answer, or does not do what it was told."""


@dataclass(frozen=True)
class Unit:
    """A service as its supervisor sees it: everything else stands in the service's document."""

    stop_seconds: int
    restart: bool
    """Whether a running process is of an older document, or of older files, and must be replaced."""


@dataclass(frozen=True)
class SlotServices:
    """All services that shall run in a slot; those it no longer names are stopped and forgotten."""

    slot: str
    directory: Path
    user: str | None
    """None: the agent's own user (unprivileged mode)."""
    units: Mapping[str, Unit]


class Supervisor(ABC):
    """Backends must allow `apply` and `pids` from several threads."""

    @abstractmethod
    def apply(self, slots: Iterable[SlotServices]) -> None:
        """Make exactly these services run in these slots, restarting only what says so; other slots stay as they are.

        Comes back when all were started and the old ones have ended; raises SupervisorError.
        """

    @abstractmethod
    def pids(self) -> dict[Key, int]:
        """The processes of all services that run now."""


def command(slot: Path, service: str) -> list[str]:
    """What a supervisor starts, as the slot's user."""
    return [PYTHON, "-I", "-S", str(LAUNCHER), str(slot), service]
