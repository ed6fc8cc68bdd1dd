#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_user
short_description: Keep the disk of a lab's user, and hold what the user takes of the node
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - The disk is a file O(image) with an ext4 file system, whose room is taken from the node when it is made, mounted at
    O(mount). It is grown, never shrunk, and stays when the rest is removed.
  - What all processes of O(user) take together is held by control groups, version 1 or 2. Where the node has none that
    can be used, RV(held) says so.
  - What the user runs is ended before a backup is brought back.
  - Needs root.
options:
  user:
    description: The unix user, which must be there and run nothing else.
    type: str
    required: true
  image:
    description: The file of the disk.
    type: path
    required: true
  mount:
    description: Where it is mounted.
    type: path
    required: true
  size_mib:
    description: The size of the disk, in MiB. Needed with O(state=present).
    type: int
  memory_mib:
    description: Memory of all processes together, swap included, in MiB. Needed with O(state=present).
    type: int
  cpu_milli:
    description: Time of processors, in thousandths of one. Needed with O(state=present).
    type: int
  tasks:
    description: How many processes and threads there may be. Needed with O(state=present).
    type: int
  archives:
    description: The folder of the backups. Needed with O(backups) and O(restore).
    type: path
  slot:
    description: The directory of the user's slot. Needed with O(environments), and to remove what it does not name.
    type: path
  environments:
    description:
      - The kernel environments of the user. Their locks are brought from the hub's slot to O(slot), where the user can
        read them, and O(mount) gets a folder for them. Kernels, locks and environments of other names are removed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the kernel is called.
        type: str
        required: true
      slot:
        description: The name of the hub's slot, which has the lock.
        type: str
        required: true
      sha256:
        description: The sum of the lock's content.
        type: str
        required: true
  state:
    description: V(absent) ends all that the user runs, and removes all but O(image).
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - clachan.platform.lab_backups
"""

EXAMPLES = r"""
- name: Keep a user's disk and limits
  clachan.platform.lab_user:
    user: clachan_004
    image: /var/lib/clachan/volumes/home.hub.alice/home.img
    mount: /var/lib/clachan/mounts/s004
    size_mib: 1024
    memory_mib: 2048
    cpu_milli: 1000
    tasks: 512
"""

RETURN = r"""
held:
  description: Of C(memory), C(cpu) and C(pids) those that are held, each with the file by which a process enters.
  returned: success
  type: dict
backups:
  description: The finished backups by name, each with C(size) in bytes and C(sha256).
  returned: with state present and O(archives)
  type: dict
actions:
  description: What was done.
  returned: success
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils.lab_backup import OPTIONS, Backups, account_of
from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import Disk, LabError
from ansible_collections.clachan.platform.plugins.module_utils.lab_environments import ENTRY, FOLDER, Environments
from ansible_collections.clachan.platform.plugins.module_utils.lab_home import Home
from ansible_collections.clachan.platform.plugins.module_utils.lab_limits import Group

NEEDED = ("size_mib", "memory_mib", "cpu_milli", "tasks")


class LabUser:
    """The disk, the limits and the backups of one user."""

    def __init__(self, module):
        self._params, self._check = module.params, module.check_mode
        self._account = account_of(module.params["user"])
        self._disk = Disk(module.params["image"], module.params["mount"], module.run_command, module.check_mode)
        self._group = Group(module.params["user"], self._account.pw_uid, check_mode=module.check_mode)

    def absent(self):
        self._disk.absent()
        self._group.end()
        self._group.absent()
        return self._result({})

    def present(self):
        params = self._params
        more = [FOLDER] if params["environments"] else []
        self._disk.present(params["size_mib"], self._account.pw_uid, self._account.pw_gid, more)
        held = self._group.present(params["memory_mib"], params["cpu_milli"], params["tasks"])
        found = self._save() if params["archives"] else {}
        if params["slot"]:
            environments = Environments(params["slot"], params["mount"], self._account, self._check)
            environments.keep(params["environments"])
            self._disk.actions += environments.actions
        return dict(self._result(held), backups=found)

    def _save(self):
        params = self._params
        # the root of the disk is root's
        home, mark = Home(params["mount"], self._account, 0), os.path.join(params["mount"], "restored")
        backups = Backups(params["archives"], home, mark, self._check)
        found = backups.keep(params, self._group.end)
        self._disk.actions += backups.actions
        return found

    def _result(self, held):
        actions = self._disk.actions + (["limited"] if self._group.changed else [])
        return {"changed": bool(actions), "actions": actions, "held": held}


def main():
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "image": {"type": "path", "required": True},
            "mount": {"type": "path", "required": True},
            "size_mib": {"type": "int"},
            "memory_mib": {"type": "int"},
            "cpu_milli": {"type": "int"},
            "tasks": {"type": "int"},
            "archives": {"type": "path"},
            "slot": {"type": "path"},
            "environments": {"type": "list", "elements": "dict", "default": [], "options": ENTRY},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            **OPTIONS,
        },
        required_if=[("state", "present", NEEDED)],
        supports_check_mode=True,
    )
    try:
        user = LabUser(module)
        result = user.absent() if module.params["state"] == "absent" else user.present()
    except LabError as problem:
        module.fail_json(msg=str(problem))
    except OSError as problem:
        module.fail_json(msg="user %s: %s, expected to change it" % (module.params["user"], problem))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
