#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: request
short_description: Declare an instance of a software, and wait for it
author:
  - The Clachan maintainers (@clachan)
description:
  - Declares what an instance shall be. Its node fetches that and converges to it; with O(wait), the default, the task
    ends when it has, and says meanwhile how it goes.
  - The declaration is complete. What is not given has its default, also when the instance was declared otherwise
    before. A declaration that is equal to the present one changes nothing.
options:
  path:
    description: The instance, as V(TENANT.NAME).
    type: str
    required: true
  software:
    description: What it runs, as V(NAMESPACE.COLLECTION.ROLE). Required unless O(state=absent).
    type: str
  digest:
    description:
      - Which build of the software. Default is the one that the instance has, else the newest that is registered.
    type: str
  type:
    description: Which of the software's entry points.
    type: str
    default: main
  parameters:
    description:
      - Values of the software's options, by name. They are sent as they are, without coercion or expansion.
      - A value may be a reference to what another instance of the tenant publishes, a mapping of C(from) (its path) and
        C(key).
    type: dict
    default: {}
  placement:
    description: Where it may be placed.
    type: dict
    default: {}
    suboptions:
      labels:
        description: Labels that the node must have.
        type: dict
      node:
        description: The node's name.
        type: str
      spread:
        description: Prefer the nodes that have the fewest instances of the same parent (or tenant).
        type: bool
      inside:
        description: The path of a vm instance, to be placed in that virtual machine.
        type: str
  state:
    description: What the instance shall be.
    type: str
    choices: [started, stopped, absent]
    default: started
  title:
    description: Free text for people.
    type: str
    default: ''
  wait:
    description: Wait until its node has converged to the declaration.
    type: bool
    default: true
  wait_timeout:
    description: How many seconds to wait at most. The instance goes on converging after that.
    type: int
    default: 600
  reveal:
    description:
      - Return published secrets instead of C(<secret>). Needs the permission C(reveal), and each use is an event.
      - The result is then hidden from output, as with C(no_log).
    type: bool
    default: false
extends_documentation_fragment:
  - clachan.platform.controller
  - clachan.platform.attributes
  - clachan.platform.attributes.action_group
seealso:
  - module: clachan.platform.request_info
"""

EXAMPLES = r"""
- name: Run a lake
  clachan.platform.request:
    path: home.lake
    software: clachan.platform.lake
  register: lake

- name: Ship recordings into it
  clachan.platform.request:
    path: home.forwarder
    software: clachan.platform.forwarder
    parameters:
      forwarder_directory: /srv/recordings
      forwarder_url: {from: home.lake, key: url}
      forwarder_token: {from: home.lake, key: token}

- name: Remove it
  clachan.platform.request:
    path: home.forwarder
    state: absent
"""

RETURN = r"""
instance:
  description: The instance as the controller shows it; secrets read C(<secret>). Empty when it is absent.
  returned: success
  type: dict
published:
  description: What the instance publishes, by key. With O(reveal) secrets are there as they are.
  returned: success
  type: dict
  sample: {url: "http://127.12.16.16:20000"}
revision_made:
  description: Whether the declaration made a new revision.
  returned: success
  type: bool
"""

import time

from ansible_collections.clachan.platform.plugins.module_utils.client import segment
from ansible_collections.clachan.platform.plugins.module_utils.controller import Failure, run_module

OPTIONS = {
    "path": {"type": "str", "required": True},
    "software": {"type": "str"},
    "digest": {"type": "str"},
    "type": {"type": "str", "default": "main"},
    "parameters": {"type": "dict", "default": {}},
    "placement": {
        "type": "dict",
        "default": {},
        "options": {
            "labels": {"type": "dict"},
            "node": {"type": "str"},
            "spread": {"type": "bool"},
            "inside": {"type": "str"},
        },
    },
    "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
    "title": {"type": "str", "default": ""},
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "int", "default": 600},
    "reveal": {"type": "bool", "default": False},
}
DECLARED = ("software", "digest", "type", "parameters", "placement", "title")
SHOWN = (*DECLARED, "wanted")
POLL_SECONDS = 25


class Request:
    """The declaration of one instance."""

    def __init__(self, client, params, check_mode, say):
        self._client, self._params, self._check, self._say = client, params, check_mode, say
        self._url = "/instances/%s" % segment(params["path"])

    def run(self):
        before = self._client.find(self._url)
        if self._params["state"] == "absent":
            return self._absent(before)
        return self._present(before)

    def _present(self, before):
        query = {"dry_run": "true"} if self._check else None
        answer = self._client.call("PUT", self._url, body=self._declaration(), query=query)
        after, made = answer.body, answer.headers.get("clachan-revision-made") == "true"
        changed = made or before is None or before["title"] != after["title"]
        result = {"changed": changed, "revision_made": made, "diff": _difference(before, after)}
        if not self._check and self._params["wait"]:
            after = self._await(_settled)
        published = after["published"]
        if self._params["reveal"] and not self._check:
            published = self._client.get(self._url, query={"reveal": "true"})["published"]
        return dict(result, instance=after, published=published)

    def _absent(self, before):
        wanted = before is not None and before["wanted"] != "absent"
        after = dict(before, wanted="absent") if before else None
        if wanted and not self._check:
            self._client.call("DELETE", self._url)
        if before is not None and self._params["wait"] and not self._check:
            self._await(_gone)
        result = {"changed": wanted, "revision_made": wanted, "diff": _difference(before, after)}
        return dict(result, instance={}, published={})

    def _declaration(self):
        given = {key: self._params[key] for key in DECLARED if self._params[key] is not None}
        given["placement"] = {key: value for key, value in given["placement"].items() if value is not None}
        return dict(given, state=self._params["state"])

    def _await(self, done):
        """The instance when `done(view)`; long polls, so that each change is seen at once."""
        began, etag, view, said = time.monotonic(), None, None, None
        while True:
            left = self._params["wait_timeout"] - (time.monotonic() - began)
            answer = self._poll(etag, left)
            if answer is None or answer.status != 304:
                view, etag = (None, None) if answer is None else (answer.body, answer.etag)
                said = self._tell(view, said)
                if done(view):
                    return view
            if left <= 0:
                raise Failure(self._late(view), instance=view)
            if etag is None:
                time.sleep(min(1, left))

    def _poll(self, etag, left):
        wait = max(1, min(POLL_SECONDS, int(left)))
        try:
            return self._client.call("GET", self._url, etag=etag, wait=wait if etag else None)
        except Exception as problem:
            if getattr(problem, "status", None) == 404:
                return None
            raise

    def _tell(self, view, said):
        now = _standing(view)
        if now != said:
            self._say("%s: %s" % (self._params["path"], now))
        return now

    def _late(self, view):
        return "instance %s: %s after %d s, expected %s" % (
            self._params["path"],
            _standing(view),
            self._params["wait_timeout"],
            self._params["state"],
        )


def _settled(view):
    if view is None:
        raise Failure("instance: removed while waiting for it")
    observed = view["observed"]
    return observed["state"] == view["wanted"] and observed["revision"] == view["revision"]


def _gone(view):
    return view is None


def _standing(view):
    if view is None:
        return "absent"
    observed = view["observed"]
    return "%s (%s)" % (observed["state"], observed["message"]) if observed["message"] else observed["state"]


def _difference(before, after):
    return {"before": _shown(before), "after": _shown(after)}


def _shown(view):
    return {} if view is None else {key: view[key] for key in SHOWN}


RULES = {"required_if": [("state", "started", ["software"]), ("state", "stopped", ["software"])]}
make = Request


def main():
    run_module(make, OPTIONS, **RULES)


if __name__ == "__main__":
    main()
