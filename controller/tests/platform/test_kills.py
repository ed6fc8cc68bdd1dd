"""`clachan up`, killed at each of its steps with all that it started, converges when it is run again."""

import contextlib
import json
import math
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator

import pytest
from clachan.cli import platform_processes, platform_reset

from .conftest import ROOT

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(2400)]
STEP = re.compile(r"^ +\S.* +[0-9.]+ s  (ok|changed)$")


@pytest.fixture
def tone(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "tones"
    path.mkdir()
    with wave.open(str(path / "tone.wav"), "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(
            b"".join(struct.pack("<h", int(12000 * math.sin(2 * math.pi * 440 * n / 8000))) for n in range(16000))
        )
    return path


class Up:
    """One `clachan up` in a session of its own."""

    def __init__(self, home: pathlib.Path, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [pathlib.Path(sys.executable).with_name("clachan"), "up", *arguments],
            env={**os.environ, "CLACHAN_HOME": str(home), "CLACHAN_CHECKOUT": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def steps(self) -> int:
        return sum(bool(STEP.match(line)) for line in self.lines)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def kill_after(self, steps: int, seconds: float) -> bool:
        """SIGKILL to it and all below it, some time after a step; False when it had ended by itself."""
        while self.process.poll() is None and self.steps < steps:
            time.sleep(0.01)
        limit = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        killed = self.process.poll() is None
        self.kill()
        return killed

    def kill(self) -> None:
        while self.process.poll() is None:
            for pid in _below(self.process.pid):
                with contextlib.suppress(ProcessLookupError):  # it may have ended since it was listed
                    os.kill(pid, signal.SIGKILL)
        self.end()

    def end(self) -> int:
        status = self.process.wait(600)
        self._reader.join(30)
        assert self.process.stdout
        self.process.stdout.close()
        return status


@pytest.fixture
def start(home: pathlib.Path) -> Iterator[Callable[..., Up]]:
    """Starts `clachan up`; what still runs when the test ends, as it failed, is ended with it."""
    with contextlib.ExitStack() as started:

        def start(*arguments: str) -> Up:
            up = Up(home, *arguments)
            started.callback(up.kill)
            return up

        yield start


def _below(root: int) -> Iterator[int]:
    """The process and its descendants, those that live."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                parents[int(entry.name)] = int(fields[1])
    found = {root} & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    yield from found


def test_up_killed_at_each_step_converges(home: pathlib.Path, tone: pathlib.Path, start: Callable[..., Up]) -> None:
    arguments = ["--input", str(tone)]
    chance = random.Random(3)
    killed = 0
    for number in range(60):
        delay = chance.choice([0.0, 0.2, 0.7, 1.5, 4.0])
        up = start(*arguments)
        if not up.kill_after(number, delay):
            assert up.process.returncode == 0, up.text
            break
        killed += 1
        print(f"killed {delay} s after step {number}: {up.lines[-1] if up.lines else ''}")
    assert killed > 10
    last = start(*arguments)
    assert last.end() == 0, last.text
    quiet = start(*arguments)
    assert quiet.end() == 0, quiet.text
    assert re.findall(r"changed=(\d+)", quiet.text) == ["0"]
    shown = _demo(home)
    assert [one["peak_hz"] for one in shown["recordings"]] == [440.0]
    assert shown["errors"] == {}
    assert not list((home / "platform").glob(".unpack-*"))
    assert not list(home.glob(".ansible-*"))
    platform_reset.remove(home)
    assert not home.exists()
    assert not platform_processes.slot_users(home)


def _demo(home: pathlib.Path) -> dict:
    process = subprocess.run(
        [pathlib.Path(sys.executable).with_name("clachan"), "demo", "--json"],
        env={**os.environ, "CLACHAN_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


def test_a_second_up_waits_for_the_first(home: pathlib.Path, start: Callable[..., Up]) -> None:
    first = start("--no-demo")
    while not (home / "settings.json").exists():
        assert first.process.poll() is None, first.text
        time.sleep(0.05)
    second = start("--no-demo")
    assert first.end() == 0, first.text
    assert second.end() == 0, second.text
    assert second.lines[0] == f"clachan: another command works in {home}; waiting for its end"
    assert "changed=0" in second.text
