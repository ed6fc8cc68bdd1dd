#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: join_token
short_description: Make a one-time token by which a machine joins the platform
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes a join token for a node that has not joined. For one that has, it changes nothing and gives no token.
  - Each run makes a new token until the node has joined; a token that is not used expires.
options:
  node:
    description: The name that the machine will have as a node.
    type: str
    required: true
  owner:
    description: The tenant that owns the machine. Default is the operator.
    type: str
  labels:
    description: The node's labels.
    type: dict
    default: {}
  links:
    description:
      - Where other nodes reach the machine directly, an IPv4 and an IPv6 address or one of them, for clusters that are
        on several nodes. Only a machine of the operator has some.
    type: list
    elements: str
    default: []
  seconds:
    description: How long the token can be used, from 60 to 604800.
    type: int
    default: 3600
  dest:
    description:
      - Write the token to this file (mode 0600) instead of returning it, so that it never is in a variable.
      - Its directory must exist. What stands there is replaced.
    type: path
extends_documentation_fragment:
  - clachan.platform.controller
  - clachan.platform.attributes
  - clachan.platform.attributes.action_group
"""

EXAMPLES = r"""
- name: Let a second machine join
  clachan.platform.join_token:
    node: cellar
    links: [192.0.2.7, "2001:db8::7"]
    dest: /run/cellar.token
"""

RETURN = r"""
joined:
  description: Whether the node has joined already.
  returned: success
  type: bool
token:
  description: The token, unless O(dest) is given. The result is hidden from output, as with C(no_log).
  returned: when one was made and O(dest) is not given
  type: str
expires:
  description: When the token can no longer be used.
  returned: when one was made
  type: str
"""

import os
import tempfile

from ansible_collections.clachan.platform.plugins.module_utils.client import segment
from ansible_collections.clachan.platform.plugins.module_utils.controller import Failure, run_module

OPTIONS = {
    "node": {"type": "str", "required": True},
    "owner": {"type": "str"},
    "labels": {"type": "dict", "default": {}},
    "links": {"type": "list", "elements": "str", "default": []},
    "seconds": {"type": "int", "default": 3600},
    "dest": {"type": "path"},
}
RULES = {}


class JoinToken:
    """A join token for one node."""

    def __init__(self, client, params, check_mode, say):
        self._client, self._params, self._check = client, params, check_mode

    def run(self):
        node = self._client.find("/nodes/%s" % segment(self._params["node"]))
        joined = node is not None and node["state"] in ("active", "drained")
        result = {"changed": not joined, "joined": joined, "diff": self._difference(joined)}
        if joined or self._check:
            return result
        made = self._client.call("POST", "/join-tokens", body=self._declaration()).body
        result["expires"] = made["expires"]
        if self._params["dest"]:
            _write(self._params["dest"], made["token"])
        else:
            result["token"] = made["token"]
        return result

    def _declaration(self):
        given = {key: self._params[key] for key in ("node", "owner", "labels", "links", "seconds")}
        return {key: value for key, value in given.items() if value is not None}

    def _difference(self, joined):
        after = {} if joined else {"join_token": self._params["node"]}
        return {"before": {}, "after": after}


def _write(path, token):
    """Replace the file as a whole, readable by its owner only from its first byte on."""
    temporary = None
    try:
        fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".join-token-")
        with os.fdopen(fd, "w") as out:
            out.write(token + "\n")
        os.replace(temporary, path)
    except OSError as problem:
        if temporary is not None:
            os.unlink(temporary)
        raise Failure("dest %s: not written, %s" % (path, problem.strerror)) from None


make = JoinToken


def main():
    run_module(make, OPTIONS, **RULES)


if __name__ == "__main__":
    main()
