#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_build
short_description: Name the build of a virtual machine
author:
  - The Clachan maintainers (@clachan)
description:
  - A VM is built anew when it gets another system disk. It is then another machine, which joins by another token.
  - Before the disk is made, this gives the build a word by chance, which stays as long as the disk is there. It is for
    the role of a software that makes nodes.
options:
  disk:
    description:
      - The system disk that the VM is to have. Others in its directory, as C(system-*.qcow2), are of former builds.
    type: path
    required: true
  note:
    description:
      - The file (mode 0600) that has the word. Its directory must exist and be open to root only for writing.
    type: path
    required: true
  refusal:
    description:
      - What is said when the VM has the disk of another build and keeps it.
      - Empty when that may be given up.
    type: str
    default: ""
extends_documentation_fragment:
  - clachan.platform.attributes
"""

EXAMPLES = r"""
- name: Name the machine
  clachan.platform.vm_build:
    disk: "{{ clachan_instance.slot.directory }}/var/system-1f9a2c0d5e6b7a88.qcow2"
    note: "{{ clachan_instance.slot.directory }}/log/build"
  register: vm_built
"""

RETURN = r"""
build:
  description: The word; empty in check mode before there is one.
  returned: success
  type: str
former:
  description: The system disks of former builds.
  returned: success
  type: list
  elements: str
"""

import glob
import os
import random
import string

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.layout import write_file

OPTIONS = {
    "disk": {"type": "path", "required": True},
    "note": {"type": "path", "required": True},
    "refusal": {"type": "str", "default": ""},
}
RULES = {}
LETTERS = string.ascii_lowercase + string.digits


class BuildError(Exception):
    """Why the VM is not built anew."""


ERRORS = (BuildError, OSError)


def work(params, check):
    """The module's result; raises one of ERRORS."""
    disk, note = params["disk"], params["note"]
    others = glob.glob(os.path.join(glob.escape(os.path.dirname(disk)), "system-*.qcow2"))
    former = sorted(set(others) - {disk})
    if former and params["refusal"]:
        raise BuildError(params["refusal"])
    before = read(note)
    fresh = not os.path.lexists(disk)
    if fresh and not check:
        word = "".join(random.SystemRandom().choice(LETTERS) for _number in range(16))
        write_file(note, word.encode(), 0o600)
    build = read(note)
    difference = {"before": before + "\n", "after": build + "\n"}
    return {"changed": fresh, "build": build, "former": former, "diff": difference}


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True, **RULES)
    try:
        module.exit_json(**work(module.params, module.check_mode))
    except ERRORS as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
