#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lake_token
short_description: Have a token of a lake with scopes of its own, or none
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes a token that may do no more than its O(scopes), and writes it into a file, which only its owner can read. It
    goes through no variable, and the lake keeps only its digest.
  - There is at most one valid token with a O(note). While it has the scopes that are declared, and the file is there,
    nothing is changed. Else a new one is made, and the former are revoked.
options:
  note:
    description: What the token is for. It says which one is meant.
    type: str
    required: true
  state:
    description: V(absent) revokes what there is with this note. The next request with it is refused.
    type: str
    choices: [present, absent]
    default: present
  scopes:
    description:
      - What it may do, of C(read), C(write), C(compute), C(admin), C(ingest:POLICY), C(ingest:*), C(view:stream/NAME)
        and C(view:array/NAME).
      - Needed with O(state=present).
    type: list
    elements: str
  seconds:
    description: How long a new one is valid. Default is until it is revoked.
    type: int
  same_content_seconds:
    description:
      - For so long equal bytes without a chunk's id, sent with it to one stream, are taken for a repeat. For one sender
        whose events carry their times.
    type: float
  dest:
    description:
      - File for the token, on the machine where the module runs, mode 0600. Needed with O(state=present).
    type: path
extends_documentation_fragment:
  - clachan.platform.attributes
  - clachan.platform.lake
"""

EXAMPLES = r"""
- name: Have a token that fluentd sends with
  clachan.platform.lake_token:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    note: fluentd of the halls
    scopes: ['ingest:halls']
    same_content_seconds: 600
    dest: /etc/fluent/lake.token

- name: Revoke it
  clachan.platform.lake_token:
    url: "{{ lake.published.url }}"
    token: "{{ lake.published.token }}"
    note: fluentd of the halls
    state: absent
"""

RETURN = r"""
id:
  description: The public id of the valid token.
  returned: when there is one
  type: str
revoked:
  description: The ids of those that were revoked.
  returned: success
  type: list
  elements: str
"""

import os
import tempfile
import time

from ansible_collections.clachan.platform.plugins.module_utils.client import ClientError
from ansible_collections.clachan.platform.plugins.module_utils.lake import LAKE, run_module

OPTIONS = dict(
    LAKE,
    note={"type": "str", "required": True},
    state={"type": "str", "choices": ["present", "absent"], "default": "present"},
    scopes={"type": "list", "elements": "str"},
    seconds={"type": "int"},
    same_content_seconds={"type": "float"},
    dest={"type": "path"},
)
PATH = "/tokens"
ONE = "/tokens/meta"


class LakeToken:
    """The one valid token of a note."""

    def __init__(self, lake, params, check_mode):
        self._lake, self._params, self._check = lake, params, check_mode

    def run(self):
        for key in ("scopes", "dest") if self._params["state"] == "present" else ():
            if not self._params[key]:
                raise ClientError("option %s: missing, expected one with state present" % key)
        valid = [one for one in self._lake.items(PATH) if one["note"] == self._params["note"] and _valid(one)]
        if self._params["state"] == "absent":
            return self._result(valid, None, valid)
        kept = next((one for one in valid if self._fits(one)), None)
        if kept is not None and os.path.exists(self._params["dest"]):
            others = [one for one in valid if one is not kept]
            return self._result(valid, kept, others)
        return self._result(valid, self._make(), valid)

    def _fits(self, token):
        window = self._params["same_content_seconds"]
        return sorted(token["scopes"]) == sorted(self._params["scopes"]) and (
            window is None or token["same_content_seconds"] == window
        )

    def _make(self):
        """The new one, whose text is in the file then; the former are revoked only after that."""
        asked = {key: self._params[key] for key in ("note", "scopes", "seconds", "same_content_seconds")}
        made = {"scopes": sorted(asked["scopes"])}
        if not self._check:
            answer = self._lake.call("POST", PATH, body={key: it for key, it in asked.items() if it is not None}).body
            made["id"] = answer["id"]
            try:
                _write(self._params["dest"], answer["token"])
            except OSError as problem:
                self._revoke(made)  # nobody has it
                raise ClientError(
                    "dest %s: %s, expected a file that can be written" % (self._params["dest"], problem.strerror)
                ) from None
        return made

    def _result(self, before, after, revoked):
        if not self._check:
            for token in revoked:
                self._revoke(token)
        made = after is not None and after not in before
        ids = {"id": after["id"]} if after and "id" in after else {}
        difference = {
            "before": {"tokens": [_told(one) for one in before]},
            "after": {"tokens": [_told(after)] if after else []},
        }
        return dict(ids, changed=made or bool(revoked), revoked=[token["id"] for token in revoked], diff=difference)

    def _revoke(self, token):
        self._lake.call("DELETE", ONE, query={"id": token["id"]})


def _valid(token):
    return token["revoked"] is None and (token["expires"] is None or token["expires"] > time.time() * 1000)


def _told(token):
    return {"scopes": sorted(token["scopes"])}


def _write(path, token):
    """Replace the file as a whole, readable by its owner only from its first byte on."""
    handle, draft = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".lake-token-")
    try:
        with os.fdopen(handle, "w") as out:
            out.write(token + "\n")
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise


def main():
    run_module(LakeToken, OPTIONS)


if __name__ == "__main__":
    main()
