# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send the running platform collection to a home that does not have it.

The collection runs either from where it was installed (it has a MANIFEST.json) or from a clone of the repository,
which is then built first. The module says whether it needs it, so an unchanged home costs no transfer and no build.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

import yaml
from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
NEVER = [".*", "__pycache__", "*.pyc", "*.retry"]


class ActionModule(ActionBase):
    """`clachan.platform.home`."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        arguments = dict(self._task.args, source=source())
        arguments.pop("archive", None)
        result = self._execute_module(module_args=arguments, task_vars=task_vars)
        if result.get("failed") or not result.get("archive_needed") or self._task.check_mode:
            return result
        if not os.listdir(_wheels()):
            raise AnsibleActionFail(
                "folder %s: no wheels, expected those that ./clachan or ./dev build makes" % _wheels()
            )
        folder = tempfile.mkdtemp(dir=C.DEFAULT_LOCAL_TMP, prefix="clachan-")
        try:
            arguments["archive"] = self._send(archive(folder))
            second = self._execute_module(module_args=arguments, task_vars=task_vars)
        finally:
            shutil.rmtree(folder)
            self._remove_tmp_path(self._connection._shell.tmpdir)
        second["changed"] = second.get("changed", False) or result["changed"]
        return second

    def _send(self, path):
        if self._connection.transport == "ansible.builtin.local" and not self._play_context.become:
            return path
        remote = self._connection._shell.join_path(self._make_tmp_path(), "platform.tar.gz")
        self._transfer_file(path, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return remote


def _wheels():
    folder = os.path.join(ROOT, "files", "wheels")
    os.makedirs(folder, exist_ok=True)
    return folder


def source():
    """What identifies the running collection: the digest of its manifest, or of a clone's files."""
    manifest = os.path.join(ROOT, "MANIFEST.json")
    if os.path.exists(manifest):
        with open(manifest, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    digest = hashlib.sha256()
    for name in _files_of_clone():
        path = os.path.join(ROOT, name)
        digest.update(b"%s\0%d\0" % (name.encode(), os.stat(path).st_mode & 0o100))
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return "clone-" + digest.hexdigest()


def _files_of_clone():
    with open(os.path.join(ROOT, "galaxy.yml"), encoding="utf-8") as file:
        ignored = yaml.safe_load(file)["build_ignore"]
    found = []
    for folder, folders, files in os.walk(ROOT):
        inside = os.path.relpath(folder, ROOT)
        folders[:] = [name for name in folders if not _ignored(inside, name, ignored)]
        found += [os.path.normpath(os.path.join(inside, name)) for name in files if not _ignored(inside, name, ignored)]
    return sorted(found)


def _ignored(folder, name, patterns):
    path = os.path.normpath(os.path.join(folder, name))
    return any(fnmatch.fnmatch(name, pattern) for pattern in NEVER) or any(
        fnmatch.fnmatch(path, pattern) for pattern in patterns
    )


def archive(folder):
    """Make the artifact of the running collection in a folder; returns its path."""
    if os.path.exists(os.path.join(ROOT, "MANIFEST.json")):
        return _pack(os.path.join(folder, "platform.tar.gz"))
    command = [sys.executable, "-m", "ansible", "galaxy", "collection", "build", ROOT, "--output-path", folder]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if process.returncode:
        raise AnsibleActionFail("collection %s: does not build: %s" % (ROOT, process.stderr.strip()))
    return os.path.join(folder, next(name for name in os.listdir(folder) if name.endswith(".tar.gz")))


def _pack(path):
    with open(os.path.join(ROOT, "FILES.json"), encoding="utf-8") as file:
        entries = json.load(file)["files"]
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name in ["MANIFEST.json", "FILES.json"] + [entry["name"] for entry in entries if entry["ftype"] == "file"]:
            tar.add(os.path.join(ROOT, name), arcname=name, recursive=False)
    return path
