#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_token
short_description: Get the one-time token by which a virtual machine joins as a node
author:
  - The Clachan maintainers (@clachan)
description:
  - Asks the controller, with the certificate of this node, for the token of a VM that is placed on it. It is for the
    role of a software that makes nodes, run as root on the node.
  - The token goes into a file and never into a variable, an argument or a log.
  - While the file has a token of the generation that can still be used, nothing is asked. When the generation has
    joined, the file is removed.
options:
  instance:
    description: The path of the vm instance.
    type: str
    required: true
  generation:
    description:
      - What the VM was built as, such as the start of a digest; letters, digits and C(. _ -), at most 64.
      - Another generation than the one that joined ends the identity of the former one at once. Give another one when
        the system disk is made anew, and only then.
    type: str
    required: true
  dest:
    description:
      - The file (mode 0600), JSON with C(node), C(token), C(generation) and C(expires). Its directory must exist and be
        open to root only for writing.
    type: path
    required: true
  home:
    description:
      - The node's state directory, which has its certificate.
      - Default is E(CLACHAN_HOME), else C(/var/lib/clachan).
    type: path
extends_documentation_fragment:
  - clachan.platform.attributes
"""

EXAMPLES = r"""
- name: Get the token for the seed
  clachan.platform.vm_token:
    instance: "{{ clachan_instance.path }}"
    generation: "{{ vm_image[:32] }}"
    dest: "{{ clachan_instance.slot.directory }}/etc/join.json"
  register: vm_joining
"""

RETURN = r"""
node:
  description: The name that the VM has as a node.
  returned: success
  type: str
joined:
  description: Whether this generation has joined; then there is no token.
  returned: success
  type: bool
expires:
  description: When the token in the file can no longer be used.
  returned: when there is one
  type: str
"""

import json
import os
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.client import Client, ClientError, find_node
from ansible_collections.clachan.platform.plugins.module_utils.layout import write_file

OPTIONS = {
    "instance": {"type": "str", "required": True},
    "generation": {"type": "str", "required": True},
    "dest": {"type": "path", "required": True},
    "home": {"type": "path"},
}
RULES = {}
ERRORS = (ClientError,)


class VmToken:
    """The token of one VM, in its file."""

    def __init__(self, client, params, check_mode):
        self._client, self._dest, self._check = client, params["dest"], check_mode
        self._wanted = {"instance": params["instance"], "generation": params["generation"]}

    def run(self):
        kept, said = self._kept(), self._ask("true")
        if said["joined"]:
            return self._joined(kept, said)
        if self._holds(kept, said):
            return self._result(False, said, kept, kept)
        if not self._check:
            said = self._ask("false")
            made = {"node": said["node"], "token": said["token"], "expires": said["expires"]}
            write_file(self._dest, json.dumps(dict(made, generation=self._wanted["generation"])).encode(), 0o600)
        return self._result(True, said, kept, dict(said, generation=self._wanted["generation"]))

    def _joined(self, kept, said):
        if os.path.lexists(self._dest) and not self._check:
            os.unlink(self._dest)
        return self._result(kept is not None, said, kept, None)

    def _ask(self, dry):
        return self._client.call("POST", "/nodes/self/join-tokens", body=self._wanted, query={"dry_run": dry}).body

    def _kept(self):
        """What the file has; {} when that is nothing of ours, None when there is no file."""
        try:
            with open(self._dest, encoding="utf-8") as source:
                found = json.load(source)
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _holds(self, kept, said):
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        same = {"node": said["node"], "generation": self._wanted["generation"]}
        return bool(kept) and {**kept, **same} == kept and bool(kept.get("token")) and str(kept.get("expires")) > now

    def _result(self, changed, said, before, after):
        result = {"changed": changed, "node": said["node"], "joined": said["joined"]}
        if after and after.get("expires"):
            result["expires"] = after["expires"]
        return dict(result, diff={"before": _shown(before), "after": _shown(after)})


def _shown(content):
    if not content:
        return {}
    return {"node": content.get("node"), "generation": content.get("generation"), "token": "<secret>"}


def work(params, check):
    """The module's result; raises ClientError."""
    client = Client(find_node(params["home"]))
    try:
        return VmToken(client, params, check).run()
    except OSError as problem:
        raise ClientError("dest %s: %s, expected a file in a directory" % (params["dest"], problem.strerror)) from None


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True, **RULES)
    try:
        module.exit_json(**work(module.params, module.check_mode))
    except ERRORS as problem:
        module.fail_json(msg=str(problem))


if __name__ == "__main__":
    main()
