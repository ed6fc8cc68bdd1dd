#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_home
short_description: Save and bring back the home of a lab of one user
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - Keeps backups of the folder C(home) in O(path), and brings one back. O(path) may be the user's own, as C(var) of a
    slot is. Root does nothing in it; a process that has become O(user) does.
  - Nothing that runs is ended. What works in the home is to be restarted when the file O(mark) changed, which is what
    C(restart_on) of a service is for.
  - A run that was killed is finished by the next one, whatever it is asked for.
  - With a local connection the work is done inside the Ansible process; else one module call does the same there.
options:
  path:
    description:
      - The folder that holds C(home). While a home is brought back, C(home.new) and C(home.old) are in it, too.
    type: path
    required: true
  user:
    description: The unix user whose the home is.
    type: str
    required: true
  archives:
    description: The folder of the backups, root's alone. Each is an archive C(NAME.tar) with its sha256 beside it.
    type: path
    required: true
  mark:
    description:
      - The file that says which backup was brought back last, and with which word. It is where the user cannot write,
        and goes with the home.
    type: path
    required: true
extends_documentation_fragment:
  - clachan.platform.lab_backups
"""

EXAMPLES = r"""
- name: Have a backup of the home
  clachan.platform.lab_home:
    path: "{{ clachan_instance.slot.directory }}/var"
    user: "{{ clachan_instance.slot.user }}"
    archives: /var/lib/clachan/backups/home.lab
    mark: "{{ clachan_instance.slot.directory }}/etc/restored"
    backups: [friday]

- name: Bring it back
  clachan.platform.lab_home:
    path: "{{ clachan_instance.slot.directory }}/var"
    user: "{{ clachan_instance.slot.user }}"
    archives: /var/lib/clachan/backups/home.lab
    mark: "{{ clachan_instance.slot.directory }}/etc/restored"
    restore: friday
"""

RETURN = r"""
backups:
  description: The finished backups by name, each with C(size) in bytes and C(sha256).
  returned: success
  type: dict
actions:
  description: What was done.
  returned: success
  type: list
  elements: str
  sample: [saved friday]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils.lab_backup import ARGUMENTS, keep_backups
from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError


def main():
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        module.exit_json(**keep_backups(module.params, module.check_mode))
    except LabError as problem:
        module.fail_json(msg=str(problem))


if __name__ == "__main__":
    main()
