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
  - clachan.platform.lake
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

from ansible_collections.clachan.platform.plugins.module_utils.lake import LAKE, Declared, run_module

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
    """One array of a lake. Its rows are data, so they are not declared."""

    def __init__(self, lake, params, check_mode):
        self._params = params
        self._array = Declared(lake, PATH, {"name": params["name"]}, TOLD, check_mode)

    def run(self):
        before = self._array.find()
        if self._params["state"] == "absent":
            after = self._array.absent(before)
        else:
            after = self._array.present(before, self._declaration())
        difference = self._array.difference(before, after)
        shown = {key: value for key, value in (after or {}).items() if key != "snapshot"}
        return {"changed": difference["before"] != difference["after"], "array": shown, "diff": difference}

    def _declaration(self):
        wanted = {key: self._params[key] for key in ("shape", "dtype", "order", "attrs")}
        if self._params["units"] is not None:
            wanted["attrs"] = dict(wanted["attrs"], units=self._params["units"])
        return {key: value for key, value in wanted.items() if value is not None}


def main():
    run_module(LakeArray, OPTIONS)


if __name__ == "__main__":
    main()
