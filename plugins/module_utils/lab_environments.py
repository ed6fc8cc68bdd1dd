# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel environments of a hub's user: their locks brought from the hub's slot, and what nobody wants any more.

    <slot>/etc/environments/<name>.txt    the lock, as the hub has it in its own slot
    <slot>/etc/data/kernels/<name>        what starts a kernel
    <mount>/environments/<name>...        the environment, its makes and its guard, the user's

A lock is longer than what a request may say, so a request names the slot that has it, and its sha256: who orders a
place gets only a file that they know already. `etc` is root's in each slot, so nobody else can put anything there; in
the folder on the disk, which is the user's, a child removes that has become the user.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil

from ansible_collections.clachan.platform.plugins.module_utils import layout
from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError
from ansible_collections.clachan.platform.plugins.module_utils.names import is_name
from ansible_collections.clachan.platform.plugins.module_utils.user_process import UserProcessError, as_user

FOLDER = "environments"
OWN_KERNELS = ("science",)
REMEMBERED = ("pip.json", "pip.shared.json")
REMOVE_SECONDS = 600
ENTRY = {
    "name": {"type": "str", "required": True},
    "slot": {"type": "str", "required": True},
    "sha256": {"type": "str", "required": True},
}


class Environments:
    """Those of one user, whose slot's directory is `slot` and whose disk is mounted at `mount`. Raises LabError."""

    def __init__(self, slot, mount, account, check_mode=False):
        self._slot, self._disk = slot, os.path.join(mount, FOLDER)
        self._account, self._check = account, check_mode
        self.actions = []

    def keep(self, wanted):
        """wanted: a list of dicts of ENTRY."""
        for one in wanted:
            self._bring(one)
        self._forget({one["name"] for one in wanted})

    def _act(self, action, work, *arguments):
        self.actions.append(action)
        if not self._check:
            work(*arguments)

    def _bring(self, wanted):
        name, sha256 = wanted["name"], wanted["sha256"]
        if not is_name(name) or not re.match(r"s[0-9]{3,6}\Z", wanted["slot"]):
            raise LabError("environment %.80r: slot %.80r, expected names" % (name, wanted["slot"]))
        own = self._lock(self._slot, name)
        text = _read(own)
        if text is None or hashlib.sha256(text).hexdigest() != sha256:
            text = _read(self._lock(os.path.join(os.path.dirname(self._slot), wanted["slot"]), name))
            if text is None or hashlib.sha256(text).hexdigest() != sha256:
                raise LabError("environment %s: no lock with sha256 %s in slot %s" % (name, sha256, wanted["slot"]))
            self._act("brought the lock of %s" % name, self._write, own, text)
        elif not self._check:
            self._open(own)

    def _lock(self, slot, name):
        return os.path.join(slot, "etc", FOLDER, name + ".txt")

    def _write(self, path, text):
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
            os.chown(folder, 0, self._account.pw_gid)
            os.chmod(folder, 0o750)  # noqa: S103 - its group is the user's own
        layout.write_file(path, text, 0o600)
        self._open(path)

    def _open(self, path):
        """To the user, for reading; here, too, when a run was killed before."""
        os.chown(path, 0, self._account.pw_gid)
        os.chmod(path, 0o640)

    def _forget(self, names):
        etc = os.path.join(self._slot, "etc")
        kernels, locks = os.path.join(etc, "data", "kernels"), os.path.join(etc, FOLDER)
        for name in sorted(set(_listed(kernels)) - names - set(OWN_KERNELS)):
            self._act("removed the kernel %s" % name, shutil.rmtree, os.path.join(kernels, name))
        for file in sorted(set(_listed(locks)) - {name + ".txt" for name in names}):
            self._act("removed the lock %s" % file, os.unlink, os.path.join(locks, file))
        found = set(_listed(self._disk)) - set(REMEMBERED)
        left = [file for file in found if re.split("[-.]", file)[0] not in names]
        if left:
            self._act("removed %s" % ", ".join(sorted(left)), self._clear, left)

    def _clear(self, files):
        def work():
            for file in files:
                path = os.path.join(self._disk, file)
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)

        try:
            as_user(self._account.pw_uid, work, REMOVE_SECONDS)
        except UserProcessError as problem:
            raise LabError("environments in %s: %s, expected to remove some" % (self._disk, problem)) from None


def _listed(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []


def _read(path):
    """Only a regular file; None without one."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return file.read()
    except OSError:
        return None
