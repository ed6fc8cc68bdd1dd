#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_export
short_description: Write an image as a disk for another virtualisation
author:
  - The Clachan maintainers (@clachan)
description:
  - Converts the disk of an image in the machine's store with C(qemu-img), and writes its checksum beside it, as
    C(sha256sum -c) reads it.
  - An export that is there, has its checksum and holds the same content is left as it is.
options:
  image:
    description:
      - The sha256 of the image, which is in the store.
    type: str
    required: true
  dest:
    description:
      - The file to write. C(<dest>.sha256) is its checksum.
    type: path
    required: true
  format:
    description:
      - How.
    type: str
    choices: [raw, qcow2, vmdk, vdi]
    default: qcow2
  store:
    description:
      - The store. Default is C(images) in O(home).
    type: path
  home:
    description:
      - The platform's state directory.
      - Default is E(CLACHAN_HOME), else C(/var/lib/clachan) for root, else C(~/.local/share/clachan).
    type: path
extends_documentation_fragment:
  - clachan.platform.attributes
"""

EXAMPLES = r"""
- name: Write an image for VMware
  clachan.platform.image_export:
    image: "{{ built.sha256 }}"
    format: vmdk
    dest: /srv/export/debian.vmdk
"""

RETURN = r"""
checksum:
  description: The sha256 of the written file.
  returned: when there is one
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.disk_image import (
    EXPORTS,
    DiskImageError,
    export,
    exported,
)
from ansible_collections.clachan.platform.plugins.module_utils.home import home
from ansible_collections.clachan.platform.plugins.module_utils.image_store import ImageStore, ImageStoreError


def run(params, check_mode):
    store = ImageStore(params["store"] or os.path.join(home(params["home"]), "images"))
    disk, dest = store.disk(params["image"]), params["dest"]
    disk_format = store.get(params["image"])["disk_format"]
    before = exported(disk, disk_format, dest, params["format"])
    after = before
    if before is None and not check_mode:
        after = export(disk, disk_format, dest, params["format"])
    shown = [{"path": dest, "checksum": one} if one else {} for one in (before, after)]
    result = {"changed": before is None, "diff": {"before": shown[0], "after": shown[1]}}
    return dict(result, checksum=after) if after else result


def main():
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "format": {"type": "str", "choices": list(EXPORTS), "default": "qcow2"},
            "store": {"type": "path"},
            "home": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module.params, module.check_mode))
    except (DiskImageError, ImageStoreError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
