"""A job's process, as its worker sees it: started with a folder and limits of its own, its output read, ended whole."""

import codecs
import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

OUTPUT_BYTES = 256 << 10
OUTCOME_BYTES = 64 << 10
MARK = "CLACHAN_JOB"
ROUNDS = 20


class Child:
    """`marks` are variables by which whatever it starts is found again."""

    def __init__(self, folder: Path, python: str, settings: dict[str, Any], environment: dict[str, str]) -> None:
        self._folder = folder
        self._output = _Output()
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "tmp").mkdir()
        self._mark = environment[MARK]
        self._process = subprocess.Popen(
            [python, "-I", "-u", "-m", "clachan_lake.jobs.running", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder / "tmp",
            env={**environment, "TMPDIR": str(folder / "tmp"), "HOME": str(folder / "tmp")},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="output", daemon=True)
        self._reader.start()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def output(self) -> bytes:
        """What it printed since; UTF-8, as much as fits."""
        return self._output.take()

    def end(self) -> None:
        """It and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        end_marked(MARK, self._mark)
        self._reader.join(5)

    def outcome(self) -> dict[str, Any]:
        """State, message, kind of the result."""
        try:
            with (self._folder / "outcome.json").open("rb") as file:
                found = json.loads(file.read(OUTCOME_BYTES))
            kind = found.get("kind")
            if found["state"] not in {"done", "failed"} or (found["state"] == "done") != isinstance(kind, str):
                raise ValueError("wrong state")
            return {"state": found["state"], "message": str(found["message"])[:1000], "kind": kind}
        except (OSError, ValueError, KeyError, AttributeError):
            return {"state": "failed", "message": self._how(), "kind": None}

    @property
    def result(self) -> Path:
        return self._folder / "result"

    def _how(self) -> str:
        status = self._process.returncode
        if status == -signal.SIGKILL:
            return "its process was killed (signal 9), perhaps as memory ran out; expected it to return"
        how = f"died of signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"its process {how}, expected it to return"

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while data := os.read(pipe.fileno(), 64 << 10):
                self._output.add(data)
        self._output.close()


class _Output:
    """Text on its way to the lake; of a flood the first part that fits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._lost = 0

    def add(self, data: bytes) -> None:
        with self._lock:
            self._keep(self._decoder.decode(data))

    def close(self) -> None:
        with self._lock:
            self._keep(self._decoder.decode(b"", final=True))

    def _keep(self, text: str) -> None:
        # a character has 4 bytes at most
        room = OUTPUT_BYTES // 4 - 100 - len(self._text)
        self._text += text[: max(0, room)]
        self._lost += max(0, len(text) - max(0, room))

    def take(self) -> bytes:
        with self._lock:
            found, lost = self._text, self._lost
            self._text, self._lost = "", 0
        return (found + (f"\n[{lost} characters were too many]\n" if lost else "")).encode()


def end_marked(name: str, mark: str) -> None:
    """End the processes of this user that have the variable, until there is none."""
    wanted = f"{name}={mark}".encode()
    for _ in range(ROUNDS):
        found = [pid for pid in _own() if wanted in _environment(pid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _own() -> list[int]:
    own, found = os.getuid(), []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == own and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def remove(folder: Path) -> None:
    """Also what the job has made read-only."""

    def again(_function: Any, path: str, _error: Any) -> None:
        with contextlib.suppress(OSError):
            Path(path).parent.chmod(0o700)
            Path(path).chmod(0o700)
            shutil.rmtree(path) if Path(path).is_dir() and not Path(path).is_symlink() else Path(path).unlink()

    shutil.rmtree(folder, onerror=again)
