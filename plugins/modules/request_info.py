#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: request_info
short_description: Look at instances
author:
  - The Clachan maintainers (@clachan)
description:
  - Returns the instances that the user may see, as the controller shows them. Secrets read C(<secret>).
options:
  path:
    description: One instance, as V(TENANT.NAME). Its absence is no error.
    type: str
  tenant:
    description: Only those of this tenant.
    type: str
  state:
    description: Only those that are observed in this state, for example V(started) or V(failing).
    type: str
  software:
    description: Only those of this software, as V(NAMESPACE.COLLECTION.ROLE).
    type: str
extends_documentation_fragment:
  - clachan.platform.controller
  - clachan.platform.attributes.info
  - clachan.platform.attributes.action_group
"""

EXAMPLES = r"""
- name: See what fails
  clachan.platform.request_info:
    tenant: home
    state: failing
  register: failing
"""

RETURN = r"""
instances:
  description: The instances, by path.
  returned: success
  type: list
  elements: dict
"""

from ansible_collections.clachan.platform.plugins.module_utils.client import segment
from ansible_collections.clachan.platform.plugins.module_utils.controller import run_module

OPTIONS = {
    "path": {"type": "str"},
    "tenant": {"type": "str"},
    "state": {"type": "str"},
    "software": {"type": "str"},
}


class RequestInfo:
    """A look at instances."""

    def __init__(self, client, params, check_mode, say):
        self._client, self._params = client, params

    def run(self):
        return {"changed": False, "instances": self._one() if self._params["path"] else self._all()}

    def _one(self):
        found = self._client.find("/instances/%s" % segment(self._params["path"]))
        return [] if found is None else [found]

    def _all(self):
        return self._client.items("/instances", {key: self._params[key] for key in ("tenant", "state", "software")})


RULES = {"mutually_exclusive": [("path", "tenant"), ("path", "state"), ("path", "software")]}
make = RequestInfo


def main():
    run_module(make, OPTIONS, **RULES)


if __name__ == "__main__":
    main()
