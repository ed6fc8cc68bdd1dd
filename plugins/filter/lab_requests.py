# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hub requests: a place for each of its users."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lab_requests
short_description: The child requests of a lab's hub
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives the complete set of child requests of an instance of the type C(hub) of the software
    P(clachan.platform.lab#role), by the names of its users. Each is an instance of the software
    P(clachan.platform.lab_user#role) on the hub's node.
  - A limit is the user's own, else that of the user's group, else the hub's.
options:
  _input:
    description: The variable C(clachan_instance) of the hub.
    type: dict
    required: true
  wanted:
    description: The hub's options, without their prefix.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Describe the hub
  clachan.platform.slot:
    requests: "{{ clachan_instance | clachan.platform.lab_requests(wanted) }}"
"""

RETURN = r"""
_value:
  description: Requests by name, for the option RV(ignore:requests) of the module P(clachan.platform.slot#module).
  type: dict
"""

import hashlib
import os

from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.filter.lab_files import by_name, environments_of

LIMITS = {"memory_mib": 768, "cpu_milli": 100, "disk_mib": 64}
"""With the least of each."""
MOST = 200


def lab_requests(instance, wanted):
    groups = by_name("lab_groups", wanted["groups"])
    users = by_name("lab_users", wanted["users"])
    if len(users) > MOST:
        raise AnsibleFilterError("lab_users: %d, expected at most %d" % (len(users), MOST))
    if wanted["lake_token_seconds"] < 5:
        raise AnsibleFilterError("lab_lake_token_seconds: %r, expected at least 5" % (wanted["lake_token_seconds"],))
    back = wanted.get("restore") or {}
    if back and back.get("user") not in users:
        raise AnsibleFilterError("lab_restore user: %.80r, expected one of lab_users" % (back.get("user"),))
    return {name: _request(instance, name, _limits(name, user, groups, wanted), wanted) for name, user in users.items()}


def _limits(name, user, groups, wanted):
    group = user.get("group")
    if group and group not in groups:
        raise AnsibleFilterError("lab_users %s: group %.80r, expected one of lab_groups" % (name, group))
    found = {}
    for key, least in LIMITS.items():
        places = (user, groups.get(group, {}), wanted)
        found[key] = next(place[key] for place in places if place.get(key) is not None)
        if not isinstance(found[key], int) or found[key] < least:
            raise AnsibleFilterError("lab_users %s: %s %r, expected at least %d" % (name, key, found[key], least))
    return found


def _request(instance, name, limits, wanted):
    parameters = {"lab_user_%s" % key: value for key, value in limits.items()}
    parameters["lab_user_name"] = name
    if wanted["lake_url"]:
        parameters.update(lab_user_lake_url=wanted["lake_url"], lab_user_lake_ca=wanted["lake_ca"])
    if wanted.get("backups"):
        parameters["lab_user_backups"] = wanted["backups"]
    for word in ("delete_backups", "delete_disk"):
        if wanted.get(word):
            parameters["lab_user_%s" % word] = True
    if wanted["environments"]:
        parameters["lab_user_environments"] = _environments(instance, wanted)
    back = wanted.get("restore") or {}
    if back.get("user") == name:
        parameters["lab_user_restore"] = {key: back[key] for key in ("backup", "word") if back.get(key)}
    return {
        "software": "clachan.platform.lab_user",
        "parameters": parameters,
        # hub and launcher speak without TLS
        "placement": {"node": instance["node"]},
    }


def _environments(instance, wanted):
    """Their locks are in the hub's slot: with all the hashes they may be longer than a request."""
    slot = os.path.basename(str(instance["slot"]["directory"]))
    return [
        {"name": name, "slot": slot, "sha256": hashlib.sha256(str(one["lock"]).encode()).hexdigest()}
        for name, one in environments_of(wanted).items()
    ]


class FilterModule:
    def filters(self):
        return {"lab_requests": lab_requests}
