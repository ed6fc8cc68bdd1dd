# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of clachan.platform.lab_token: asks the lake within the Ansible process, which is root's, and writes what
it gets into the slot. So the long-lived token is in no process and no file that the slot's user can read.
"""

from __future__ import annotations

import json
import os
import time

from ansible.plugins.action import ActionBase

from ansible_collections.clachan.platform.plugins.module_utils.client import ClientError
from ansible_collections.clachan.platform.plugins.module_utils.lake import lake_for
from ansible_collections.clachan.platform.plugins.module_utils.slot_arguments import make_plan
from ansible_collections.clachan.platform.plugins.module_utils.slot_files import SlotError
from ansible_collections.clachan.platform.plugins.module_utils.slot_plan import apply_plan

OPTIONS = frozenset(("url", "token", "ca", "scopes", "seconds"))
FILE, ABOUT = "etc/lake-token", "etc/lake-token.json"


class ActionModule(ActionBase):
    _supports_check_mode = True
    _VALID_ARGS = OPTIONS

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        slot = task_vars["clachan_instance"]["slot"]
        if self._connection.transport != "local":
            return dict(result, changed=False, msg="left to the node's own agent, which reaches the lake")
        asked = {key: self._task.args.get(key) for key in OPTIONS}
        about = {
            "url": str(asked["url"]),
            "scopes": sorted(str(scope) for scope in asked["scopes"]),
            "seconds": int(asked["seconds"]),
        }
        if _lasts(str(slot["directory"]), about):
            return dict(result, changed=False)
        if self._task.check_mode:
            return dict(result, changed=True)
        try:
            made = _make(asked, about, "lab %s" % task_vars["clachan_instance"]["path"])
            return dict(result, **_write(slot, made, about))
        except ClientError as problem:
            return dict(result, **_without(str(slot["directory"]), problem))
        except SlotError as problem:
            return dict(result, failed=True, msg=str(problem))


def _lasts(directory, about):
    """Whether the token that is there was made for the same, and half of its life is not over."""
    try:
        with open(os.path.join(directory, ABOUT), encoding="utf-8") as file:
            known = json.load(file)
        age = time.time() - os.stat(os.path.join(directory, FILE)).st_mtime
    except (OSError, ValueError):
        return False
    return known == about and 0 <= age < renewed_after(about["seconds"])


def renewed_after(seconds):
    """When a token is to be renewed. The promise of its age cannot say more than an hour."""
    return min(seconds / 2, 3600)


def _make(asked, about, note):
    lake = lake_for({"url": about["url"], "token": str(asked["token"]), "ca": asked["ca"] or None})
    body = {"scopes": about["scopes"], "seconds": about["seconds"], "note": note}
    return str(lake.call("POST", "/tokens", body=body).body["token"])


def _write(slot, made, about):
    """The token first: killed in between, it is made again."""
    user, directory = str(slot["user"]), str(slot["directory"])
    nothing = dict.fromkeys(("services", "promises", "requests", "publish"))
    for path, text in ((FILE, made + "\n"), (ABOUT, json.dumps(about, sort_keys=True) + "\n")):
        files = {path: {"content": text.encode(), "mode": None}}
        apply_plan(make_plan(dict(nothing, files=files, directories=[]), directory, user), False)
    return {"changed": True}


def _without(directory, problem):
    """A lake that is away does not keep the lab from running: a promise says so, and the next pass asks again."""
    message = "the lake made no token: %s" % problem
    if os.path.exists(os.path.join(directory, FILE)) or getattr(problem, "status", None) not in (401, 403):
        return {"changed": False, "warnings": [message]}
    return {"failed": True, "msg": "%s; expected lab_lake_token to be one that may make others (scope admin)" % message}
