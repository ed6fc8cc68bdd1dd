# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The home of who works in a lab, saved and replaced.

    <folder>/home        what the user works in
    <folder>/home.new    what is to take its place, while it is extracted
    <folder>/home.old    what was there before, while it is removed

tar runs as the user, reading and writing: a link or a special file in a home leads only where its user may go anyway.
It reads an archive that root has opened; what it writes comes through a pipe, as the user could take from tar what tar
holds. The folder is root's (a hub's user has a disk whose root is) or the user's own (`var` of a slot); where it is the
user's, root does nothing in it: a child that has become the user does. A run that was killed is finished by the next.
"""

from __future__ import annotations

import os
import selectors
import shutil
import stat
import subprocess
import time

from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError
from ansible_collections.clachan.platform.plugins.module_utils.user_process import UserProcessError, as_user

BLOCK = 1 << 20
HOME, FRESH, OLD = "home", "home.new", "home.old"
MODE = 0o750
STALL_SECONDS = 300
"""After which a tar that neither reads nor writes is given up: its user may have stopped it."""
FOLDER_SECONDS = 1800
"""The longest that a home's folders are moved and removed."""
SAID = 4096
NO_ROOM = ("Wrote only", "No space left", "quota exceeded")
TRIES = 20


class Home:
    """`account`: the user's entry of the password database; `owner`: the uid whose the folder is. Raises LabError."""

    def __init__(self, folder, account, owner):
        self._account, self._owner = account, owner
        self._home, self._fresh, self._old = (os.path.join(folder, part) for part in (HOME, FRESH, OLD))

    def is_unsettled(self):
        """Whether a run was killed here."""
        return self._as_owner(lambda: os.path.lexists(self._fresh) or os.path.lexists(self._old))

    def settle(self):
        """There is a home, and nothing beside it."""
        self._as_owner(self._settle)

    def save(self, write):
        """write: is called with the bytes of the archive, block by block."""
        self.settle()
        # 1: a file changed while it was read, which is what a home does that is worked in
        command = ["--create", "--one-file-system", "--sparse", "--warning=no-file-changed", "."]
        self._tar(command, self._home, (0, 1), write=write)

    def replace(self, archive):
        """archive: the open file. What was there before stays beside it until the next `settle`."""
        self._as_owner(self._prepare)
        try:
            self._tar(["--extract", "--preserve-permissions"], self._fresh, (0,), archive=archive)
        except LabError:
            self.settle()  # both have no room: the user keeps what was there
            raise
        self._as_owner(self._swap)

    # -- as the folder's owner --------------------------------------------------------------------------------------

    def _as_owner(self, work):
        try:
            return as_user(self._owner, work, FOLDER_SECONDS)
        except UserProcessError as problem:
            raise LabError("home %s: %s, expected to change it" % (self._home, problem)) from None

    def _settle(self):
        if not os.path.lexists(self._home):
            if os.path.lexists(self._old):
                os.rename(self._old, self._home)
            else:
                self._make(self._home, MODE)
        _remove(self._fresh)
        _remove(self._old)

    def _prepare(self):
        self._settle()
        self._make(self._fresh, 0o700)

    def _swap(self):
        os.rename(self._home, self._old)
        os.rename(self._fresh, self._home)

    def _make(self, path, mode):
        os.mkdir(path, 0o700)
        os.chmod(path, mode)
        if os.geteuid() != self._account.pw_uid:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    # -- as the user ------------------------------------------------------------------------------------------------

    def _tar(self, arguments, directory, fine, archive=None, write=None):
        process = subprocess.Popen(
            ["tar", "--file=-", "--directory", directory, *arguments],
            executable="/usr/bin/tar",
            stdin=subprocess.DEVNULL if archive is None else archive,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            cwd="/",
            **self._become(),
        )
        try:
            said = _hear(process, archive, write)
            status = process.wait(STALL_SECONDS)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise LabError("home %s: tar stands still, expected it to go on" % self._home) from None
        finally:
            process.kill()
            process.stdout.close()
            process.stderr.close()
            process.wait()
        if status not in fine:
            text = said.decode(errors="replace").strip() or "tar ended with %d" % status
            first = "%s%.500s" % ("no room, " if any(part in text for part in NO_ROOM) else "", text.splitlines()[0])
            raise LabError("home %s: %s, expected it to be saved and brought back" % (self._home, first))

    def _become(self):
        if os.geteuid() == self._account.pw_uid:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}


def _hear(process, archive, write):
    """The beginning of what it says; raises TimeoutError when it stands still."""
    said, position = b"", None
    with selectors.DefaultSelector() as pipes:
        for pipe in (process.stdout, process.stderr):
            pipes.register(pipe, selectors.EVENT_READ)
        while pipes.get_map():
            ready = pipes.select(STALL_SECONDS)
            if not ready:
                # it reads through the same open file, so this is how far it is
                before, position = position, archive and os.lseek(archive.fileno(), 0, os.SEEK_CUR)
                if position == before:
                    raise TimeoutError
            for key, _events in ready:
                block = os.read(key.fd, BLOCK)
                if not block:
                    pipes.unregister(key.fileobj)
                elif key.fileobj is process.stdout and write:
                    write(block)
                else:
                    said = (said + block)[:SAID]
    return said


def _remove(path):
    """What stands there; of a folder that somebody still writes to, as much as goes: what then needs the name says so,
    and the next run goes on."""
    for _try in range(TRIES):
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                _open_folders(path)
                shutil.rmtree(path)
            else:
                os.unlink(path)
            return
        except FileNotFoundError:
            if not os.path.lexists(path):
                return
        except OSError:
            time.sleep(0.02)


def _open_folders(path):
    """Those that their owner has closed to itself. Root needs it not, and would follow a link put there meanwhile."""
    folders = [path] if os.geteuid() else []
    while folders:
        folder = folders.pop()
        os.chmod(folder, 0o700)
        with os.scandir(folder) as found:
            folders += [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
