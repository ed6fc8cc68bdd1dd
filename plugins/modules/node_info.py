#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: Look at nodes
author:
  - The Clachan maintainers (@clachan)
description:
  - Returns the nodes that the user may see, as the controller shows them.
options:
  name:
    description: One node. Its absence is no error.
    type: str
extends_documentation_fragment:
  - clachan.platform.controller
  - clachan.platform.attributes.info
  - clachan.platform.attributes.action_group
"""

EXAMPLES = r"""
- name: See which machines are there
  clachan.platform.node_info:
  register: machines
"""

RETURN = r"""
nodes:
  description: The nodes, by name.
  returned: success
  type: list
  elements: dict
"""

from ansible_collections.clachan.platform.plugins.module_utils.client import segment
from ansible_collections.clachan.platform.plugins.module_utils.controller import run_module

OPTIONS = {"name": {"type": "str"}}


class NodeInfo:
    """A look at nodes."""

    def __init__(self, client, params, check_mode, say):
        self._client, self._params = client, params

    def run(self):
        if not self._params["name"]:
            return {"changed": False, "nodes": self._client.items("/nodes")}
        found = self._client.find("/nodes/%s" % segment(self._params["name"]))
        return {"changed": False, "nodes": [] if found is None else [found]}


RULES = {}
make = NodeInfo


def main():
    run_module(make, OPTIONS, **RULES)


if __name__ == "__main__":
    main()
