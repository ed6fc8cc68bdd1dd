#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_fetch
short_description: Have images in the machine's store
author:
  - The Clachan maintainers (@clachan)
description:
  - Fetches the disk images that the machine's store lacks, each known by the sha256 of its disk, from other stores in
    turn and last from the controller.
  - A cut or a kill is gone on with by the next run, also from another source. What has another sha256, or is no disk
    that stands alone, does not come into the store.
options:
  images:
    description:
      - The sha256 of each image.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(absent) removes them from the store. Do it only when no machine's disk is based on them.
    type: str
    choices: [present, absent]
    default: present
  store:
    description:
      - The store. Default is C(images) in O(home).
    type: path
  sources:
    description:
      - Stores of other nodes, the nearest first.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description: What the store publishes as its URL.
        type: str
        required: true
      token:
        description: What it publishes as its token.
        type: str
  maximum_gib:
    description:
      - The largest image that is taken, in GiB, as a file and as the disk that a machine sees.
    type: int
    default: 64
  url:
    description:
      - The controller, as C(https://HOST:PORT).
      - Default is E(CLACHAN_URL), else the one that this machine is a node of and speaks to with its certificate, else
        the one in the credentials of O(home).
    type: str
  token:
    description:
      - Who asks. Default is E(CLACHAN_TOKEN), else as O(url).
    type: str
  ca:
    description: File with the certificate of the controller's CA. Default is E(CLACHAN_CA), else as O(url).
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
- name: Have an image in this machine's store, from the controller
  clachan.platform.image_fetch:
    images:
      - 1f9a2c0d5e6b7a8899aabbccddeeff00112233445566778899aabbccddeeff00

- name: Have it from a store nearby, and where that does not have it, from the controller
  clachan.platform.image_fetch:
    images: "{{ wanted_images }}"
    sources:
      - url: http://10.0.16.16:20000
        token: "{{ store_token }}"
"""

RETURN = r"""
images:
  description: The images that are in the store, or were before they were removed.
  returned: success
  type: list
  elements: dict
  contains:
    sha256:
      description: The sha256 of the disk.
      returned: success
      type: str
    name:
      description: The name that its recipe has.
      returned: success
      type: str
    path:
      description: The disk's file.
      returned: success
      type: str
    disk_format:
      description: V(qcow2) or V(raw).
      returned: success
      type: str
    virtual_size:
      description: Bytes of the disk that a machine sees.
      returned: success
      type: int
    size:
      description: Bytes of the file.
      returned: success
      type: int
attempts:
  description: What went wrong on the way, and was tried again.
  returned: success
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.home import home
from ansible_collections.clachan.platform.plugins.module_utils.image_store import ImageStore, ImageStoreError
from ansible_collections.clachan.platform.plugins.module_utils.image_transfer import (
    Source,
    TransferError,
    controller_source,
    fetch,
)

OPTIONS = {
    "images": {"type": "list", "elements": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "store": {"type": "path"},
    "sources": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "url": {"type": "str", "required": True},
            "token": {"type": "str", "no_log": True},
        },
    },
    "maximum_gib": {"type": "int", "default": 64},
    "url": {"type": "str"},
    "token": {"type": "str", "no_log": True},
    "ca": {"type": "path"},
    "home": {"type": "path"},
}
RULES = {}
ERRORS = (TransferError, ImageStoreError, OSError)
SHOWN = ("sha256", "name", "disk_format", "virtual_size", "size")


class ImageFetch:
    """The images of a task, in one store."""

    def __init__(self, params, check_mode):
        self._params, self._check_mode = params, check_mode
        self._store = ImageStore(params["store"] or os.path.join(home(params["home"]), "images"))
        self._wanted = list(dict.fromkeys(params["images"]))
        self._attempts = []

    def run(self):
        before = {sha256: self._store.get(sha256) for sha256 in self._wanted}
        present = self._params["state"] == "present"
        different = [sha256 for sha256 in self._wanted if bool(before[sha256]) != present]
        if different and not self._check_mode:
            for sha256 in different:
                self._fetch(sha256) if present else self._store.remove(sha256)
        there = [sha256 for sha256 in self._wanted if before[sha256]]
        after = self._wanted if present else []
        found = [self._show(sha256, before[sha256] or self._store.get(sha256)) for sha256 in self._wanted]
        return {
            "changed": bool(different),
            "images": [one for one in found if one],
            "attempts": self._attempts,
            "diff": {"before": {"images": there}, "after": {"images": after}},
        }

    def _fetch(self, sha256):
        fetch(self._store, sha256, self._sources(), self._params["maximum_gib"] << 30, self._attempts.append)

    def _sources(self):
        """In turn; where the controller is need not be known before it is asked."""
        for source in self._params["sources"]:
            yield Source(source["url"], source["token"])
        yield controller_source(*(self._params[key] for key in ("home", "url", "token", "ca")))

    def _show(self, sha256, manifest):
        if not manifest:
            return None
        path = os.path.join(self._store.folder(sha256), "disk." + manifest["disk_format"])
        return dict({key: manifest[key] for key in SHOWN}, path=path)


def work(params, check):
    """The module's result; raises one of ERRORS."""
    return ImageFetch(params, check).run()


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True, **RULES)
    try:
        module.exit_json(**work(module.params, module.check_mode))
    except ERRORS as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
