#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: seed
short_description: Make the disk that tells a virtual machine who it is at its first boot
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes a NoCloud seed, an ISO image labelled C(cidata), which cloud-init and the images of this platform apply.
  - The same options give the same bytes, so a second run changes nothing.
  - The VM's SSH host key is made here, once, and kept in O(host_key). So it is known before the VM answers.
options:
  path:
    description: The ISO image.
    type: str
    required: true
  state:
    description:
      - V(emptied) takes keys, files and the token out of a seed that was applied, also for a VM that runs with it, and
        leaves no trace of them on the disk. The rest stays, so that the VM does not take it for another one.
      - V(absent) removes the image and the host key.
    type: str
    choices: [present, emptied, absent]
    default: present
  owner:
    description: The unix user that QEMU runs as.
    type: str
    default: root
  instance_id:
    description:
      - The seed is applied at a boot when it has another instance-id than the last one that was.
      - With O(join), 8 digits of the token's digest are appended.
    type: str
  hostname:
    description: The VM's host name, at most 64 characters.
    type: str
  host_key:
    description: The file of the private ed25519 key. The public one is beside it, with C(.pub) appended.
    type: str
  authorized_keys:
    description: Public keys that may log in as root.
    type: list
    elements: str
    default: []
  interfaces:
    description: The network devices, by MAC address.
    type: list
    elements: dict
    default: []
    suboptions:
      mac:
        description: The MAC address.
        type: str
        required: true
      addresses:
        description: IPv4 and IPv6 addresses, like V(10.1.0.5/32).
        type: list
        elements: str
        default: []
      gateways:
        description: Where everything else goes; they need not be in a network of O(interfaces[].addresses).
        type: list
        elements: str
        default: []
      nameservers:
        description: Addresses of name servers.
        type: list
        elements: str
        default: []
  files:
    description: Files that are written at the first boot.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where.
        type: str
        required: true
      content:
        description: The text. It is never shown.
        type: str
        required: true
      permissions:
        description: Four octal digits in quotes.
        type: str
        default: "0644"
  join:
    description: Makes the VM join a platform as a node.
    type: dict
    suboptions:
      url:
        description: The controller, as the VM reaches it.
        type: str
        required: true
      token_file:
        description: A JSON file with C(node) and C(token), as M(clachan.platform.vm_token) makes it.
        type: str
        required: true
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Shows names, addresses and paths before and after, and of the rest whether it changed.
    support: full
requirements:
  - pycdlib (Debian's python3-pycdlib), in this Python or the system's
"""

EXAMPLES = r"""
- name: Make a seed
  clachan.platform.seed:
    path: /var/lib/clachan/slots/s003/var/seed.iso
    owner: clachan_003
    instance_id: 0a9a4c4e-4d55-4f5c-9d5e-0f1b3c3f2a11
    hostname: lab.hadoop.worker1
    host_key: /var/lib/clachan/slots/s003/log/host_key
    interfaces:
      - mac: "52:54:00:aa:bb:cc"
        addresses: [10.96.0.19/32, "fd00:1::13/128"]
        gateways: [169.254.1.1, "fe80::1"]
    files:
      - {path: /etc/motd, content: "A worker\n"}
    join:
      url: https://controller.clachan.internal:20060
      token_file: /var/lib/clachan/slots/s003/etc/join.json
"""

RETURN = r"""
actions:
  description: What was done, in order, or in check mode would be.
  returned: success
  type: list
  elements: str
host_public_key:
  description: The VM's SSH host key, for C(known_hosts).
  returned: when there is one
  type: str
"""

import pwd

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import seed
from ansible_collections.clachan.platform.plugins.module_utils.domain import check_path
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError
from ansible_collections.clachan.platform.plugins.module_utils.seed_files import HostKey, SeedFile

INTERFACE = {
    "mac": {"type": "str", "required": True},
    "addresses": {"type": "list", "elements": "str", "default": []},
    "gateways": {"type": "list", "elements": "str", "default": []},
    "nameservers": {"type": "list", "elements": "str", "default": []},
}
FILE = {
    "path": {"type": "str", "required": True},
    "content": {"type": "str", "required": True, "no_log": True},
    "permissions": {"type": "str", "default": "0644"},
}
JOIN = {
    "url": {"type": "str", "required": True},
    "token_file": {"type": "str", "required": True, "no_log": False},
}
OPTIONS = {
    "path": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "emptied", "absent"], "default": "present"},
    "owner": {"type": "str", "default": "root"},
    "instance_id": {"type": "str"},
    "hostname": {"type": "str"},
    "host_key": {"type": "str", "no_log": False},
    "authorized_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "interfaces": {"type": "list", "elements": "dict", "options": INTERFACE, "default": []},
    "files": {"type": "list", "elements": "dict", "options": FILE, "default": []},
    "join": {"type": "dict", "options": JOIN},
}
NEEDED = [("state", "present", ["instance_id", "hostname"])]


class Seed:
    """One seed and its host key."""

    def __init__(self, params, check):
        self._params, self._check = params, check
        try:
            owner = pwd.getpwnam(params["owner"])
        except KeyError:
            raise HypervisorError("owner %r: expected a user of this machine" % params["owner"]) from None
        self._file = SeedFile(check_path("seed", params["path"]), owner)
        self._key = HostKey(check_path("host_key", params["host_key"]), owner) if params["host_key"] else None
        self.actions, self.facts = [], {}

    def run(self):
        before = self._file.look()
        after = getattr(self, "_" + self._params["state"])(before)
        difference = {"before": seed.shown(before), "after": seed.shown(after)}
        facts = dict(self.facts, actions=self.actions)
        return dict(facts, changed=bool(self.actions), diff=difference)

    def _do(self, action, verb, *arguments):
        self.actions.append(action)
        if not self._check:
            verb(*arguments)

    def _present(self, before):
        key = self._host_key()
        after = seed.image(seed.documents(self._params, key))
        if before != after:
            self._do("written" if before is None else "written anew", self._file.replace, after)
        self._keep_rights()
        return after

    def _host_key(self):
        """(private, public); in check mode, when it is still to be made, texts that stand for it."""
        if self._key is None:
            return None
        if not self._key.exists():
            self._do("host key made", self._key.make)
            if self._check:
                return "", ""
        private, public = self._key.read()
        self.facts["host_public_key"] = public.strip()
        return private, public

    def _emptied(self, before):
        if self._key is not None and self._key.exists():
            self.facts["host_public_key"] = self._key.read()[1].strip()
        if before is None:
            return None
        texts = seed.files_of(before)
        if not texts:
            # half emptied by a run that was killed: what was in it does not matter any more
            texts = {"meta-data": "{}\n", "network-config": "{}\n"}
        after = seed.image(seed.emptied(texts))
        after += b"\0" * max(0, len(before) - len(after))
        if before != after:
            self._do("emptied", self._file.overwrite, after)
        self._keep_rights()
        return after

    def _absent(self, before):
        if before is not None:
            self._do("removed", self._file.remove)
        if self._key is not None and self._key.exists():
            self._do("host key removed", self._key.remove)

    def _keep_rights(self):
        if self._file.rights_differ():
            self._do("rights set", self._file.set_rights)


def main():
    module = AnsibleModule(argument_spec=OPTIONS, required_if=NEEDED, supports_check_mode=True)
    try:
        seed.pycdlib()
        result = Seed(module.params, module.check_mode).run()
    except (HypervisorError, OSError) as problem:
        module.fail_json(msg=str(problem))
    difference = result.pop("diff")
    if module._diff:
        result["diff"] = difference
    module.exit_json(**result)


if __name__ == "__main__":
    main()
