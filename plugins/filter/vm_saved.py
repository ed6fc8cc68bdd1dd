# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a virtual machine publishes of its backups."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vm_saved
short_description: The backups of a virtual machine, told
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes one text of the results of a loop of M(clachan.platform.volume) over backups.
options:
  _input:
    description:
      - Results with C(item), as P(clachan.platform.vm_backups#filter) gives it. Those without a sum, as in check mode,
        are left out.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Publish the backups
  clachan.platform.slot:
    publish:
      backups: "{{ saved.results | clachan.platform.vm_saved }}"
"""

RETURN = r"""
_value:
  description: JSON, a list of volume, name, size_mib, sha256 and consistency; empty for none.
  type: str
"""

import json


def vm_saved(results):
    found = [
        {
            "volume": str(one["item"]["volume"]["name"]),
            "name": str(one["item"]["name"]),
            "size_mib": int(one.get("saved_size") or 0) >> 20,
            "sha256": str(one["sha256"]),
            "consistency": str(one.get("consistency") or "unknown"),
        }
        for one in results
        if one.get("sha256")
    ]
    return json.dumps(found) if found else ""


class FilterModule:
    def filters(self):
        return {"vm_saved": vm_saved}
