# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs under ansible-test (which has the collection on its path already) and under plain pytest (which has not)."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile

import pytest
from ansible.utils.collection_loader import AnsibleCollectionConfig


def _load_collections_as_ansible_does():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    link = os.path.join(root, "collections", "ansible_collections", "clachan", "platform")
    if not os.path.exists(link):
        os.makedirs(os.path.dirname(link), exist_ok=True)
        try:
            os.symlink("../../..", link)
        except FileExistsError:  # another worker was quicker
            pass
    # imported here: what ansible-test lets tests of module_utils import does not have it
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader([os.path.join(root, "collections")])


if AnsibleCollectionConfig.collection_finder is None:
    _load_collections_as_ansible_does()


class Slot:
    """A slot as the node's agent makes it: `directory`, and the owner of `var/`."""

    def __init__(self, directory, user):
        self.directory, self.user = str(directory), user

    def path(self, relative):
        return os.path.join(self.directory, relative)

    def read(self, relative):
        with open(self.path(relative), "rb") as source:
            return source.read()

    def rights(self, relative):
        status = os.lstat(self.path(relative))
        return "%04o %d:%d" % (status.st_mode & 0o7777, status.st_uid, status.st_gid)


def make_slot(directory, user):
    entry = pwd.getpwnam(user)
    mine = os.geteuid()
    for part, owner, mode in (
        ("", mine, 0o750),
        ("etc", mine, 0o750),
        ("var", entry.pw_uid, 0o700),
        ("log", mine, 0o750),
    ):
        path = os.path.join(str(directory), part)
        os.mkdir(path)
        os.chmod(path, mode)
        os.chown(path, owner, entry.pw_gid)
    return Slot(directory, user)


@pytest.fixture
def slot(tmp_path):
    """A slot of the one user that runs the tests, as in the unprivileged mode."""
    return make_slot(tmp_path / "s000", pwd.getpwuid(os.geteuid()).pw_name)


@pytest.fixture
def foreign_slot(tmp_path):
    """A slot of another user, as root's agent has it."""
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    return make_slot(tmp_path / "s001", "nobody")


@pytest.fixture
def reachable_slot():
    """As foreign_slot, where that user can walk to it."""
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    folder = tempfile.mkdtemp(prefix="slot-")
    os.chmod(folder, 0o711)
    yield make_slot(os.path.join(folder, "s002"), "nobody")
    shutil.rmtree(folder)
