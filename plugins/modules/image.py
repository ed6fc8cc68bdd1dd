#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Build a disk image from a recipe, or take in one of your own
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes sure that a store has the image that a recipe stands for, with a manifest of what is in it. A recipe whose
    content did not change is not built again; its content are also the roles and playbooks that it names and the
    platform collection.
  - Two builders give the same image. V(bootstrap) boots nothing and needs root; V(packer) boots a guest of QEMU, and
    needs the base as an image in the store when it is not run by root.
  - A build that was killed leaves folders in the store, which the next one removes, and nothing else.
options:
  name:
    description: The image's name, of lower-case letters, digits, C(_) and C(-).
    type: str
    required: true
  recipe:
    description: What the image is made of.
    type: dict
    suboptions:
      base:
        description: V(debian-12), or the sha256 of an image in the store.
        type: str
        default: debian-12
      size:
        description: How large the disk is, in V(MiB) or V(GiB). The first boot on a larger disk uses all of it.
        type: str
        default: 3GiB
      packages:
        description: Debian packages, installed without those that they recommend.
        type: list
        elements: str
        default: []
      roles:
        description:
          - Roles, by FQCN or as absolute paths.
          - No service runs while the image is built; what a role enables starts with the machine.
        type: list
        elements: str
        default: []
      playbooks:
        description: Absolute paths of playbooks, run after the roles. The image is their one host.
        type: list
        elements: str
        default: []
      users:
        description: Users of the image.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: The user's name; V(root) for the keys of root.
            type: str
            required: true
          authorized_keys:
            description: Public keys that may log in.
            type: list
            elements: str
            default: []
          groups:
            description: Existing groups that the user is in, beside its own.
            type: list
            elements: str
            default: []
          shell:
            description: The login shell.
            type: str
            default: /bin/bash
      format:
        description: The disk's format.
        type: str
        choices: [qcow2, raw]
        default: qcow2
      agent:
        description: Install the agent, which joins when the machine gets a seed with a join token.
        type: bool
        default: true
  source:
    description:
      - A disk of your own, taken in after inspection instead of being built.
      - A qcow2 that needs another file, or a disk that is larger than O(maximum_size), is refused.
    type: path
  source_format:
    description:
      - What O(source) is said to be. Without it, a file without a header of qcow2 must have a boot sector to be V(raw).
    type: str
    choices: [qcow2, raw]
  maximum_size:
    description: How large the disk in O(source) may be, in V(MiB) or V(GiB).
    type: str
    default: 64GiB
  builder:
    description: Who builds. V(auto) is V(bootstrap) where it works, else V(packer).
    type: str
    choices: [auto, bootstrap, packer]
    default: auto
  store:
    description:
      - The folder of the images. Default is C(images) in E(CLACHAN_HOME), else in C(/var/lib/clachan) for root and in
        C(~/.local/share/clachan) for others.
    type: path
  state:
    description: Whether the image shall be there. V(absent) removes every image of that name.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Says whether the image would be built, taken in or removed.
    support: full
  diff_mode:
    description: Shows the manifests' main entries before and after.
    support: full
requirements:
  - "V(bootstrap): mmdebstrap, e2fsprogs, fdisk, extlinux, qemu-utils"
  - "V(packer): packer, the Python package C(packer-py), qemu-system-x86"
notes:
  - With a local connection and without C(become) the work is done in the Ansible process, and says how far it is.
    Else the module does it, with the platform collection and ansible-core of the platform's home there, and its stages
    are in the result.
"""

EXAMPLES = r"""
- name: An image for web servers
  clachan.platform.image:
    name: web
    recipe:
      packages: [nginx-light]
      users:
        - name: root
          authorized_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0bn3NLFjZ7Hd3p9Ee7vVxkoKrxUShJp9Qv4TzEb7Jk admin"]

- name: The same by Packer
  clachan.platform.image:
    name: web
    builder: packer
    recipe:
      packages: [nginx-light]

- name: A disk of one's own
  clachan.platform.image:
    name: legacy
    source: /srv/disks/legacy.qcow2
"""

RETURN = r"""
image:
  description: The manifest. Empty when the image is absent, and in check mode when it would be built.
  returned: success
  type: dict
  sample:
    name: web
    sha256: 6a3b26f67c7d2c3e1f1a3fb7e5cf0c5a26d1ad4bbd6c9e1d1d8b5a9a44c7e1f0
    size: 190840832
    virtual_size: 3221225472
    disk_format: qcow2
    builder: bootstrap
path:
  description: The disk.
  returned: success
  type: str
stages:
  description: What a build did and how long each stage took, in seconds.
  returned: when it was built
  type: list
  elements: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils.image_building import Failure, Images

OPTIONS = {
    "name": {"type": "str", "required": True},
    "recipe": {
        "type": "dict",
        "options": {
            "base": {"type": "str", "default": "debian-12"},
            "size": {"type": "str", "default": "3GiB"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "roles": {"type": "list", "elements": "str", "default": []},
            "playbooks": {"type": "list", "elements": "str", "default": []},
            "users": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "authorized_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
                    "groups": {"type": "list", "elements": "str", "default": []},
                    "shell": {"type": "str", "default": "/bin/bash"},
                },
            },
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "agent": {"type": "bool", "default": True},
        },
    },
    "source": {"type": "path"},
    "source_format": {"type": "str", "choices": ["qcow2", "raw"]},
    "maximum_size": {"type": "str", "default": "64GiB"},
    "builder": {"type": "str", "choices": ["auto", "bootstrap", "packer"], "default": "auto"},
    "store": {"type": "path"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}
RULES = {
    "mutually_exclusive": [("recipe", "source")],
    "required_if": [("state", "present", ["recipe", "source"], True)],
}


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True, **RULES)
    os.umask(0o022)
    try:
        result = Images(module.params, module.check_mode, lambda text: None, dict(os.environ)).run()
    except Failure as problem:
        module.fail_json(msg=str(problem))
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
