# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Clachan home: the one directory that holds everything the platform keeps on a machine.

`settings.json` marks it. It is written first and removed last, so an interrupted `up` leaves a directory that can be
told from somebody else's. Everything here is safe to repeat after a kill at any point.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import tempfile

DEFAULT = "/var/lib/clachan"
SETTINGS = "settings.json"
FORMAT = 1
# A unix socket's path has at most 107 bytes, and supervisord binds `supervisor/supervisor.sock.<pid>` first.
LONGEST = 107 - len("/supervisor/supervisor.sock.4194304")
DIRECTORIES = {
    "bin": 0o755,
    "controller": 0o700,
    "envs": 0o755,
    "log": 0o700,
    "node": 0o700,
    "platform": 0o755,
    "supervisor": 0o700,
    "supervisor/conf.d": 0o700,
}


class HomeError(Exception):
    """What is wrong with a home, as "<what> <which>: <value>, expected <what>"."""


def check_path(home, shared):
    """Refuse a path that units, configuration files or sockets could not carry, or that slots could not enter.

    shared: other unix users (the slots') must be able to reach it.
    """
    if not re.match(r"/[A-Za-z0-9._/+@-]*[A-Za-z0-9_+-]\Z", home) or os.path.normpath(home) != home:
        raise HomeError("home %s: expected an absolute path of letters, digits and . _ + @ - without '..'" % home)
    if len(home) > LONGEST:
        raise HomeError("home %s: %d characters, expected at most %d" % (home, len(home), LONGEST))
    closed = shared and closed_parent(os.path.dirname(home))
    if closed:
        raise HomeError("directory %s: closed to other users, expected mode o+x, as slots live in %s" % (closed, home))


def closed_parent(path):
    """The first existing directory above or at path that other users cannot enter; None when there is none."""
    probe = ""
    for part in os.path.realpath(path).strip("/").split("/"):
        probe += "/" + part
        if os.path.isdir(probe) and not os.stat(probe).st_mode & 0o001:
            return probe
    return None


def own_prefix(home):
    """What names of users and units of a second home on one machine have more than those of the default one."""
    return "" if home == DEFAULT else hashlib.sha256(home.encode()).hexdigest()[:6]


def read_settings(home):
    """What the home remembers; None when it is not a home."""
    try:
        with open(os.path.join(home, SETTINGS), encoding="utf-8") as file:
            settings = json.load(file)
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) and settings.get("clachan_home") == FORMAT else None


def write_file(path, data, mode):
    """Replace a file in one step, so that a kill leaves either the old or the new one."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_settings(home, settings):
    write_file(os.path.join(home, SETTINGS), json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n", 0o644)


def point(link, target):
    """Make a symbolic link point to target in one step; says whether it did not before."""
    if os.path.islink(link) and os.readlink(link) == target:
        return False
    temporary = "%s.%d.new" % (link, os.getpid())
    os.symlink(target, temporary)
    os.replace(temporary, link)
    return True


def make_directories(home):
    """Make what is missing and set modes; returns the paths that changed."""
    changed = []
    for name, mode in DIRECTORIES.items():
        path = os.path.join(home, name)
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
        elif os.stat(path).st_mode & 0o7777 == mode:
            continue
        os.chmod(path, mode)
        changed.append(path)
    return changed


def free_port(home, host):
    """A TCP port nobody listens on; from a place of its own for each home, so that two rarely meet."""
    first = 8443 if home == DEFAULT else 10000 + int(hashlib.sha256(home.encode()).hexdigest()[:8], 16) % 9000
    for port in range(first, first + 500):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise HomeError("ports %d-%d: all taken, expected a free one on %s" % (first, first + 499, host))
