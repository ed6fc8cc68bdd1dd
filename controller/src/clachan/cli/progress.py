"""Saying what is waited for, and why: one live line on a terminal, else a line for each change. On standard error."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from clachan.cli.output import clean

if TYPE_CHECKING:
    from rich.text import Text


class Progress:
    """`with Progress("home.lake") as progress: progress.say("converging", "run 3 of 5")`"""

    def __init__(self, what: str) -> None:
        self.what = what
        self._began = time.monotonic()
        self._said = ("", "")
        self._live: Any = None

    def say(self, state: str, message: str = "") -> None:
        if (state, message) == self._said:
            return
        self._said = (state, message)
        if self._live is None:
            print(f"[{self.elapsed():4.0f} s] {self._line()}", file=sys.stderr, flush=True)

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                get_renderable=self._render, console=Console(stderr=True), refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self) -> str:
        state, message = (clean(part) for part in self._said)
        return f"{self.what} {state}: {message}" if message else f"{self.what} {state}".rstrip()

    def _render(self) -> "Text":
        from rich.text import Text

        return Text(f"{self._line()} · {self.elapsed():.0f} s", overflow="ellipsis", no_wrap=True)
