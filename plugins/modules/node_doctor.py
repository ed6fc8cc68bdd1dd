#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_doctor
short_description: Compare what is on a node for virtual machines with what its instances say
author:
  - The Clachan maintainers (@clachan)
description:
  - Looks at domains, disks, data volumes, images, taps, rules and processes of the slots' users, and says of each
    whether an instance wants it as it is. So what a kill or a hand left half done has a name.
  - Where libvirt or nftables are not installed there is nothing of theirs, which is right as long as no instance is a
    virtual machine.
  - Domains of the operator's own, which this platform would not make, are listed and are no fault.
options:
  home:
    description:
      - The Clachan home.
      - By default E(CLACHAN_HOME), else C(/var/lib/clachan).
    type: path
  instances:
    description: The instances of the node; by default those of its slice, the last that the controller sent.
    type: list
    elements: dict
    suboptions:
      path:
        description: The instance's path.
        type: str
        required: true
      id:
        description: The instance's id, which is the UUID of its domain.
        type: str
        required: true
      index:
        description: The index of its slot.
        type: int
        required: true
      state:
        description: The wanted state. What is V(waiting) or V(absent) may have its things or not.
        type: str
        choices: [started, stopped, absent, waiting]
        default: started
      machine:
        description: Whether it is a virtual machine.
        type: bool
        default: true
  uri:
    description: Which libvirt.
    type: str
    default: qemu:///system
extends_documentation_fragment:
  - clachan.platform.attributes.info
requirements:
  - Root.
  - libvirt-python (Debian's python3-libvirt), in this Python or the system's, where there are virtual machines.
"""

EXAMPLES = r"""
- name: Look whether anything half done is left
  clachan.platform.node_doctor:
  register: node

- name: Fail when something is wrong
  ansible.builtin.assert:
    that: node.findings | rejectattr('ok') | length == 0
"""

RETURN = r"""
findings:
  description: What was found, kind by kind. Of a kind of which there is nothing one finding says so.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: Kind of what was looked at.
      returned: always
      type: str
      choices: [domain, volume, image, tap, rule, user]
    name:
      description: Which one; empty for all of the kind.
      returned: always
      type: str
    ok:
      description: Whether it is as it shall be. A data volume without an instance is kept, and no fault.
      returned: always
      type: bool
    found:
      description: What is there.
      returned: always
      type: str
    expected:
      description: What was expected; empty when that is what was found.
      returned: always
      type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import hypervisor, node_doctor, node_survey
from ansible_collections.clachan.platform.plugins.module_utils.home import home

INSTANCE = {
    "path": {"type": "str", "required": True},
    "id": {"type": "str", "required": True},
    "index": {"type": "int", "required": True},
    "state": {"type": "str", "choices": ["started", "stopped", "absent", "waiting"], "default": "started"},
    "machine": {"type": "bool", "default": True},
}
OPTIONS = {
    "home": {"type": "path"},
    "instances": {"type": "list", "elements": "dict", "options": INSTANCE},
    "uri": {"type": "str", "default": hypervisor.URI},
}


def findings(params):
    """Raises SurveyError."""
    if os.geteuid() != 0:
        raise node_survey.SurveyError("user: %d, expected root, who alone sees all of a node" % os.geteuid())
    try:
        binding = hypervisor.libvirt()
    except hypervisor.HypervisorError:
        binding = None
    seen = node_survey.survey(os.path.abspath(home(params["home"])), params["instances"], binding, params["uri"])
    return node_doctor.examine(seen)


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        found = findings(module.params)
    except (node_survey.SurveyError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, findings=found)


if __name__ == "__main__":
    main()
