"""What the host is asked for: commands, processes by number and start time, files and locks of the testbed."""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# posix_spawn has no hook before exec, so a shell moves itself into the control groups first
INTO_GROUPS = 'while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'


class LabError(RuntimeError):
    """The testbed cannot do what was asked; the text says which part and what the host answered."""


def testbed() -> Path:
    """The folder of all bases, layers, wheels and labs."""
    folder = Path(os.environ.get("CLACHAN_TESTBED") or "/var/tmp/clachan-testbed")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def needed_packages() -> list[str]:
    lines = (HERE / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def install_packages() -> None:
    """Install what `packages.txt` names and the host lacks; needs root, asks nothing."""
    missing = [name for name in needed_packages() if not _installed(name)]
    if not missing:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], env=environment)
    run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing], env=environment)


def _installed(package: str) -> bool:
    answer = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True, check=False
    )
    return answer.stdout == "installed"


def run(command: Sequence[str | Path], *, env: dict[str, str] | None = None, timeout: float = 900) -> str:
    """Standard output of a command; LabError with the end of its standard error when it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, env=env, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise LabError(f"command {words[0]}: {error.strerror}, expected it to start") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"command {' '.join(words[:6])}: still running after {timeout:.0f} s") from error
    if done.returncode:
        tail = (done.stderr or done.stdout).strip()[-2000:]
        raise LabError(f"command {' '.join(words[:6])}: exit {done.returncode}, expected 0: {tail}")
    return done.stdout


def spawn(
    command: Sequence[str], log: Path, groups: Sequence[Path] = (), env: dict[str, str] | None = None
) -> "Process":
    """Start a process that outlives this one, in its own session; `groups`: cgroup.procs files to enter first."""
    console = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open("/dev/null", os.O_RDONLY)
    outputs = [(os.POSIX_SPAWN_DUP2, console, number) for number in (1, 2)]
    try:
        pid = os.posix_spawnp(
            "sh",
            ["sh", "-c", INTO_GROUPS, "sh", *map(str, groups), "--", *command],
            {**os.environ, **(env or {})},
            file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 0), *outputs],
            setsid=True,
        )
    finally:
        os.close(console)
        os.close(nothing)
    return Process.of(pid)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file: two test runs make one base, not two."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Process:
    """A process that we started. The start time keeps a reused number from being taken for it."""

    pid: int
    started: int
    """Clock ticks after boot: field 22 of /proc/PID/stat."""

    @classmethod
    def of(cls, pid: int) -> "Process":
        fields = _stat(pid)
        if fields is None:
            raise LabError(f"process {pid}: gone, expected it to run")
        return cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.started and fields[0] != "Z"

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether the process ended within that time."""
        return until(lambda: not self.alive, seconds)

    def children(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def until(condition: Callable[[], bool], seconds: float, pause: float = 0.03) -> bool:
    """Ask until the condition holds; False when it still does not after that many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True
