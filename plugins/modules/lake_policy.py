#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lake_policy
short_description: Have an ingestion policy in a lake
author:
  - The Clachan maintainers (@clachan)
description:
  - Says what becomes of the data that come to C(POST /ingest/NAME?reference=TAG), by the tag that they come with.
  - A declaration is complete. What is not given has its default, whatever the policy had before.
  - What a policy has made stays as it is when the policy is changed or removed.
options:
  name:
    description: The policy's name, 1 to 100 letters, digits and C(_), C(.), C(-). It stands in the URL.
    type: str
    required: true
  state:
    description: V(absent) removes it. Senders then get 404.
    type: str
    choices: [present, absent]
    default: present
  title:
    description: Text for people.
    type: str
  pattern:
    description:
      - Regular expression of RE2 that must match a whole tag. Its named groups are parts of the tag.
      - Without it every tag is matched.
    type: str
  into:
    description: What the data become. Default is V(stream).
    type: str
    choices: [stream, array]
  target:
    description:
      - Name of that stream or array, in which C({tag}) and C({GROUP}) stand for the tag and its parts. It is made when
        the first data come. Default is C({tag}).
    type: str
  attrs:
    description: Attributes that it is given when it is made. Texts in them may have such parts too.
    type: dict
  dtype:
    description:
      - Of an array, what numpy calls its elements, or a list of fields, each with name and dtype.
    type: raw
  row_shape:
    description: Of an array, the shape of a row. Default is a single value.
    type: list
    elements: int
  keep_seconds:
    description: Of a stream, chunks that are older are forgotten. Default is to keep all.
    type: int
  keep_bytes:
    description: Of a stream, how many of the latest bytes are kept, by whole chunks. Default is to keep all.
    type: int
  quota_bytes:
    description: How much all that the policy made may hold together. More is refused with 507.
    type: int
  ids_seconds:
    description: How long ids of chunks are recognised at least. Default is for ever.
    type: int
  unmatched:
    description: What becomes of a tag that O(pattern) does not match. Default is V(refuse), which answers 400.
    type: str
    choices: [refuse, dead]
extends_documentation_fragment:
  - clachan.platform.attributes
  - clachan.platform.lake
"""

EXAMPLES = r"""
- name: Take in what the halls measure, each sensor in a stream of its own, for a month
  clachan.platform.lake_policy:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    name: halls
    pattern: 'halls\.(?P<hall>[a-z]+)\.(?P<sensor>\w+)'
    target: halls/{hall}/{sensor}
    attrs:
      hall: '{hall}'
      tags: [halls]
    keep_seconds: 2592000
    unmatched: dead

- name: Take rows straight into an array
  clachan.platform.lake_policy:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    name: counts
    into: array
    dtype: [[time, <i8], [count, <i4]]
"""

RETURN = r"""
policy:
  description: The policy as it is, or would be in check mode; empty when it is absent.
  returned: success
  type: dict
  contains:
    policy:
      description: Its name.
      type: str
    name:
      description: What O(target) is called in the lake.
      type: str
    revision:
      description: How often it was changed, and one.
      type: int
"""

from ansible_collections.clachan.platform.plugins.module_utils.lake import LAKE, Declared, run_module

DOCUMENT = {
    "title": {"type": "str"},
    "pattern": {"type": "str"},
    "into": {"type": "str", "choices": ["stream", "array"]},
    "target": {"type": "str"},
    "attrs": {"type": "dict"},
    "dtype": {"type": "raw"},
    "row_shape": {"type": "list", "elements": "int"},
    "keep_seconds": {"type": "int"},
    "keep_bytes": {"type": "int"},
    "quota_bytes": {"type": "int"},
    "ids_seconds": {"type": "int"},
    "unmatched": {"type": "str", "choices": ["refuse", "dead"]},
}
OPTIONS = dict(
    LAKE,
    name={"type": "str", "required": True},
    state={"type": "str", "choices": ["present", "absent"], "default": "present"},
    **DOCUMENT,
)
NAMES = {"target": "name"}
"""Options that the lake knows by another name: an option `name` is the policy's own."""
TOLD = tuple(NAMES.get(key, key) for key in DOCUMENT)
PATH = "/policies/meta"


class LakePolicy:
    """One ingestion policy of a lake."""

    def __init__(self, lake, params, check_mode):
        self._params = params
        self._policy = Declared(lake, PATH, {"name": params["name"]}, TOLD, check_mode)

    def run(self):
        before = self._policy.find()
        if self._params["state"] == "absent":
            after = self._policy.absent(before)
        else:
            after = self._policy.present(before, self._declaration())
        difference = self._policy.difference(before, after)
        return {"changed": difference["before"] != difference["after"], "policy": after or {}, "diff": difference}

    def _declaration(self):
        given = {NAMES.get(key, key): self._params[key] for key in DOCUMENT}
        return {key: value for key, value in given.items() if value is not None}


def main():
    run_module(LakePolicy, OPTIONS)


if __name__ == "__main__":
    main()
