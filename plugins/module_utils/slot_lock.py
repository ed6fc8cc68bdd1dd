# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a slot: `<slots directory>/<slot>.lock`, held with flock(2) by whoever works on the slot.

The node's agent holds it for its own runs. A push takes it in a task, whose process ends long before the run does; so
a small process inherits the descriptor and holds on: here until the run's main process ends, on another machine (where
that process cannot be watched) until it is told, or until a time is over. The file says which run holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

WAIT_SECONDS = 60
LEASE_SECONDS = 1800
# 3 is the lock, 4 a descriptor that becomes readable when the run has ended; without it there is a time limit
HOLDER = "import select,sys; p=select.poll(); [p.register(int(a),1) for a in sys.argv[2:]]; p.poll(int(sys.argv[1]))"


class LockError(Exception):
    """The lock could not be had; `str()` is for the user."""


def lock_path(directory):
    """The lock file of the slot in `directory`."""
    return directory.rstrip("/") + ".lock"


def lock(directory, run, process=None, seconds=WAIT_SECONDS, lease=LEASE_SECONDS):
    """Hold the slot's lock for `run` (a text that names it): while the process with the id `process` lives, or for
    `lease` seconds. Waits up to `seconds`; raises LockError. A lock that the same run holds already is fine."""
    fd = _open(directory)
    try:
        if _take(fd, run, seconds):
            holder = _hold(fd, process, lease)
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"run": run, "holder": holder}).encode(), 0)
    except TimeoutError:
        raise LockError(
            "slot %s: locked for %d s by %s, expected it to be free"
            % (os.path.basename(directory), seconds, _said(fd).get("run") or "another run (the node's agent?)")
        ) from None
    finally:
        os.close(fd)


def unlock(directory, run):
    """End the holder of the lock, if it is this run's; returns whether there was one."""
    fd = _open(directory)
    try:
        said = _said(fd)
        if _try(fd) or said.get("run") != run:
            return False
        # the lock is held and its file says by whom: so the id is not another process's by now
        os.kill(said["holder"], signal.SIGTERM)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def _open(directory):
    path = lock_path(directory)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise LockError("slot's lock %s: %s, expected a file of the node's agent" % (path, problem.strerror)) from None


def _take(fd, run, seconds):
    """True when it was free; False when this run has it; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not _try(fd):
        if _said(fd).get("run") == run:
            return False
        if time.monotonic() >= deadline:
            raise TimeoutError
        time.sleep(0.2)
    return True


def _try(fd):
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _said(fd):
    try:
        said = json.loads(os.pread(fd, 4096, 0))
        return said if isinstance(said, dict) else {}
    except ValueError:
        return {}


def _hold(fd, process, lease):
    watched = [] if process is None else [os.pidfd_open(process)]
    limit = -1 if watched else lease * 1000
    command = [sys.executable, "-I", "-S", "-c", HOLDER, str(limit), *map(str, watched)]
    try:
        holder = subprocess.Popen(
            command,
            pass_fds=[fd, *watched],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    finally:
        for descriptor in watched:
            os.close(descriptor)
    # it outlives this process and is waited for by no one: keep Python from warning of that
    holder.returncode = 0
    return holder.pid
