# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backups that a tenant asks for, as files of the node."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vm_backups
short_description: The backups of a virtual machine's data volumes as files
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives each backup its volume and its archive. A name that is none is refused, as it becomes part of a path.
options:
  _input:
    description: Backups with C(name) and C(volume), the volume's name.
    type: list
    elements: dict
    required: true
  folder:
    description: Where the archives are, in a folder for each volume.
    type: str
    required: true
  volumes:
    description: The volumes, as P(clachan.platform.vm_volumes#filter) gives them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Make the backups
  clachan.platform.volume:
    path: "{{ item.volume.path }}"
    state: backed_up
    archive: "{{ item.archive }}"
  loop: "{{ vm_backups | clachan.platform.vm_backups('/var/lib/clachan/backups/lab.web', volumes) }}"
"""

RETURN = r"""
_value:
  description: For each backup C(name), C(label), C(volume) (the volume itself), C(folder) and C(archive).
  type: list
  elements: dict
"""

import os

from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.module_utils.names import is_name

MOST = 100


def vm_backups(backups, folder, volumes):
    known = {volume["name"]: volume for volume in volumes}
    found = [_backup(backup, folder, known) for backup in backups]
    labels = [backup["label"] for backup in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise AnsibleFilterError("backup %s: there twice, expected each once" % twice[0])
    if len(found) > MOST:
        raise AnsibleFilterError("backups: %d, expected at most %d" % (len(found), MOST))
    return found


def _backup(backup, folder, known):
    name, volume = backup.get("name"), backup.get("volume")
    if not is_name(name):
        raise AnsibleFilterError("backup %r: expected a name of [a-z0-9_], at most 31 letters" % (name,))
    if not isinstance(volume, str) or volume not in known:
        raise AnsibleFilterError(
            "backup %s: of volume %r, expected one of the volumes (%s)" % (name, volume, ", ".join(sorted(known)))
        )
    place = os.path.join(folder, volume)
    return {
        "name": name,
        "label": "%s/%s" % (volume, name),
        "volume": known[volume],
        "folder": place,
        "archive": os.path.join(place, name + ".qcow2"),
    }


class FilterModule:
    def filters(self):
        return {"vm_backups": vm_backups}
