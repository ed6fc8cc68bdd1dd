#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: slots
short_description: Make the slots of a node
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes the slots' directories and, when run by root, a unix user and a group of the same name for each.
  - A user is known to be this home's by its home directory, the slot's C(var). A user of that name with another home
    directory is an error. Slots beyond O(count) are left alone.
options:
  home:
    description:
      - The Clachan home.
    type: path
    required: true
  count:
    description:
      - How many slots.
    type: int
    required: true
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Shows what changes.
    support: none
"""

EXAMPLES = r"""
- name: Make ten slots
  clachan.platform.slots:
    home: /var/lib/clachan
    count: 10
"""

RETURN = r"""
directory:
  description: Where the slots are.
  returned: always
  type: str
users:
  description: The unix user of each slot, by index.
  returned: always
  type: list
  elements: str
changes:
  description: Users and directories that were made or set right.
  returned: always
  type: list
  elements: str
"""

import grp
import os
import pwd
import stat

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import layout


def user_name(home, index):
    own = layout.own_prefix(home)
    return "clachan_%s%03d" % (own and own + "_", index)


class Slots:
    """Brings the slots of one home to what its options say."""

    def __init__(self, module):
        self.module = module
        self.directory = os.path.join(module.params["home"], "slots")
        self.root = os.geteuid() == 0
        self.changes = []
        self.users = []

    def make(self):
        self._directory(self.directory, 0o755, 0, 0)
        for index in range(self.module.params["count"]):
            self._slot("s%03d" % index, index)

    def _slot(self, name, index):
        slot = os.path.join(self.directory, name)
        user = self._user(index, os.path.join(slot, "var"))
        self.users.append(user.pw_name if user else user_name(self.module.params["home"], index))
        uid, gid = (user.pw_uid, user.pw_gid) if user else (0, 0)
        self._directory(slot, 0o750, 0, gid)
        self._directory(os.path.join(slot, "etc"), 0o750, 0, gid)
        self._directory(os.path.join(slot, "log"), 0o750, 0, 0)
        self._directory(os.path.join(slot, "var"), 0o700, uid, gid)

    def _user(self, index, var):
        """The slot's user; None in check mode when it is to be made."""
        if not self.root:
            return pwd.getpwuid(os.geteuid())
        name = user_name(self.module.params["home"], index)
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            return self._add_user(name, var)
        if user.pw_dir != var:
            raise layout.HomeError("user %s: has the home directory %s, expected %s" % (name, user.pw_dir, var))
        return user

    def _add_user(self, name, var):
        self.changes.append(name)
        if self.module.check_mode:
            return None
        command = ["useradd", "--system", "--no-create-home", "--home-dir", var, "--shell", "/usr/sbin/nologin"]
        try:
            grp.getgrnam(name)  # left by a kill between group and user
            command += ["--gid", name]
        except KeyError:
            command.append("--user-group")
        self.module.run_command([*command, "--comment", "Clachan slot", name], check_rc=True)
        return pwd.getpwnam(name)

    def _directory(self, path, mode, uid, gid):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            found = None
        if found and not stat.S_ISDIR(found.st_mode):
            raise layout.HomeError("path %s: not a directory, expected one" % path)
        owner = (uid, gid) if self.root else (os.geteuid(), found.st_gid if found else os.getegid())
        if found and (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, *owner):
            return
        self.changes.append(path)
        if self.module.check_mode:
            return
        if not found:
            os.mkdir(path, 0o700)
        os.chown(path, *owner, follow_symlinks=False)
        os.chmod(path, mode)


def main():
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "count": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    slots = Slots(module)
    try:
        slots.make()
    except layout.HomeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(slots.changes), changes=slots.changes, users=slots.users, directory=slots.directory)


if __name__ == "__main__":
    main()
