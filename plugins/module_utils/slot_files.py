# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing into a slot's directory: the only place where a root process touches what a slot's user can reach.

Invariants. Every path is walked from the slot's directory by descriptors, one part at a time, and no link is followed.
Only regular files are read or replaced; a file is replaced as a whole, by a rename in its own directory. `etc/` belongs
to root (in the unprivileged mode: to the one user), `var/` to the slot's user; when root writes below `var/`, a child
process that has become the slot's user does it. What is there is looked at once; `changed`, the difference and the
writing all follow from that one look.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat

BYTES = 64 * 1024 * 1024
"""The longest file that a slot task writes or replaces."""


class SlotError(Exception):
    """What is wrong with a slot, a file or a document; `str()` is for the user."""


class File:
    """A wanted file: `path` (relative to the slot), `content` (bytes), `mode`."""

    def __init__(self, path, content, mode):
        self.path, self.content, self.mode = path, content, mode


class Change:
    """What is to be made different at `path`: contents before and after (bytes; None: nothing), or only rights."""

    def __init__(self, path, before, after, rights=None):
        self.path, self.before, self.after, self.rights = path, before, after, rights


class Owner:
    """Who owns what is written: uid and gid."""

    def __init__(self, uid, gid):
        self.uid, self.gid = uid, gid


def check_path(path, what="file"):
    """Refuse what is not below `etc/` or `var/`, or is no plain relative path."""
    parts = path.split("/") if isinstance(path, str) else []
    plain = all(part not in ("", ".", "..") for part in parts) and isinstance(path, str) and path.isprintable()
    if len(parts) < 2 or parts[0] not in ("etc", "var") or not plain or len(path) > 512:
        raise SlotError("%s %r: expected a path below etc/ or var/, without '.', '..' or empty parts" % (what, path))


def slot_owner(user):
    """The slot's user and group; raises SlotError when there is no such user, or this process may not act for it."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise SlotError("slot's user: %r, expected one of this machine" % user) from None
    if os.geteuid() not in (0, entry.pw_uid):
        mine = pwd.getpwuid(os.geteuid()).pw_name
        raise SlotError("slot's user: %s, expected %s (or root, to write for others)" % (user, mine))
    return Owner(entry.pw_uid, entry.pw_gid)


class Tree:
    """The part of a slot below one of its directories (`etc` or `var`), written as the process that runs this."""

    def __init__(self, slot, top, owner):
        self._slot, self._top, self._owner = slot, top, owner

    def look(self, files, directories, complete, remove):
        """The changes that make it so: `files` as they are wanted, `directories` that exist, nothing but wanted files
        in the directories `complete`, nothing at the paths `remove`."""
        changes = [change for change in map(self._look_directory, directories) if change]
        changes += [change for change in map(self._look_file, files) if change]
        wanted = {file.path for file in files}
        for directory in complete:
            changes += self._look_surplus(directory, wanted)
        for path in remove:
            before = self._present(path)
            if before is not None:
                changes.append(Change(path, before, None))
        return changes

    def apply(self, changes, files):
        """Make the changes that `look` found for `files`."""
        wanted = {file.path: file for file in files}
        for change in changes:
            if change.path in wanted and change.after is not None:
                self._write(wanted[change.path])
            elif change.path.endswith("/"):
                os.close(self._open_directory(change.path.rstrip("/"), make=True))
            else:
                self._unlink(change.path)

    def _look_directory(self, path):
        fd = self._open_directory(path, make=False)
        if fd is None:
            return Change(path + "/", None, b"")
        os.close(fd)
        return None

    def _look_file(self, file):
        parent, name = file.path.rsplit("/", 1)
        fd = self._open_directory(parent, make=False)
        if fd is None:
            return Change(file.path, None, file.content)
        try:
            content, status = read_regular(fd, name, file.path)
        finally:
            os.close(fd)
        if content is None:
            return Change(file.path, None, file.content)
        rights = self._rights(status)
        wanted = (file.mode, self._owner.uid, self._owner.gid)
        if content == file.content and rights == wanted:
            return None
        return Change(file.path, content, file.content, None if rights == wanted else (rights, wanted))

    def _rights(self, status):
        return (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)

    def _look_surplus(self, directory, wanted):
        fd = self._open_directory(directory, make=False)
        if fd is None:
            return []
        try:
            names = sorted(os.listdir(fd))
        finally:
            os.close(fd)
        paths = ["%s/%s" % (directory, name) for name in names]
        return [Change(path, self._present(path), None) for path in paths if path not in wanted]

    def _present(self, path):
        """The content of what stands there (b"" for what is no regular file), None for nothing."""
        parent, name = path.rsplit("/", 1)
        fd = self._open_directory(parent, make=False)
        if fd is None:
            return None
        try:
            return read_regular(fd, name, path)[0]
        except SlotError:
            return b""
        finally:
            os.close(fd)

    def _write(self, file):
        parent, name = file.path.rsplit("/", 1)
        directory = self._open_directory(parent, make=True)
        # one fixed name: what a killed run leaves behind is replaced by the next
        temporary = ".%s.new" % name
        try:
            _unlink_if_there(temporary, directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o600, dir_fd=directory)
            try:
                _write_all(fd, file.content)
                self._own(fd, file.mode)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as problem:
            _unlink_if_there(temporary, directory)
            raise SlotError("file %s: not written, %s" % (file.path, problem.strerror)) from None
        finally:
            os.close(directory)

    def _own(self, fd, mode):
        status = os.fstat(fd)
        if (status.st_uid, status.st_gid) != (self._owner.uid, self._owner.gid):
            os.fchown(fd, self._owner.uid, self._owner.gid)
        os.fchmod(fd, mode)

    def _unlink(self, path):
        parent, name = path.rsplit("/", 1)
        fd = self._open_directory(parent, make=False)
        if fd is None:
            return
        try:
            _unlink_if_there(name, fd)
        finally:
            os.close(fd)

    def _open_directory(self, path, make):
        """A descriptor of the directory `path`; without `make`, None when it is not there."""
        fd = os.dup(self._top)
        walked = []
        for part in path.split("/")[1:]:
            walked.append(part)
            try:
                below = self._step(fd, part, make)
            except OSError as problem:
                where = "/".join(path.split("/")[:1] + walked)
                raise SlotError(
                    "directory %s: %s, expected a directory that is no link" % (where, problem.strerror)
                ) from None
            finally:
                os.close(fd)
            if below is None:
                return None
            fd = below
        return fd

    def _step(self, fd, part, make):
        try:
            return open_directory(part, fd)
        except FileNotFoundError:
            if not make:
                return None
        os.mkdir(part, 0o700, dir_fd=fd)
        below = open_directory(part, fd)
        self._own(below, 0o750)
        return below


def open_directory(name, parent=None):
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def read_regular(directory, name, path):
    """(content, status) of a regular file, (None, None) of nothing; raises SlotError for anything else."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None, None
    except OSError as problem:
        kind = "a link" if problem.errno == errno.ELOOP else problem.strerror
        raise SlotError("file %s: %s, expected a regular file" % (path, kind)) from None
    with os.fdopen(fd, "rb") as source:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise SlotError("file %s: %s, expected a regular file" % (path, stat.filemode(status.st_mode)))
        if status.st_size > BYTES:
            raise SlotError("file %s: %d bytes, expected at most %d" % (path, status.st_size, BYTES))
        return source.read(), status


def group_name(gid):
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def user_name(uid):
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _write_all(fd, content):
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _unlink_if_there(name, directory):
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as problem:
        raise SlotError("file %s: not removed, %s" % (name, problem.strerror)) from None
