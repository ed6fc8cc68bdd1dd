#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: supply
short_description: Make a software present on a node, and wait for it
author:
  - The Clachan maintainers (@clachan)
description:
  - Declares that a software shall be on a node. The node fetches it and prepares what all its instances share, once.
options:
  node:
    description: The node's name.
    type: str
    required: true
  software:
    description: The software, as V(NAMESPACE.COLLECTION.ROLE).
    type: str
    required: true
  digest:
    description:
      - Which build of the software. Default is the one that the supply has, else the newest that is registered.
    type: str
  state:
    description: Whether the software shall be there.
    type: str
    choices: [present, absent]
    default: present
  wait:
    description: Wait until the node has done it.
    type: bool
    default: true
  wait_timeout:
    description: How many seconds to wait at most. The node goes on with it after that.
    type: int
    default: 600
extends_documentation_fragment:
  - clachan.platform.controller
  - clachan.platform.attributes
  - clachan.platform.attributes.action_group
"""

EXAMPLES = r"""
- name: Have the lake's software on the node
  clachan.platform.supply:
    node: here
    software: clachan.platform.lake
"""

RETURN = r"""
supply:
  description: The supply as the controller shows it. Empty when the software is not there and shall not be.
  returned: success
  type: dict
  contains:
    digest:
      description: Which build.
      returned: always
      type: str
    observed:
      description: How it is on the node, one of C(waiting), C(present), C(absent), C(failed).
      returned: always
      type: str
    message:
      description: The node's last word on it.
      returned: always
      type: str
"""

import time

from ansible_collections.clachan.platform.plugins.module_utils.client import segment
from ansible_collections.clachan.platform.plugins.module_utils.controller import Failure, run_module

OPTIONS = {
    "node": {"type": "str", "required": True},
    "software": {"type": "str", "required": True},
    "digest": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "int", "default": 600},
}
RULES = {}
SHOWN = ("digest", "state")
PAUSE_SECONDS = 1


class Supply:
    """The declaration of one software on one node."""

    def __init__(self, client, params, check_mode, say):
        self._client, self._params, self._check, self._say = client, params, check_mode, say
        self._url = "/supplies/%s/%s" % (segment(params["node"]), segment(params["software"]))

    def run(self):
        before = self._client.find(self._url)
        if self._params["state"] == "absent" and before is None:
            return {"changed": False, "supply": {}, "diff": _difference(None, None)}
        after = self._would_be(before) if self._check else self._declare()
        changed = _shown(before) != _shown(after)
        if self._params["wait"] and not self._check:
            after = self._await(after)
        return {"changed": changed, "supply": after, "diff": _difference(before, after)}

    def _declare(self):
        body = {"state": self._params["state"]}
        if self._params["digest"]:
            body["digest"] = self._params["digest"]
        return self._client.call("PUT", self._url, body=body).body

    def _would_be(self, before):
        """What the controller would make of it: a supply keeps its build until another is named."""
        if before is not None and self._params["digest"] is None:
            return dict(before, state=self._params["state"])
        build = {"digest": self._params["digest"]}
        software = self._client.get("/software/%s" % segment(self._params["software"]), query=build)
        if before is None:
            self._client.get("/nodes/%s" % segment(self._params["node"]))
        return dict(before or {}, digest=software["digest"], state=self._params["state"])

    def _await(self, view):
        """The supply when its node has done it."""
        began, said = time.monotonic(), None
        while True:
            now = "%s (%s)" % (view["observed"], view["message"]) if view["message"] else view["observed"]
            if now != said:
                said = now
                self._say("%s on %s: %s" % (self._params["software"], self._params["node"], now))
            if view["observed"] == self._params["state"]:
                return view
            if time.monotonic() - began >= self._params["wait_timeout"]:
                raise Failure(self._late(now), supply=view)
            time.sleep(PAUSE_SECONDS)
            view = self._client.get(self._url)

    def _late(self, now):
        return "supply of %s on %s: %s after %d s, expected %s" % (
            self._params["software"],
            self._params["node"],
            now,
            self._params["wait_timeout"],
            self._params["state"],
        )


def _difference(before, after):
    return {"before": _shown(before), "after": _shown(after)}


def _shown(view):
    return {} if view is None else {key: view[key] for key in SHOWN}


make = Supply


def main():
    run_module(make, OPTIONS, **RULES)


if __name__ == "__main__":
    main()
