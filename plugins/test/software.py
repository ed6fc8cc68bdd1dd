# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks ask of a software: is there such a file of tasks, does it need root."""

from __future__ import annotations

import functools
import importlib
import os
import re

import yaml
from ansible.errors import AnsibleError

from ansible_collections.clachan.platform.plugins.module_utils.names import is_fqcn, is_name


def role_path(software):
    """The role's directory; raises AnsibleError when the software is not on the collections path."""
    if not is_fqcn(software):
        raise AnsibleError("software %r: expected NAMESPACE.COLLECTION.ROLE" % software)
    namespace, collection, role = software.split(".")
    try:
        package = importlib.import_module("ansible_collections.%s.%s" % (namespace, collection))
        found = os.path.join(next(iter(package.__path__)), "roles", role)
    except (ImportError, StopIteration):
        found = ""
    if not os.path.isdir(found):
        raise AnsibleError("software %s: not installed, expected its collection on the collections path" % software)
    return found


def with_tasks(software, name):
    """Whether the software has the entry point `name` (a file of tasks)."""
    if not is_name(name):
        raise AnsibleError("entry point %r: expected a name" % name)
    path = os.path.join(role_path(software), "tasks", name)
    return any(os.path.isfile(path + end) for end in (".yml", ".yaml"))


@functools.cache
def needs_root(software):
    """Whether the software's `meta/clachan.yml` asks that its tasks run as root."""
    try:
        with open(os.path.join(role_path(software), "meta", "clachan.yml"), encoding="utf-8") as source:
            about = yaml.safe_load(source)
    except OSError:
        return False
    return isinstance(about, dict) and about.get("needs_root") is True


def confined(instance, connection):
    """Whether the tasks of an instance must become its slot's user, instead of running as the connection's user."""
    user = instance["slot"]["user"]
    if connection == "local":
        other = os.geteuid() == 0 and user != "root"
    else:
        # a node in the unprivileged mode has no users of its own for slots
        other = re.fullmatch(r"clachan_[0-9]{3,4}", user) is not None
    return other and not needs_root(instance["software"])


class TestModule:
    def tests(self):
        return {"with_tasks": with_tasks, "needs_root": needs_root, "confined": confined}
