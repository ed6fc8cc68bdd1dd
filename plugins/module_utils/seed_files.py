# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A seed's file and the host key beside it, in directories of root's alone or of the user that QEMU runs as."""

from __future__ import annotations

import base64
import os
import stat
import subprocess

from ansible_collections.clachan.platform.plugins.module_utils.domain import is_roots_alone
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError
from ansible_collections.clachan.platform.plugins.module_utils.user_process import UserProcessError, as_user

MODE = 0o600
LARGEST = 32 * 1024 * 1024


class _Own:
    """A file of the owner. What somebody else could have put there is touched only as that user."""

    def __init__(self, path, owner):
        self.path, self._owner = path, owner
        self._root = is_roots_alone(path) and os.geteuid() == 0
        self._actor = 0 if self._root else owner.pw_uid
        self._beside = "%s/.%s.new" % os.path.split(path)

    def _as_actor(self, work):
        try:
            return as_user(self._actor, work)
        except UserProcessError as problem:
            raise HypervisorError("file %s: %s" % (self.path, problem)) from None

    def _write(self, data, keeper):
        """Replace the file in one step, durably. keeper: the uid and gid that it gets where root writes."""
        _unlink(self._beside)
        handle = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if self._root:
                os.fchown(file.fileno(), *keeper)
            os.fchmod(file.fileno(), MODE)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._beside, self.path)

    def _read(self):
        """The bytes of the file; None when there is none. Raises HypervisorError for what is no plain file."""

        def work():
            try:
                handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError("no regular file, expected one")
                return base64.b64encode(file.read(LARGEST)).decode()

        found = self._as_actor(work)
        return None if found is None else base64.b64decode(found)


class SeedFile(_Own):
    """The ISO image."""

    def look(self):
        found = self._read()
        if found is not None and self._uid() != self._owner.pw_uid:
            raise HypervisorError(
                "seed %s: belongs to user %d, expected %s" % (self.path, self._uid(), self._owner.pw_name)
            )
        return found

    def _uid(self):
        return os.lstat(self.path).st_uid

    def replace(self, data):
        self._as_actor(lambda: self._write(data, (self._owner.pw_uid, self._owner.pw_gid)))

    def overwrite(self, data):
        """In place, so that neither the disk nor a QEMU that has it open keeps what was there."""

        def work():
            handle = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

        self._as_actor(work)

    def rights_differ(self):
        return os.path.exists(self.path) and stat.S_IMODE(os.lstat(self.path).st_mode) != MODE

    def set_rights(self):
        self._as_actor(lambda: os.chmod(self.path, MODE))

    def remove(self):
        self._as_actor(lambda: [_unlink(path) for path in (self._beside, self.path)])


class HostKey(_Own):
    """A private ed25519 key and its public one."""

    def exists(self):
        return self._read() is not None

    def make(self):
        def work():
            for path in (self._beside, self._beside + ".pub"):
                _unlink(path)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", self._beside]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
            # the private key last: while there is none, a killed run is simply done again
            os.replace(self._beside + ".pub", self.path + ".pub")
            os.replace(self._beside, self.path)

        self._as_actor(work)

    def read(self):
        """(private, public) as texts; the public one is computed, as it might be of another key."""
        private = self._read().decode("ascii")

        def work():
            command = ["ssh-keygen", "-y", "-f", self.path]
            return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout.decode()

        return private, self._as_actor(work)

    def remove(self):
        self._as_actor(lambda: [_unlink(path) for path in (self.path, self.path + ".pub", self._beside)])


def _unlink(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
