# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts and stops the Jupyter server of one user, when the hub says so.

launcher.py serve     answers the hub at the slot's first port: GET /, POST /start, POST /stop, PUT /token
launcher.py ready     the promise: it answers, the disk is mounted, the limits hold
launcher.py kernel    the promise: a kernel of the sandbox computes
launcher.py enter     in front of a command: takes it into the user's limits

The server runs in a sandbox (bubblewrap): the node's files are read-only there, home and /tmp are the user's disk, and
no process of others can be seen, this launcher neither. So nothing that a kernel does reaches what starts, limits and
stops it. The server outlives this process, as whose child it is found again by its pid and time of start. Only the
standard library is used: it is one small process for each user. `etc/launcher.json` says all that it works with.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SLOT = Path(os.environ["CLACHAN_SLOT"])
SETTINGS = SLOT / "etc" / "launcher.json"
SECRET = SLOT / "etc" / "secret"
STATE = SLOT / "var" / "server.json"
TOKEN = SLOT / "var" / "lake-token"
BODY_BYTES = 64 << 10
STOP_SECONDS = 10
PASSED = "JUPYTERHUB_"
"""Of the environment that the hub asks for, only what begins so."""
RUN_BYTES, SHARED_BYTES, NAMES_BYTES = 16 << 20, 64 << 20, 1 << 20


class LauncherError(Exception):
    """What is wrong, as "<what> <which>: <value>, expected <what>"."""


def settings() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SETTINGS.read_text())
    return found


# -- the sandbox ---------------------------------------------------------------------------------------------------


def sandbox(about: dict[str, Any], *more: str) -> list[str]:
    """The command in front of what shall run there. Later mounts lie over earlier ones."""
    disk, home = about["disk"], about["home"]
    return [
        "/usr/bin/bwrap",
        *("--unshare-pid", "--unshare-ipc", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
        *("--size", str(SHARED_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),  # noqa: S108 - the sandbox's
        # sockets of the node's services are there, and a kernel's must have room when the disk is full
        *("--size", str(RUN_BYTES), "--tmpfs", "/run"),
        *("--ro-bind-try", "/run/systemd/resolve", "/run/systemd/resolve"),
        *("--bind", f"{disk}/tmp", "/tmp", "--bind", f"{disk}/tmp", "/var/tmp"),  # noqa: S108 - the sandbox's
        *("--size", str(NAMES_BYTES), "--tmpfs", "/home", "--bind", f"{disk}/home", home),
        # it may lie below one of those
        *("--ro-bind", about["platform"], about["platform"]),
        *(("--ro-bind", str(SLOT / "etc/examples"), f"{home}/examples") if has_examples(about) else ()),
        *("--chdir", home, *more, "--"),
    ]


def has_examples(about: dict[str, Any]) -> bool:
    """A full disk, which has no room for the folder's name, shall not keep its user from emptying it."""
    place = Path(about["disk"], "home", "examples")
    with contextlib.suppress(OSError):
        place.mkdir(exist_ok=True)
    return place.is_dir()


def environment(about: dict[str, Any], given: dict[str, str]) -> dict[str, str]:
    home = about["home"]
    own = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "SHELL": "/bin/sh",
        "HOME": home,
        "USER": about["name"],
        "CLACHAN_SLOT": str(SLOT),
        "IPYTHONDIR": f"{home}/.ipython",
        "JUPYTER_CONFIG_DIR": str(SLOT / "etc/jupyter"),
        "JUPYTER_DATA_DIR": f"{home}/.local/share/jupyter",
        "JUPYTER_PATH": str(SLOT / "etc/data"),
        "JUPYTER_RUNTIME_DIR": "/run/jupyter",
        "JUPYTERHUB_SINGLEUSER_EXTENSION": "1",
    }
    return {key: value for key, value in given.items() if key.startswith(PASSED)} | own


def entering() -> list[str]:
    """What stands in front of a command that shall take its part of the user's limits."""
    return [sys.executable, "-I", "-S", __file__, "enter"]


def enter(*command: str) -> None:
    """With version 1 a process may enter a limit by itself; with version 2 it is in it as its parent is."""
    for controller, path in settings()["held"].items():
        if not is_inside(controller, path):
            Path(path).write_text(str(os.getpid()))
    os.execv(command[0], command)  # noqa: S606 - a list of arguments, no shell


def is_inside(controller: str, path: str) -> bool:
    folder = Path(path).parent
    wanted = "/" + "/".join(folder.parts[-2:])
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        controllers, place = line.split(":", 2)[1:]
        if (controller in controllers.split(",") or not controllers) and place.endswith(wanted):
            return True
    return False


def check_place(about: dict[str, Any]) -> None:
    """Whether a server may be started; raises LauncherError. The platform's next pass mends what is missing."""
    if not os.path.ismount(about["disk"]):
        raise LauncherError(f"disk {about['disk']}: not mounted, expected it to be")
    for controller, path in about["held"].items():
        if not is_inside(controller, path) and not os.access(path, os.W_OK):
            raise LauncherError(f"limit of {controller}: not entered, expected it to hold")


# -- the server ----------------------------------------------------------------------------------------------------


class Server:
    """The one server of this user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def pid(self) -> int | None:
        """Of the sandbox's first process, whose end is the end of all in it."""
        if self._child is not None:
            self._child.poll()  # reaps it
        try:
            found = json.loads(STATE.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return int(found["pid"]) if born(found["pid"]) == found["born"] else None

    def start(self, given: dict[str, str]) -> None:
        with self._lock:
            if self.pid() is not None:
                raise LauncherError("server: runs, expected none")
            about = settings()
            check_place(about)
            self._launch(about, environment(about, given))

    def _launch(self, about: dict[str, Any], variables: dict[str, str]) -> None:
        reader, writer = os.pipe()
        command = [*entering(), *sandbox(about, "--info-fd", str(writer)), *about["server"]]
        try:
            with Path(about["disk"], "log", "server.log").open("wb") as log:
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=variables,
                    pass_fds=[writer],
                    start_new_session=True,
                )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(reader)
            raise LauncherError(f"server: {error}, expected it to start") from error
        finally:
            os.close(writer)
        with os.fdopen(reader) as told:
            said = told.read()
        if not said:
            self._child.wait()
            raise LauncherError(f"sandbox: status {self._child.returncode}, expected one: see server.log on the disk")
        pid = json.loads(said)["child-pid"]
        write(STATE, json.dumps({"pid": pid, "born": born(pid)}))

    def stop(self, *, now: bool) -> None:
        with self._lock:
            pid = self.pid()
            if pid is None:
                return
            limit = time.monotonic() + (0 if now else STOP_SECONDS)
            if not now:
                for child in children(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGTERM)
            while self.pid() is not None and time.monotonic() < limit:
                time.sleep(0.05)
            with contextlib.suppress(ProcessLookupError):
                if self.pid() is not None:
                    os.kill(pid, signal.SIGKILL)
            STATE.unlink(missing_ok=True)


def born(pid: int) -> int | None:
    """When it was started, in ticks since the boot; None for one that has ended."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


# -- HTTP ----------------------------------------------------------------------------------------------------------

SERVER = Server()


def look() -> dict[str, Any]:
    about = settings()
    held = {name: is_inside(name, path) or os.access(path, os.W_OK) for name, path in about["held"].items()}
    age = time.time() - TOKEN.stat().st_mtime if TOKEN.exists() else None
    return {"runs": SERVER.pid() is not None, "disk": os.path.ismount(about["disk"]), "held": held, "token_age": age}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _admitted(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), SECRET.read_text().strip().encode()):
            return True
        self._answer(401, {"error": "credentials: none or wrong, expected the launcher's secret"})
        return False

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _body(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 <= size <= BODY_BYTES:
            raise LauncherError(f"body: {size} bytes, expected at most {BODY_BYTES}")
        return self.rfile.read(size)

    def _do(self, verb: str) -> None:
        if not self._admitted():
            return
        work = {
            "GET /": lambda: None,
            "POST /start": lambda: SERVER.start(json.loads(self._body())["environment"]),
            "POST /stop": lambda: SERVER.stop(now=bool(json.loads(self._body()).get("now"))),
            "PUT /token": lambda: write(TOKEN, self._body().decode() + "\n"),
        }.get(f"{verb} {self.path}")
        if work is None:
            self._answer(404, {"error": f"path: {self.path!r:.80}, expected one of the launcher's"})
            return
        try:
            work()
            self._answer(200, look())
        except (LauncherError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._answer(409, {"error": str(error)})

    def do_GET(self) -> None:
        self._do("GET")

    def do_POST(self) -> None:
        self._do("POST")

    def do_PUT(self) -> None:
        self._do("PUT")

    def log_message(self, form: str, *arguments: object) -> None:
        if self.command != "GET":
            sys.stderr.write(f"{self.command} {form % arguments}\n")


def serve() -> None:
    about = settings()
    httpd = ThreadingHTTPServer((about["address"], about["port"]), Handler)

    def end(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    try:
        httpd.serve_forever()
    finally:
        SERVER.stop(now=False)


def ready() -> None:
    about = settings()
    request = urllib.request.Request(
        f"http://{about['address']}:{about['port']}/", headers={"Authorization": f"Bearer {SECRET.read_text().strip()}"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=20) as answer:
        found = json.load(answer)
    if not found["disk"]:
        sys.exit(f"disk {about['disk']}: not mounted, expected it to be")
    if without := [name for name, holds in found["held"].items() if not holds]:
        sys.exit(f"limit of {', '.join(without)}: not entered, expected it to hold")
    sys.stdout.write(f"server {'runs' if found['runs'] else 'is not asked for'}\n")


def kernel() -> None:
    """In the sandbox, as the server would."""
    about = settings()
    check_place(about)
    done = subprocess.run(
        [*entering(), *sandbox(about), about["python"], "-I", str(SLOT / "etc/try_kernel.py"), "science"],
        env=environment(about, {}),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    sys.stdout.write(f"{lines[-1] if lines else f'status {done.returncode}'}\n")
    sys.exit(done.returncode)


if __name__ == "__main__":
    {"serve": serve, "ready": ready, "kernel": kernel, "enter": enter}[sys.argv[1]](*sys.argv[2:])
