# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of the home of who works in a lab, and bringing one back.

    <archives>/<name>.tar           the home, root's alone
    <archives>/<name>.tar.sha256    its sum, as sha256sum reads it; written last: without it the archive is not finished
    <mark>                          the backup that was brought back last, and its word; where the user cannot write,
                                    and gone with the home, so that another home can be brought back to the same

Which options there are and what they mean is the same for a user of a hub and for a lab of one user.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd

from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError, make_directories
from ansible_collections.clachan.platform.plugins.module_utils.lab_home import BLOCK, Home
from ansible_collections.clachan.platform.plugins.module_utils.names import is_name

MOST = 100
OPTIONS = {
    "backups": {"type": "list", "elements": "str", "default": []},
    "delete_backups": {"type": "bool", "default": False},
    "restore": {"type": "str", "default": ""},
    "restore_word": {"type": "str", "default": ""},
}
ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "user": {"type": "str", "required": True},
    "archives": {"type": "path", "required": True},
    "mark": {"type": "path", "required": True},
    **OPTIONS,
}
"""Of the module lab_home."""


def account_of(user):
    """The entry of the password database; raises LabError."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise LabError("user %s: unknown, expected one of the node" % user) from None


def keep_backups(options, check_mode):
    """What the module lab_home does: the home is in a folder of its user's. Returns its result; raises LabError."""
    account = account_of(options["user"])
    home = Home(options["path"], account, account.pw_uid)
    backups = Backups(options["archives"], home, options["mark"], check_mode)
    try:
        found = backups.keep(options)
    except OSError as problem:
        raise LabError("user %s: %s, expected to change it" % (options["user"], problem)) from None
    return {"changed": bool(backups.actions), "actions": backups.actions, "backups": found}


class Backups:
    """Those of one home, in `folder`."""

    def __init__(self, folder, home, mark, check_mode=False):
        self._folder, self._home, self._mark, self._check = folder, home, mark, check_mode
        self.actions = []

    def keep(self, options, end=lambda: None):
        """Those of OPTIONS made true; the finished backups by name. `end` ends what the user runs."""
        if self._home.is_unsettled():
            self._act("settled", self._home.settle)
        self._make(options["backups"])
        name, word = options["restore"], options["restore_word"]
        if name and self._last() != {"backup": name, "word": word}:
            self._verify(name)
            end()
            self._act("brought back %s" % name, self._bring_back, name, word)
            end()  # what was started meanwhile works in what was replaced
        if options["delete_backups"]:
            self._remove_others(options["backups"])
        return self.found()

    def found(self):
        names = [file[:-4] for file in self._files() if file.endswith(".tar")]
        sums = {name: self._sum(name) for name in names}
        return {
            name: {"size": os.stat(self._archive(name)).st_size, "sha256": sums[name]} for name in names if sums[name]
        }

    def _make(self, names):
        for name in names:
            if not is_name(name):
                raise LabError("backup %r: expected a name of [a-z0-9_], at most 31 letters" % (name,))
        if len(names) > MOST:
            raise LabError("backups: %d, expected at most %d" % (len(names), MOST))
        for name in names:
            if self._sum(name) is None:
                self._act("saved %s" % name, self._save, name)

    def _act(self, action, work, *arguments):
        self.actions.append(action)
        if not self._check:
            work(*arguments)

    def _files(self):
        return sorted(os.listdir(self._folder)) if os.path.isdir(self._folder) else []

    def _archive(self, name):
        return os.path.join(self._folder, name + ".tar")

    def _sum(self, name):
        try:
            with open(self._archive(name) + ".sha256", encoding="ascii") as file:
                words = file.read(200).split()
        except FileNotFoundError:
            return None
        return words[0] if words and os.path.isfile(self._archive(name)) else None

    def _last(self):
        try:
            with open(self._mark, encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def _save(self, name):
        make_directories(os.path.dirname(self._folder))
        if not os.path.isdir(self._folder):
            os.mkdir(self._folder, 0o700)
        draft = self._archive(name) + ".new"
        descriptor = _created(draft)
        try:
            digest = self._fill(descriptor)
        except (LabError, OSError) as problem:
            os.unlink(draft)  # perhaps the node has no room
            raise LabError("backup %s: %s" % (name, problem)) from None
        os.rename(draft, self._archive(name))
        _write(self._archive(name) + ".sha256", "%s  %s.tar\n" % (digest, name))

    def _fill(self, descriptor):
        """The sha256 of what is written."""
        digest = hashlib.sha256()
        with os.fdopen(descriptor, "wb") as file:

            def write(block):
                digest.update(block)
                file.write(block)

            self._home.save(write)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _verify(self, name):
        """Before anything is ended or touched for it."""
        noted = self._sum(name) if is_name(name) else None
        if noted is None:
            known = ", ".join(self.found()) or "none is there"
            raise LabError("backup %.80r: none that is finished, expected one of them (%s)" % (name, known))
        with self._opened(name) as file:
            if _digest(file) != noted:
                raise LabError("backup %s: another sha256, expected %s" % (name, noted))

    def _bring_back(self, name, word):
        with self._opened(name) as file:
            self._home.replace(file)
        _write(self._mark, json.dumps({"backup": name, "word": word}))
        self._home.settle()

    def _opened(self, name):
        return os.fdopen(os.open(self._archive(name), os.O_RDONLY | os.O_NOFOLLOW), "rb")

    def _remove_others(self, names):
        """What of them was never finished, too."""
        there = {file.partition(".tar")[0] for file in self._files() if ".tar" in file}
        for name in sorted(there - set(names)):
            self._act("removed %s" % name, self._remove, name)
        if not self._check and os.path.isdir(self._folder) and not self._files():
            os.rmdir(self._folder)

    def _remove(self, name):
        for end in (".sha256", ".sha256.new", ".new", ""):
            try:
                os.unlink(self._archive(name) + end)
            except FileNotFoundError:
                pass


def _created(path):
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)


def _digest(file):
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _write(path, text):
    with os.fdopen(_created(path + ".new"), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
