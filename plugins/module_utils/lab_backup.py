# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a lab user's home, and bringing one back.

    <archives>/<name>.tar           the home, root's alone
    <archives>/<name>.tar.sha256    its sum, as sha256sum reads it; written last: without it the archive is not finished
    <mount>/restored                the backup that was brought back last, and its word

tar runs as the user, reading and writing: a link or a special file in a home leads only where its user may go anyway.
The archive itself is opened by root, who gives it to tar as its output or input. A home is brought back beside the one
that is there, and takes its place in two renames; a run that was killed begins again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess

from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError, make_directories
from ansible_collections.clachan.platform.plugins.module_utils.names import is_name

BLOCK = 1 << 20
HOME, FRESH, OLD = "home", "home.new", "home.old"
MOST = 100


class Backups:
    def __init__(self, folder, mount, account, check_mode=False):
        self._folder, self._mount, self._account, self._check = folder, mount, account, check_mode
        self.actions = []

    def make(self, names):
        for name in names:
            if not is_name(name):
                raise LabError("backup %r: expected a name of [a-z0-9_], at most 31 letters" % (name,))
        if len(names) > MOST:
            raise LabError("backups: %d, expected at most %d" % (len(names), MOST))
        for name in names:
            if self._sum(name) is None:
                self._act("saved %s" % name, self._save, name)

    def found(self):
        names = sorted(os.listdir(self._folder)) if os.path.isdir(self._folder) else []
        finished = [name[:-4] for name in names if name.endswith(".tar") and self._sum(name[:-4])]
        return {name: {"size": os.stat(self._archive(name)).st_size, "sha256": self._sum(name)} for name in finished}

    def is_due(self, name, word):
        return self._last() != {"backup": name, "word": word}

    def check(self, name):
        """Before anything is ended for it. Raises LabError."""
        noted = self._sum(name) if is_name(name) else None
        if noted is None:
            known = ", ".join(self.found()) or "none is there"
            raise LabError("backup %.80r: none that is finished, expected one of them (%s)" % (name, known))
        with open(self._archive(name), "rb") as file:
            if _digest(file) != noted:
                raise LabError("backup %s: another sha256, expected %s" % (name, noted))

    def bring_back(self, name, word):
        self._act("brought back %s" % name, self._bring_back, name, word)

    def remove_others(self, names):
        for name in sorted(set(self.found()) - set(names)):
            self._act("removed %s" % name, self._remove, name)

    def _act(self, action, work, *arguments):
        self.actions.append(action)
        if not self._check:
            work(*arguments)

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
            with open(os.path.join(self._mount, "restored"), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def _save(self, name):
        make_directories(self._folder)
        draft = self._archive(name) + ".new"
        with _opened(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as file:
            # 1: a file changed while it was read, which is what a home does that is worked in
            command = ["--create", "--one-file-system", "--sparse", "--warning=no-file-changed", "."]
            self._tar(command, os.path.join(self._mount, HOME), stdout=file, fine=(0, 1))
            os.fsync(file.fileno())
            file.seek(0)
            digest = _digest(file)
        os.rename(draft, self._archive(name))
        _write(self._archive(name) + ".sha256", "%s  %s.tar\n" % (digest, name))

    def _bring_back(self, name, word):
        home, fresh, old = (os.path.join(self._mount, part) for part in (HOME, FRESH, OLD))
        for left in (fresh, old):
            if os.path.isdir(left):
                shutil.rmtree(left)
        os.mkdir(fresh, 0o700)
        os.chown(fresh, self._account.pw_uid, self._account.pw_gid)
        try:
            with _opened(self._archive(name), os.O_RDONLY) as file:
                self._tar(["--extract", "--preserve-permissions"], fresh, stdin=file, fine=(0,))
        except LabError:
            shutil.rmtree(fresh)  # both have no room: the user keeps what was there
            raise
        os.rename(home, old)
        os.rename(fresh, home)
        _write(os.path.join(self._mount, "restored"), json.dumps({"backup": name, "word": word}))
        shutil.rmtree(old)

    def _remove(self, name):
        os.unlink(self._archive(name) + ".sha256")
        os.unlink(self._archive(name))

    def _tar(self, arguments, directory, fine, **channels):
        account = self._account
        become = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        if os.geteuid() == account.pw_uid:
            become = {}
        done = subprocess.run(
            ["/usr/bin/tar", "--directory", directory, *arguments],
            stderr=subprocess.PIPE,
            check=False,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            cwd="/",
            **become,
            **channels,
        )
        if done.returncode not in fine:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [str(done.returncode)]
            raise LabError("home %s: tar: %s, expected it to be saved and brought back" % (directory, said[0]))


def _opened(path, flags):
    return os.fdopen(os.open(path, flags | os.O_NOFOLLOW, 0o600), "r+b" if flags & os.O_RDWR else "rb")


def _digest(file):
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _write(path, text):
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
