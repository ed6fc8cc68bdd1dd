"""Killing a process at each of its steps on the file system, one after the other."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

STEPS = """
import os, signal, sys

def _counted(call):
    def step(*arguments, **options):
        global _left
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return step

def arm(number):
    "From now on the process is killed before its step of that number."
    global _left
    _left = number
    for name in ("rename", "replace", "remove", "unlink", "link", "rmdir", "mkdir", "fsync", "open", "chmod"):
        setattr(os, name, _counted(getattr(os, name)))
"""


def killed_at_each_step(script: str, *arguments: str | Path, first: int = 1, stride: int = 1) -> Iterator[int]:
    """Runs the script, which calls `arm(int(sys.argv[1]))`, until it comes to its end; the number of each step at
    which it was killed."""
    for number in range(first, 10_000, stride):
        command = [sys.executable, "-c", STEPS + script, str(number), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        assert done.returncode == -9, done.stderr
        yield number
    raise AssertionError("script: not at its end after 10,000 steps")
