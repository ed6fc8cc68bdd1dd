# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data volumes that a tenant asks for, as files of the node."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vm_volumes
short_description: The data volumes of a virtual machine as files
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives each volume its file. A name that is none is refused, as it becomes part of a path.
options:
  _input:
    description: Volumes with C(name) and C(size_mib), and C(format), C(cache), C(io) when they are not the defaults.
    type: list
    elements: dict
    required: true
  folder:
    description: Where the files are.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Make the data volumes
  clachan.platform.volume:
    path: "{{ item.path }}"
    format: "{{ item.format }}"
    size: "{{ item.size }}"
  loop: "{{ vm_volumes | clachan.platform.vm_volumes('/var/lib/clachan/volumes/lab.web') }}"
"""

RETURN = r"""
_value:
  description:
    - For each volume C(name), C(path), C(size), C(format) and C(disk), the disk for M(clachan.platform.vm).
  type: list
  elements: dict
"""

import os

from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.module_utils.names import is_name

LONGEST = 20
"""What a disk's serial number holds."""
CHOICES = {
    "format": ("raw", "qcow2"),
    "cache": ("auto", "none", "writeback", "writethrough", "directsync"),
    "io": ("auto", "native", "threads"),
}
"""The first is the default."""


def vm_volumes(volumes, folder):
    found = [_volume(volume, folder) for volume in volumes]
    names = [volume["name"] for volume in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise AnsibleFilterError("volume %s: there twice, expected each name once" % twice[0])
    return found


def _volume(volume, folder):
    name, size = volume.get("name"), volume.get("size_mib")
    if not is_name(name) or len(name) > LONGEST:
        raise AnsibleFilterError("volume %r: expected a name of [a-z0-9_], at most %d letters" % (name, LONGEST))
    if not isinstance(size, int) or size < 1:
        raise AnsibleFilterError("volume %s: size_mib %r, expected 1 or more" % (name, size))
    chosen = {key: _chosen(volume, key) for key in CHOICES}
    path = os.path.join(folder, "%s.%s" % (name, chosen["format"]))
    disk = dict(chosen, path=path, serial=name)
    return {"name": name, "path": path, "size": "%dMiB" % size, "format": chosen["format"], "disk": disk}


def _chosen(volume, key):
    value = volume.get(key) or CHOICES[key][0]
    if value not in CHOICES[key]:
        raise AnsibleFilterError(
            "volume %s: %s %r, expected one of %s" % (volume["name"], key, value, ", ".join(CHOICES[key]))
        )
    return value


class FilterModule:
    def filters(self):
        return {"vm_volumes": vm_volumes}
