"""Documents that are typed as they stand there: each block of code runs, and prints what it says."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"print\(.*\)  # (.+)$", re.MULTILINE)


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


def run_blocks(blocks: Iterable[tuple[str, str]], document: str, shell: Shell | None, **names: Any) -> None:
    """In their order; those of Python share their names."""
    names = {"__name__": "__main__", **names}
    for kind, code in blocks:
        if kind == "sh":
            assert shell is not None
            shell.run(code)
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, document, "exec"), names)
        assert said.getvalue().splitlines() == PRINTED.findall(code), code
