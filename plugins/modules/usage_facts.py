#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: usage_facts
short_description: Get usage records as facts
author:
  - The Clachan maintainers (@clachan)
description:
  - Sets the fact C(clachan_usage) to the usage records that the user may see, and their sums.
  - A record is an integer quantity of one meter, of one instance, in one window of time (UTC).
options:
  tenant:
    description: Only of this tenant.
    type: str
  path:
    description: Only of this instance.
    type: str
  meter:
    description: Only of this meter.
    type: str
  since:
    description: Only of windows that end after this time, as V(2030-01-31T00:00:00Z).
    type: str
  until:
    description: Only of windows that begin before this time.
    type: str
extends_documentation_fragment:
  - clachan.platform.controller
  - clachan.platform.attributes.info
  - clachan.platform.attributes.facts
  - clachan.platform.attributes.action_group
"""

EXAMPLES = r"""
- name: Get what the tenant used
  clachan.platform.usage_facts:
    tenant: home

- name: Show the processor time of the lake, in milliseconds
  ansible.builtin.debug:
    msg: "{{ clachan_usage.totals['home.lake'].cpu_ms | default(0) }}"
"""

RETURN = r"""
ansible_facts:
  description: The facts.
  returned: success
  type: dict
  contains:
    clachan_usage:
      description: Usage.
      returned: success
      type: dict
      contains:
        records:
          description: The records, as the controller shows them.
          returned: success
          type: list
          elements: dict
        totals:
          description: The sum of quantities, by instance and meter.
          returned: success
          type: dict
"""

from ansible_collections.clachan.platform.plugins.module_utils.controller import run_module

OPTIONS = {
    "tenant": {"type": "str"},
    "path": {"type": "str"},
    "meter": {"type": "str"},
    "since": {"type": "str"},
    "until": {"type": "str"},
}


class UsageFacts:
    """A look at usage records."""

    def __init__(self, client, params, check_mode, say):
        self._client, self._query = client, {key: params[key] for key in OPTIONS}

    def run(self):
        records = self._client.items("/usage", self._query)
        return {"changed": False, "ansible_facts": {"clachan_usage": {"records": records, "totals": totals(records)}}}


def totals(records):
    """Path -> meter -> sum of quantities."""
    found = {}
    for record in records:
        of_instance = found.setdefault(record["path"], {})
        of_instance[record["meter"]] = of_instance.get(record["meter"], 0) + record["quantity"]
    return found


RULES = {}
make = UsageFacts


def main():
    run_module(make, OPTIONS, **RULES)


if __name__ == "__main__":
    main()
