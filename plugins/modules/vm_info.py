#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: Look at all virtual machines of a node, and read their meters
author:
  - The Clachan maintainers (@clachan)
description:
  - Returns every domain with its state, and the counters of those that run, from one question to libvirt.
  - Counters are as libvirt has them and begin again at zero whenever QEMU starts. Who samples them makes usage of them.
options:
  uri:
    description: Which libvirt.
    type: str
    default: qemu:///system
  balloon:
    description:
      - Whether to ask each QEMU how much memory its guest has, which takes about 2 ms for each.
    type: bool
    default: false
extends_documentation_fragment:
  - clachan.platform.attributes.info
requirements:
  - libvirt-python (Debian's python3-libvirt), in this Python or the system's
"""

EXAMPLES = r"""
- name: Read the meters
  clachan.platform.vm_info:
  register: machines

- name: Show how much was written
  ansible.builtin.debug:
    msg: "{{ machines.vms['lab.hadoop.worker1'].meters.disk_write_bytes }}"
"""

RETURN = r"""
vms:
  description: The domains, by name.
  returned: success
  type: dict
  contains:
    uuid:
      description: The instance's id.
      returned: always
      type: str
    state:
      description: How it is.
      returned: always
      type: str
      choices: [started, paused, stopped, crashed]
    disks:
      description: The path of each disk, by target.
      returned: always
      type: dict
    meters:
      description:
        - Counters since QEMU started, C(cpu_time_ns) (all of QEMU), C(vcpu_time_ns) (by vCPUs alone),
          C(disk_read_bytes), C(disk_write_bytes), C(disk_reads), C(disk_writes), C(network_receive_bytes),
          C(network_send_bytes), as the guest sees them.
        - Quantities of this moment, C(vcpus), C(memory_resident_mib) (what it takes of the node), with O(balloon) also
          C(memory_mib) (what the guest has) and C(memory_maximum_mib).
        - C(epoch), another text after each start of QEMU.
      returned: when it runs
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import vm_meters
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import (
    URI,
    HypervisorError,
    connect,
    libvirt,
)

OPTIONS = {"uri": {"type": "str", "default": URI}, "balloon": {"type": "bool", "default": False}}


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        binding = libvirt()
        try:
            found = vm_meters.read_all(binding, connect(module.params["uri"]), module.params["balloon"])
        except binding.libvirtError as problem:
            raise HypervisorError("libvirt %s: %s" % (module.params["uri"], problem)) from None
    except (HypervisorError, OSError) as problem:
        module.fail_json(msg=str(problem))
    module.exit_json(changed=False, vms=found)


if __name__ == "__main__":
    main()
