#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lake_array
short_description: Have an array in a lake
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes an array of zeros, or the empty one that somebody else will append to, sets its attributes, or deletes it.
  - An array that is there is never resized, converted or emptied. Another dtype, order or row than declared fails.
options:
  url:
    description: The lake, as C(http://HOST:PORT). What the software C(clachan.platform.lake) publishes as its URL.
    type: str
    required: true
  token:
    description: The lake's token. What the software publishes as its token.
    type: str
    required: true
  ca:
    description: File with the certificate of the CA of a lake behind TLS. Default are the system's.
    type: path
  name:
    description: The array's name, 1 to 1024 bytes of printable text.
    type: str
    required: true
  state:
    description: V(absent) deletes it with its data. What was committed before stays in the lake's history.
    type: str
    choices: [present, absent]
    default: present
  shape:
    description:
      - The lengths of its axes, with 0 for the growing one, which is the first, or the last in order V(F).
      - Needed to make it. Of one that is there, the growing axis is data and not compared.
    type: list
    elements: int
  dtype:
    description:
      - What numpy calls its elements, like V(int16) or V(<f4), or a list of fields, each with name and dtype, as in
        C([[time, <i8], [value, <f4, [3]]]).
      - Needed to make it.
    type: raw
  order:
    description: How its bytes lie. Default for a new one is V(C).
    type: str
    choices: [C, F]
  attrs:
    description: Attributes that it has, as JSON values by name. Those that are not named stay as they are.
    type: dict
    default: {}
  units:
    description: The units of its values, which is its attribute C(units).
    type: str
extends_documentation_fragment:
  - clachan.platform.attributes
"""

EXAMPLES = r"""
- name: Have an array for the microphones
  clachan.platform.lake_array:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    name: hall/microphones
    shape: [0, 2]
    dtype: int16
    units: V
    attrs:
      rate: 48000
      channels: [left, right]

- name: Forget it
  clachan.platform.lake_array:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    name: hall/microphones
    state: absent
"""

RETURN = r"""
array:
  description: The array as it is, or would be in check mode; empty when it is absent.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    shape:
      description: The lengths of its axes.
      type: list
      elements: int
    dtype:
      description: Its elements, as numpy describes them in files.
      type: raw
    order:
      description: V(C) or V(F).
      type: str
    bytes:
      description: The size of its data.
      type: int
    attrs:
      description: Its attributes.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.client import ClientError, Refused
from ansible_collections.clachan.platform.plugins.module_utils.lake import LAKE, lake_for

OPTIONS = dict(
    LAKE,
    name={"type": "str", "required": True},
    state={"type": "str", "choices": ["present", "absent"], "default": "present"},
    shape={"type": "list", "elements": "int"},
    dtype={"type": "raw"},
    order={"type": "str", "choices": ["C", "F"]},
    attrs={"type": "dict", "default": {}},
    units={"type": "str"},
)
TOLD = ("name", "shape", "dtype", "order", "attrs")
PATH = "/arrays/meta"


class LakeArray:
    """One array of a lake."""

    def __init__(self, lake, params, check_mode):
        self._lake, self._params, self._check = lake, params, check_mode
        self._query = {"name": params["name"]}

    def run(self):
        before = self._lake.find(PATH, query=self._query)
        after = self.absent(before) if self._params["state"] == "absent" else self.present(before)
        difference = {"before": _told(before), "after": _told(after)}
        shown = {key: value for key, value in (after or {}).items() if key != "snapshot"}
        return {"changed": difference["before"] != difference["after"], "array": shown, "diff": difference}

    def present(self, before):
        """What it is then. The lake says what would become of it, or why not, before it is asked to do it."""
        after = self._declare(dict(self._query, dry_run="1"))
        if not self._check and _told(before) != _told(after):
            after = self._declare(self._query)
        return after

    def absent(self, before):
        if before is not None and not self._check:
            try:
                self._lake.call("DELETE", PATH, query=self._query)
            except Refused as problem:
                if problem.status != 404:  # somebody else was faster
                    raise
        return None

    def _declare(self, query):
        return self._lake.call("PUT", PATH, body=self._declaration(), query=query).body

    def _declaration(self):
        wanted = {key: self._params[key] for key in ("shape", "dtype", "order", "attrs")}
        if self._params["units"] is not None:
            wanted["attrs"] = dict(wanted["attrs"], units=self._params["units"])
        return {key: value for key, value in wanted.items() if value is not None}


def _told(array):
    """What is declared of an array: its rows are data."""
    return {key: array[key] for key in TOLD} if array else {}


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        module.exit_json(**LakeArray(lake_for(module.params), module.params, module.check_mode).run())
    except Refused as problem:
        module.fail_json(msg=str(problem), code=problem.code, field=problem.field, status=problem.status)
    except ClientError as problem:
        module.fail_json(msg=str(problem))


if __name__ == "__main__":
    main()
