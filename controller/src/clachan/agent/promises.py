"""Checks of promises. Each takes its time limit from the promise and gives a result; none raises.

Promises of processes and children are the watch's own: they need the check before and the slice.
"""

import http.client
import os
import pwd
import selectors
import signal
import socket
import ssl
import stat
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from clachan.agent.launch import PATH
from clachan.agent.slots import FOLDER, opened_inside
from clachan.contract.facts import PromiseResult
from clachan.contract.slot import (
    ChildrenPromise,
    CommandPromise,
    DiskSpacePromise,
    FileAgePromise,
    HttpPromise,
    ProcessPromise,
    Promise,
    TcpPromise,
)

MESSAGE_CHARS = 500
BODY_BYTES = 1024 * 1024
OUTPUT_BYTES = 16 * 1024
MIB = 1024 * 1024


@dataclass(frozen=True)
class Place:
    """The slot whose promise it is."""

    directory: Path
    user: str | None
    """None: the agent's own (unprivileged mode)."""


def is_quick(promise: Promise) -> bool:
    """Whether the check waits for nobody, so it needs no thread."""
    return isinstance(promise, ProcessPromise | ChildrenPromise | FileAgePromise | DiskSpacePromise)


def check(promise: Promise, place: Place) -> PromiseResult:
    try:
        return PromiseResult(ok=True, message=_check(promise, place)[:MESSAGE_CHARS])
    except TimeoutError:
        return PromiseResult(ok=False, message=f"{promise.kind}: no answer in {promise.timeout_seconds:g} s")
    except OSError as error:
        return PromiseResult(ok=False, message=f"{promise.kind}: {error.strerror or error}"[:MESSAGE_CHARS])
    except (_BrokenError, ValueError, http.client.HTTPException) as error:
        return PromiseResult(ok=False, message=str(error)[:MESSAGE_CHARS] or type(error).__name__)


class _BrokenError(Exception):
    """The promise does not hold; the text says what was found and what was expected."""


def _check(promise: Promise, place: Place) -> str:
    match promise:
        case TcpPromise():
            return _tcp(promise)
        case HttpPromise():
            return _http(promise)
        case CommandPromise():
            return _command(promise, place)
        case FileAgePromise():
            return _file_age(promise, place)
        case DiskSpacePromise():
            return _disk_space(promise, place)
        case ProcessPromise() | ChildrenPromise():
            raise _BrokenError(f"promise of kind {promise.kind}: not for this function")


def _tcp(promise: TcpPromise) -> str:
    with socket.create_connection((promise.address, promise.port), timeout=promise.timeout_seconds):
        return f"{promise.address}:{promise.port} accepts connections"


def _http(promise: HttpPromise) -> str:
    limit = time.monotonic() + promise.timeout_seconds
    parts = urlsplit(promise.url)
    connection = _connection(parts.scheme, parts.hostname or "", parts.port, promise.timeout_seconds)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Host": parts.netloc.rpartition("@")[2], "Connection": "close"})
        response = connection.getresponse()
        if response.status != promise.status:
            raise _BrokenError(f"http {promise.url}: status {response.status}, expected {promise.status}")
        if promise.contains is not None and promise.contains not in _body(response, limit):
            raise _BrokenError(f"http {promise.url}: text not found in the answer, expected {promise.contains!r}")
        return f"status {response.status}"
    finally:
        connection.close()


def _connection(scheme: str, host: str, port: int | None, seconds: float) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=seconds)
    # whether the service answers, not who it is: it may have a certificate of its own making, and is told nothing
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)


def _body(response: http.client.HTTPResponse, limit: float) -> str:
    """The answer's text; one that trickles is cut at the time limit."""
    parts: list[bytes] = []
    while sum(map(len, parts)) < BODY_BYTES and (block := response.read1(64 * 1024)):
        parts.append(block)
        if time.monotonic() > limit:
            raise TimeoutError
    return b"".join(parts).decode(errors="replace")


def _command(promise: CommandPromise, place: Place) -> str:
    process = _started(promise.command, place)
    try:
        output = _output(process, time.monotonic() + promise.timeout_seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    message = lines[-1] if lines else ""
    if process.returncode != 0:
        raise _BrokenError(f"command {promise.command[0]}: exit status {process.returncode}: {message}")
    return message


def _started(command: list[str], place: Place) -> subprocess.Popen[bytes]:
    """The command in a session of its own, as the slot's user, with nothing of the agent's environment."""
    home = str(place.directory / "var")
    account = pwd.getpwnam(place.user) if place.user else None
    return subprocess.Popen(
        command,
        cwd=home,
        env={"PATH": PATH, "LANG": "C.UTF-8", "HOME": home, "CLACHAN_SLOT": str(place.directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o027,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )


def _output(process: subprocess.Popen[bytes], limit: float) -> bytes:
    """The end of what it prints, until it has ended; raises TimeoutError at the limit."""
    assert process.stdout is not None  # it was started with a pipe
    descriptor = process.stdout.fileno()
    kept = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        ended = False
        while (left := limit - time.monotonic()) > 0:
            # it may end and leave a child behind that holds the pipe: look at the process itself, too
            if selector.get_map() and selector.select(0 if ended else min(left, 0.1)):
                block = os.read(descriptor, OUTPUT_BYTES)
                kept = (kept + block)[-OUTPUT_BYTES:]
                if not block:
                    selector.unregister(descriptor)
            elif ended:
                return kept
            else:  # what it said at its very end is still in the pipe
                ended = _ended(process, min(left, 0.1))
    raise TimeoutError


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _file_age(promise: FileAgePromise, place: Place) -> str:
    folder, _, name = promise.path.rpartition("/")
    with opened_inside(place.directory, folder or ".", FOLDER) as descriptor:
        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise _BrokenError(f"file {promise.path}: not a regular file, expected one")
    age = max(0.0, time.time() - found.st_mtime)
    if age > promise.max_seconds:
        raise _BrokenError(f"file {promise.path}: {age:.0f} s old, expected at most {promise.max_seconds:g} s")
    return f"{age:.0f} s old"


def _disk_space(promise: DiskSpacePromise, place: Place) -> str:
    with opened_inside(place.directory, promise.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC) as descriptor:
        found = os.statvfs(descriptor)
    free = found.f_bavail * found.f_frsize // MIB
    if free < promise.min_free_mib:
        raise _BrokenError(f"disk space at {promise.path}: {free} MiB free, expected at least {promise.min_free_mib}")
    return f"{free} MiB free"
