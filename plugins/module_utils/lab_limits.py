# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all processes of one unix user take together, held by control groups, version 1 or 2.

A group is named by its user, whose name no other slot of the machine has. With version 1 the user may bring their own
processes into it (and not out of it); with version 2 only root may, so root does it for what runs. Where there are no
control groups, or none can be made, nothing is held; `found` tells which are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time

from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError

FOLDER = "clachan"
PERIOD_US = 100000
CONTROLLERS = ("memory", "cpu", "pids")
LEAVING_SECONDS = 10


def find(mounts="/proc/self/mountinfo"):
    """Controller -> (version, where its hierarchy is mounted)."""
    found = {}
    with open(mounts, encoding="utf-8") as file:
        for line in file:
            before, _dash, after = line.partition(" - ")
            place, (kind, _source, options) = before.split()[4], after.split()[:3]
            if kind == "cgroup":
                found.update({one: (1, place) for one in CONTROLLERS if one in options.split(",")})
            elif kind == "cgroup2":
                for one in _words(os.path.join(place, "cgroup.controllers")):
                    if one in CONTROLLERS:
                        found.setdefault(one, (2, place))
    return found


class Group:
    """The group of one user in all hierarchies that there are."""

    def __init__(self, user, uid, found=None, check_mode=False):
        self._user, self._uid, self._check = user, uid, check_mode
        self._found = find() if found is None else found
        self.changed = False

    def folder(self, controller):
        return os.path.join(self._found[controller][1], FOLDER, self._user)

    def present(self, memory_mib, cpu_milli, tasks):
        """Controller -> the file by which a process enters the group, of those that hold."""
        held = {}
        for controller in sorted(self._found):
            try:
                self._make(controller)
                self._set(controller, {"memory": memory_mib << 20, "cpu": cpu_milli, "pids": tasks}[controller])
            except OSError as error:
                # in a container they may be there to be read only
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EOPNOTSUPP):
                    raise LabError("control group %s: %s, expected limits" % (self.folder(controller), error)) from None
                continue
            held[controller] = os.path.join(self.folder(controller), "cgroup.procs")
        for folder in {os.path.dirname(held[one]) for one in held if self._found[one][0] == 2}:
            self._gather(folder)
        return held

    def absent(self):
        """Gone with all that runs in it, which is the user's."""
        for folder in {self.folder(controller) for controller in self._found}:
            limit = time.monotonic() + LEAVING_SECONDS
            while os.path.isdir(folder):
                self.changed = True
                if self._check or time.monotonic() > limit:
                    break
                self._empty(folder)

    def end(self):
        """End all that the user runs."""
        for pid in processes(self._uid):
            self.changed = True
            if not self._check:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _empty(self, folder):
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            for pid in _words(os.path.join(folder, "cgroup.procs")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)

    def _make(self, controller):
        version, place = self._found[controller]
        if version == 2:
            self._enable(place, controller)
        folder = self.folder(controller)
        if not os.path.isdir(folder):
            self.changed = True
            if self._check:
                return
            os.makedirs(folder, 0o755, exist_ok=True)
            if version == 1:
                os.chown(os.path.join(folder, "cgroup.procs"), self._uid, -1)
        if version == 2:
            # one folder is the group of all controllers
            self._enable(os.path.dirname(folder), controller)

    def _enable(self, folder, controller):
        """Version 2: children of the folder may have limits."""
        path = os.path.join(folder, "cgroup.subtree_control")
        if os.path.exists(path) and controller not in _words(path) and not self._check:
            _write(path, "+" + controller)

    def _set(self, controller, value):
        version, _place = self._found[controller]
        for name, text in SETTINGS[controller, version](value):
            path = os.path.join(self.folder(controller), name)
            if not os.path.exists(path):
                if name in OPTIONAL or self._check:
                    continue
            elif " ".join(_words(path)) == text:
                continue
            self.changed = True
            if not self._check:
                self._say(path, text, name in OPTIONAL)

    def _say(self, path, text, optional):
        try:
            _write(path, text)
        except OSError as error:
            # with swap it cannot be less than without, as the second time it is not
            if not optional or error.errno != errno.EINVAL:
                raise

    def _gather(self, folder):
        """Bring into the group what its user runs outside it, which changes nothing of what is declared."""
        inside = set(_words(os.path.join(folder, "cgroup.procs"))) if os.path.isdir(folder) else set()
        for pid in processes(self._uid):
            if str(pid) not in inside and not self._check:
                with contextlib.suppress(ProcessLookupError):
                    _write(os.path.join(folder, "cgroup.procs"), str(pid))


def _memory_1(size):
    # with swap it may be no more; to be raised first, or lowered last, so it is written on both sides
    both = "memory.memsw.limit_in_bytes"
    return [(both, str(size)), ("memory.limit_in_bytes", str(size)), (both, str(size))]


def _cpu_1(milli):
    return [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(milli * PERIOD_US // 1000))]


SETTINGS = {
    ("memory", 1): _memory_1,
    ("memory", 2): lambda size: [("memory.max", str(size)), ("memory.swap.max", "0")],
    ("cpu", 1): _cpu_1,
    ("cpu", 2): lambda milli: [("cpu.max", "%d %d" % (milli * PERIOD_US // 1000, PERIOD_US))],
    ("pids", 1): lambda tasks: [("pids.max", str(tasks))],
    ("pids", 2): lambda tasks: [("pids.max", str(tasks))],
}
OPTIONAL = ("memory.memsw.limit_in_bytes", "memory.swap.max")
"""Not there where the kernel does not count swap."""


def processes(uid):
    """The pids of what runs as that user."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/status" % name, encoding="utf-8", errors="replace") as file:
                    owner = next((line.split()[1] for line in file if line.startswith("Uid:")), "")
            except OSError:
                continue
            if owner == str(uid):
                found.append(int(name))
    return found


def _words(path):
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def _write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
