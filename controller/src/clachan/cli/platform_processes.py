"""The processes of the platform on this machine: what keeps them, and which they are. Linux, standard library only."""

import hashlib
import http.client
import os
import pwd
import signal
import socket
import subprocess
import time
import xmlrpc.client
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNITS = ("agent", "controller", "supervisord")
DEFAULT_HOME = Path("/var/lib/clachan")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Program:
    """What a supervisor keeps running."""

    name: str
    state: str
    pid: int | None
    """Of its first process."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _Connection(self._path)
        self._connection = host, connection  # so that the proxy closes it
        return connection


def _supervisord(home: Path, procedure: str) -> Any:
    """Call a procedure of the home's supervisord; None when it does not run."""
    transport = _Transport(home / "supervisor" / "supervisor.sock")
    try:
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as proxy:
            return getattr(proxy, f"supervisor.{procedure}")()
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return None


def programs(home: Path) -> list[Program]:
    """What supervisord and systemd keep running from the home."""
    found = []
    own = _supervisord(home, "getPID")
    if own:
        found.append(Program("supervisord", "RUNNING", int(own)))
    for one in _supervisord(home, "getAllProcessInfo") or []:
        found.append(Program(str(one["name"]), str(one["statename"]), int(one["pid"]) or None))
    known = {program.name for program in found}
    return found + [program for program in _units(home) if program.name not in known]


def _units(home: Path) -> list[Program]:
    if not has_units():
        return []
    found = []
    for name in UNITS:
        shown = _systemctl("show", "-p", "ActiveState,MainPID,LoadState", unit(home, name)).stdout
        values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        if values.get("LoadState") == "loaded":
            state = "RUNNING" if values.get("ActiveState") == "active" else values.get("ActiveState", "unknown").upper()
            found.append(Program(name, state, int(values.get("MainPID", 0)) or None))
    return found


def has_units() -> bool:
    return os.geteuid() == 0 and Path("/run/systemd/system").is_dir()


def unit(home: Path, name: str) -> str:
    """As the module clachan.platform.program names it."""
    own = "" if home == DEFAULT_HOME else hashlib.sha256(str(home).encode()).hexdigest()[:6] + "-"
    return f"clachan-{own}{name}.service"


def _systemctl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)


def stop_units(home: Path, forget: bool = False) -> None:
    """Stop the units, the one that the services live under at last; `forget` removes their files too."""
    if not has_units():
        return
    for name in UNITS:
        path = Path("/etc/systemd/system") / unit(home, name)
        if path.exists():
            _systemctl("disable", "--now", "--quiet", unit(home, name))
            if forget:
                path.unlink()
    if forget:
        _systemctl("daemon-reload")


def stop_supervisord(home: Path, seconds: float) -> None:
    """Ask supervisord to stop its programs and end; returns when it has, or after some time."""
    pid = _supervisord(home, "getPID")
    if not pid:
        return
    _supervisord(home, "shutdown")
    wait_for_end([int(pid)], seconds)


def slot_users(home: Path) -> list[pwd.struct_passwd]:
    """The unix users that were made for the home's slots: their home directories are in it."""
    slots = f"{home}/slots/"
    return [user for user in pwd.getpwall() if user.pw_name.startswith("clachan_") and user.pw_dir.startswith(slots)]


def processes(home: Path) -> list[int]:
    """Processes of slots' users, and our own that run a program of the home or work in a slot; never our callers."""
    users = {user.pw_uid for user in slot_users(home)} if os.geteuid() == 0 else set()
    callers = _callers()
    return [pid for pid in _every() if pid not in callers and _belongs(pid, home, users)]


def _every() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _callers() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        pid = _parent(pid)
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _belongs(pid: int, home: Path, users: set[int]) -> bool:
    folders = (f"{home}/", f"{os.path.realpath(home)}/")
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
        if owner in users:
            # the same number in a container is another user
            return Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
        if owner != os.geteuid():
            return False
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2]
        if any(os.fsdecode(word).startswith(folders) for word in words):
            return True
        where = str(Path(f"/proc/{pid}/cwd").readlink())
        return where.startswith(tuple(f"{folder}slots/" for folder in folders))
    except OSError:
        return False


def end(pids: Iterable[int], seconds: float) -> None:
    """SIGTERM, and SIGKILL for those that are still there after some time."""
    pids = list(pids)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
        pids = wait_for_end(pids, seconds)


def wait_for_end(pids: Iterable[int], seconds: float) -> list[int]:
    """Those that are still there after some time."""
    limit = time.monotonic() + seconds
    left = [pid for pid in pids if _lives(pid)]
    while left and time.monotonic() < limit:
        time.sleep(0.05)
        left = [pid for pid in left if _lives(pid)]
    return left


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def resident(pid: int) -> int:
    """Bytes of memory of a process and all below it."""
    children: dict[int, list[int]] = {}
    for one in _every():
        children.setdefault(_parent(one), []).append(one)
    tree = [pid]
    for one in tree:  # grows while it is walked
        tree.extend(children.get(one, []))
    return sum(resident_one(one) for one in tree)


def resident_one(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0
