# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of volumes: a qcow2 file that stands alone, root's, and beside it

    <archive>.json     how it was made: consistency, size (bytes that a guest sees), made (RFC 3339)
    <archive>.sha256   its sum, as sha256sum reads it

The sum is written last: an archive without one was not finished, and one whose content does not have it is refused.
When the sum is taken nobody but root can write the file any more, and its header leads to no other file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time

from ansible_collections.clachan.platform.plugins.module_utils.domain import is_roots_alone
from ansible_collections.clachan.platform.plugins.module_utils.file_content import digest_of, sync
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError
from ansible_collections.clachan.platform.plugins.module_utils.layout import write_file
from ansible_collections.clachan.platform.plugins.module_utils.volume import read_header

LET_GO_SECONDS = 5
"""How long a writer that has done its work may take to close the file."""


def noted_sum(path):
    """The sha256 that was noted when the archive was finished; None when there is no finished one."""
    if not is_roots_alone(path):
        raise HypervisorError("archive %s: expected directories that only root can write" % path)
    try:
        with open(path + ".sha256", encoding="ascii", errors="replace") as file:
            words = file.read(200).split()
    except FileNotFoundError:
        return None
    return words[0] if words and os.path.isfile(path) and not os.path.islink(path) else None


def checked_sum(path):
    """The archive's sha256, compared with its content."""
    noted = noted_sum(path)
    if noted is None:
        raise HypervisorError("archive %s: not there or not finished, expected one" % path)
    found = digest_of(path)
    if found != noted:
        raise HypervisorError("archive %s: sha256 %s, expected %s" % (path, found, noted))
    return noted


def size_in(path):
    """How many bytes a guest sees of an archive, which is refused when it does not stand alone."""
    with open(path, "rb") as file:
        size, backing = read_header("archive %s" % path, file)
    if backing:
        raise HypervisorError("archive %s: a layer over %s, expected one that stands alone" % (path, backing))
    return size


def known_of(path):
    """How an archive was made; {} for one that does not say it."""
    try:
        with open(path + ".json", encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def refuse_lack_of_space(what, path, needed):
    """Raise HypervisorError where so many bytes do not fit: what fills a file system stops those who live in it."""
    found = os.statvfs(os.path.dirname(path))
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise HypervisorError(
            "%s %s: %d MiB free there, expected at least %d MiB" % (what, path, free >> 20, (needed >> 20) + 1)
        )


def write(path, save, needed):
    """Make an archive: `save(path, descriptor)` writes it and says its consistency. Returns its sha256.

    needed: how many bytes the volume takes.
    """
    temporary = "%s/.%s.new" % os.path.split(path)
    if os.path.lexists(temporary):
        os.unlink(temporary)
    refuse_lack_of_space("archive", path, needed)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            consistency = save(temporary, handle)
            os.fchown(handle, os.geteuid(), os.getegid())
            os.fchmod(handle, 0o600)
            os.fsync(handle)
        finally:
            os.close(handle)
        _refuse_writers(temporary)
        known = {"consistency": consistency, "size": size_in(temporary), "made": _now()}
        found = digest_of(temporary)
    except BaseException:
        os.unlink(temporary)
        raise
    os.replace(temporary, path)
    sync(os.path.dirname(path))
    _note(path + ".json", json.dumps(known, sort_keys=True) + "\n")
    _note(path + ".sha256", "%s  %s\n" % (found, os.path.basename(path)))
    return found


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _note(path, text):
    write_file(path, text.encode(), 0o600)
    sync(path)
    sync(os.path.dirname(path))


def _refuse_writers(path):
    """Raise HypervisorError while a process has the file open for writing: a QEMU that was taken over could keep it."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LET_GO_SECONDS
        while not _is_at_rest(handle):
            if time.monotonic() > deadline:
                raise HypervisorError("archive %s: a process still writes it, expected none" % path)
            time.sleep(0.05)
    finally:
        os.close(handle)


def _is_at_rest(handle):
    """Whether the kernel would give a lease for reading, which it refuses while anybody can write the file."""
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as problem:
        return problem.errno not in (errno.EAGAIN, errno.EACCES)  # else a file system that knows no leases
    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
