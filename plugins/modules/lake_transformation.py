#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lake_transformation
short_description: Have a transformation in a lake
author:
  - The Clachan maintainers (@clachan)
description:
  - Has a function run on what comes into streams or arrays, in order, which writes arrays or streams. How far it is
    and what it wrote are one commit, so nothing is done twice and nothing left out.
  - A declaration is complete. What is not given has its default, whatever the transformation had before, but for
    O(paused).
  - A changed transformation goes on from where it is. C(clachan-lake transformation backfill) has it begin again.
  - What it has written stays when it is removed.
options:
  name:
    description: The transformation's name.
    type: str
    required: true
  state:
    description: V(absent) removes it and forgets how far it was.
    type: str
    choices: [present, absent]
    default: present
  function:
    description:
      - One of V(wav), V(csv), V(jsonl), V(msgpack), V(minmax), or a function of the worker's environment as
        C(package.module:function). With O(code) it is not needed.
      - Needed to make it, or O(code).
    type: str
  code:
    description:
      - Python source with a function C(transform). It runs in the lake's worker process, as the lake's user.
    type: str
  source:
    description: What it reads. Of several conditions all must hold.
    type: dict
    suboptions:
      kind:
        description: Streams or arrays.
        type: str
        choices: [stream, array]
        default: stream
      policy:
        description: Those that this ingestion policy made.
        type: str
      pattern:
        description: Those whose whole name this regular expression of RE2 matches.
        type: str
  output:
    description: Name of what it writes for a source, in which C({name}) stands for the source's. Default is C({name}).
    type: str
  'on':
    description: Whether it runs on each chunk, or on the whole stream at its end. Default is V(chunk).
    type: str
    choices: [chunk, end]
  options:
    description: What the function is told, as JSON values by name.
    type: dict
  from:
    description: Where it begins in what is there already. Default is V(start).
    type: str
    choices: [start, now]
  attempts:
    description: How often a chunk is tried before it is a dead letter.
    type: int
  timeout_seconds:
    description: How long the function may take for one batch.
    type: float
  paused:
    description: Whether it rests. Not given, one that is there stays as it is.
    type: bool
  scheduler:
    description: Address of a Dask cluster that runs the function, as C(tcp://HOST:PORT). Default is the lake's worker.
    type: str
extends_documentation_fragment:
  - clachan.platform.attributes
  - clachan.platform.lake
"""

EXAMPLES = r"""
- name: Make an array of each sensor's lines
  clachan.platform.lake_transformation:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    name: measured
    function: jsonl
    source:
      policy: halls
    output: '{name}'
    options:
      columns:
        - {name: time, dtype: "datetime64[ms]"}
        - {name: value, dtype: float64}

- name: Let it rest
  clachan.platform.lake_transformation:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    name: doubled
    code: "{{ lookup('ansible.builtin.file', 'doubled.py') }}"
    source:
      kind: array
      pattern: halls/.+
    output: doubled/{name}
    paused: true
"""

RETURN = r"""
transformation:
  description: The transformation as it is, or would be in check mode; empty when it is absent.
  returned: success
  type: dict
  contains:
    revision:
      description: How often it was changed, and one.
      type: int
"""

from ansible_collections.clachan.platform.plugins.module_utils.lake import LAKE, Declared, run_module

SOURCE = {
    "kind": {"type": "str", "choices": ["stream", "array"], "default": "stream"},
    "policy": {"type": "str"},
    "pattern": {"type": "str"},
}
DOCUMENT = {
    "function": {"type": "str"},
    "code": {"type": "str"},
    "source": {"type": "dict", "options": SOURCE},
    "output": {"type": "str"},
    "on": {"type": "str", "choices": ["chunk", "end"]},
    "options": {"type": "dict"},
    "from": {"type": "str", "choices": ["start", "now"]},
    "attempts": {"type": "int"},
    "timeout_seconds": {"type": "float"},
    "paused": {"type": "bool"},
    "scheduler": {"type": "str"},
}
OPTIONS = dict(
    LAKE,
    name={"type": "str", "required": True},
    state={"type": "str", "choices": ["present", "absent"], "default": "present"},
    **DOCUMENT,
)
PATH = "/transformations/meta"


class LakeTransformation:
    """One transformation of a lake."""

    def __init__(self, lake, params, check_mode):
        self._params = params
        self._transformation = Declared(lake, PATH, {"name": params["name"]}, tuple(DOCUMENT), check_mode)

    def run(self):
        before = self._transformation.find()
        if self._params["state"] == "absent":
            after = self._transformation.absent(before)
        else:
            after = self._transformation.present(before, self._declaration())
        difference = self._transformation.difference(before, after)
        changed = difference["before"] != difference["after"]
        return {"changed": changed, "transformation": after or {}, "diff": difference}

    def _declaration(self):
        return {key: self._params[key] for key in DOCUMENT if self._params[key] is not None}


def main():
    run_module(LakeTransformation, OPTIONS)


if __name__ == "__main__":
    main()
