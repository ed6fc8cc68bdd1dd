#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: slot_lock
short_description: Keep the node's agent away from a slot during a push
author:
  - The Clachan maintainers (@clachan)
description:
  - Holds the lock of the instance's slot, so that push and pull never work on one slot at once. It is for the playbook
    C(clachan.platform.converge).
  - With a local connection the lock is released when the run ends. Over SSH it is released by a task with
    O(state=absent), or after half an hour.
  - Waits up to 60 seconds for another run to end, then fails.
options:
  state:
    description: Whether to hold the lock.
    type: str
    choices: [present, absent]
    default: present
  directory:
    description: The slot's directory. It is taken from the host's C(clachan_instance); never give it.
    type: path
  run:
    description: Which run holds the lock. It is filled in; never give it.
    type: str
attributes:
  check_mode:
    description: Takes the lock all the same; it changes nothing that lasts.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  platform:
    description: Target systems.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Lock the slot
  clachan.platform.slot_lock:
"""

RETURN = r"""#"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.slot_lock import LockError, lock, unlock


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "directory": {"type": "path"},
            "run": {"type": "str"},
        },
        required_together=[("directory", "run")],
        supports_check_mode=True,
    )
    try:
        if module.params["state"] == "present":
            lock(module.params["directory"], module.params["run"])
        else:
            unlock(module.params["directory"], module.params["run"])
    except LockError as problem:
        module.fail_json(msg=str(problem))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
