# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the builders of images start, how far they are, and what they say when they cannot go on."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import time

SAID = 2000
"""How much of a failed command's output goes into an error, in characters."""
FULL = 64 << 20
"""A file system with less free space than this, in bytes, is why a build failed."""
DEBIAN = {
    "ansible-playbook": "ansible-core",
    "dpkg-query": "dpkg",
    "extlinux": "extlinux",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "packer": "packer",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "ssh-keygen": "openssh-client",
}
"""Command -> the Debian package that has it."""
# dies with the thread that started it, so that a build that is killed leaves nobody writing
MORTAL = ["setpriv", "--pdeathsig", "KILL", "--"]
SEARCHED = os.pathsep.join(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])


class BuildError(Exception):
    """Why an image cannot be built, as "<what> <which>: <value>, expected <what>"."""


class Stages:
    """The stages of one build: each is told when it begins, with the time since the first."""

    def __init__(self, name, say):
        self._name, self._say, self._began = name, say, time.monotonic()
        self.times = []

    @contextlib.contextmanager
    def stage(self, what):
        began = time.monotonic()
        self.tell(what)
        yield
        self.times.append({"stage": what, "seconds": round(time.monotonic() - began, 1)})

    def tell(self, what):
        self._say("%s: %4.0f s  %s" % (self._name, time.monotonic() - self._began, what))


def require(*commands):
    """Raises BuildError naming the Debian packages of commands that are missing."""
    missing = [name for name in commands if find(name) is None]
    if missing:
        packages = " ".join(sorted({DEBIAN.get(name, name) for name in missing}))
        raise BuildError("commands %s: not found, expected them (Debian: %s)" % (", ".join(missing), packages))


def find(command):
    """The path of a command, also where an ordinary user's PATH does not look."""
    return shutil.which(command, path=os.environ.get("PATH", "") + os.pathsep + SEARCHED)


def run(arguments, environment=None, text=None, cwd="/"):
    """Standard output of a command. Raises BuildError with the end of what a failing one said."""
    process = start(arguments, environment, cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(text.encode() if text else b"")
    if process.returncode:
        raise failed(arguments, process.returncode, (err or out).decode(errors="replace"))
    return out.decode(errors="replace")


def follow(arguments, tell, environment=None, cwd="/"):
    """Run a command, giving `tell` each line of its output as it comes. Raises BuildError when it fails."""
    process = start(arguments, environment, cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    tail = []
    for line in process.stdout:
        text = line.decode(errors="replace").rstrip()
        tail = tail[-60:] + [text]
        tell(text)
    process.stdout.close()
    if process.wait():
        raise failed(arguments, process.returncode, "\n".join(tail))


def start(arguments, environment=None, cwd="/", **pipes):
    pipes.setdefault("stdin", subprocess.DEVNULL)
    variables = dict(os.environ if environment is None else environment)
    variables["LC_ALL"] = "C.UTF-8"
    variables["PATH"] = os.pathsep.join(filter(None, [variables.get("PATH"), SEARCHED]))
    try:
        return subprocess.Popen(MORTAL + [str(part) for part in arguments], env=variables, cwd=cwd, **pipes)
    except OSError as error:
        raise BuildError("command %s: %s, expected it to start" % (arguments[0], error.strerror)) from error


def failed(arguments, status, said):
    name = " ".join(str(part) for part in arguments[:3])
    return BuildError("command %s: exit status %d, expected 0: %s" % (name, status, hide(said.strip()[-SAID:])))


def hide(text):
    """An address of packages may carry a password."""
    return re.sub(r"://[^/\s@]*@", "://***@", text)


def explain(problem, folder):
    """The text of a build's failure: a full file system comes first, as all else follows from it.

    Ask while the build's files are still there.
    """
    space = os.statvfs(folder)
    free, size = (blocks * space.f_frsize for blocks in (space.f_bavail, space.f_blocks))
    if free >= FULL and os.strerror(errno.ENOSPC) not in str(problem):
        return str(problem)
    return "file system of %s: full (%d MiB), expected room for the image (%s)" % (folder, size >> 20, problem)
