#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lake_stream
short_description: Have a stream in a lake
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes an empty stream that somebody else will write to, sets its attributes, forgets its beginning, or deletes it.
  - The bytes of a stream are data. What came does not make it differ from its declaration.
options:
  name:
    description: The stream's name, 1 to 1024 bytes of printable text.
    type: str
    required: true
  state:
    description: V(absent) deletes it with its data.
    type: str
    choices: [present, absent]
    default: present
  policy:
    description:
      - The ingestion policy that it belongs to, whose data it takes. Default for a new one is V(raw). Another one than
        that of a stream that is there fails.
    type: str
  attrs:
    description: Attributes that it has, as JSON values by name. Those that are not named stay as they are.
    type: dict
    default: {}
  keep_from:
    description:
      - Whole chunks in front of this position are forgotten. Positions of what stays do not change. Where none lies in
        front of it nothing changes.
    type: int
extends_documentation_fragment:
  - clachan.platform.attributes
  - clachan.platform.lake
"""

EXAMPLES = r"""
- name: Say what the stream is about
  clachan.platform.lake_stream:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    name: halls/east/temperature
    attrs:
      title: Temperature in the east hall
      tags: [halls, temperature]

- name: Forget the first gigabyte
  clachan.platform.lake_stream:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    name: halls/east/temperature
    keep_from: 1073741824
"""

RETURN = r"""
stream:
  description: The stream as it is, or would be in check mode; empty when it is absent.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    policy:
      description: The ingestion policy that it belongs to.
      type: str
    size:
      description: The position behind its last byte.
      type: int
    start:
      description: The position of the first byte that is kept.
      type: int
    final:
      description: Whether its sender has ended it.
      type: bool
    attrs:
      description: Its attributes.
      type: dict
"""

from ansible_collections.clachan.platform.plugins.module_utils.lake import LAKE, Declared, run_module

OPTIONS = dict(
    LAKE,
    name={"type": "str", "required": True},
    state={"type": "str", "choices": ["present", "absent"], "default": "present"},
    policy={"type": "str"},
    attrs={"type": "dict", "default": {}},
    keep_from={"type": "int"},
)
TOLD = ("name", "policy", "start", "attrs")
PATH = "/streams/meta"
TRUNCATE = "/streams/truncate"


class LakeStream:
    """One stream of a lake."""

    def __init__(self, lake, params, check_mode):
        self._lake, self._params, self._check = lake, params, check_mode
        self._query = {"name": params["name"]}
        self._stream = Declared(lake, PATH, self._query, TOLD, check_mode)

    def run(self):
        before = self._stream.find()
        if self._params["state"] == "absent":
            after = self._stream.absent(before)
        else:
            after = self._truncated(self._stream.present(before, self._declaration()), before)
        difference = self._stream.difference(before, after)
        return {"changed": difference["before"] != difference["after"], "stream": after or {}, "diff": difference}

    def _declaration(self):
        wanted = {key: self._params[key] for key in ("policy", "attrs")}
        return {key: value for key, value in wanted.items() if value is not None}

    def _truncated(self, stream, before):
        """With the beginning that it has then. One that is not there yet has nothing to forget."""
        position = self._params["keep_from"]
        if position is None or before is None or position <= stream["start"]:
            return stream
        query = dict(self._query, before=position)
        if self._check:
            query["dry_run"] = "1"
        return dict(stream, start=self._lake.call("POST", TRUNCATE, query=query).body["start"])


def main():
    run_module(LakeStream, OPTIONS)


if __name__ == "__main__":
    main()
