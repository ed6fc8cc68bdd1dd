"""Groups that other packages bring: `controller` and `agent` by an extra of this distribution, `lake` by its own.

Their code is imported when one of their verbs is asked for; until then only their names are known.
"""

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from clachan.cli.errors import CommandError


class _Lazy(TyperGroup):
    """Stands for the group that `module:app` is."""

    module: ClassVar[str]
    extra: ClassVar[str]

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> Any:
        try:
            loaded = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise CommandError(
                f"{self.name}: the package {error.name!r} is missing, "
                f"expected the extra {self.extra!r} to be installed: pip install 'clachan[{self.extra}]'"
            ) from error
        command = typer.main.get_command(loaded.app)
        command.name = self.name
        return command


class _Controller(_Lazy):
    module = "clachan.server.command"
    extra = "server"


class _Agent(_Lazy):
    module = "clachan.agent.command"
    extra = "agent"


class _Lake(TyperGroup):
    """Everything after `clachan lake` belongs to the command `clachan-lake`."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if extra.get("resilient_parsing"):
            return super().make_context(info_name, [], parent, **extra)
        beside = Path(sys.executable).with_name("clachan-lake")
        command = str(beside) if beside.is_file() else shutil.which("clachan-lake")
        if command is None:
            raise CommandError("lake: the command clachan-lake is missing, expected it from: pip install clachan-lake")
        sys.stdout.flush()
        return os.execv(command, ["clachan lake", *args])  # noqa: S606 - no shell on purpose


controller = typer.Typer(cls=_Controller, help="Run the controller (extra 'server').")
agent = typer.Typer(cls=_Agent, help="Run a node's agent (extra 'agent').")
lake = typer.Typer(cls=_Lake, help="Streams, arrays and ingestion: the command clachan-lake.")
