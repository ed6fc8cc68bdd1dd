# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in the slot of a hub: its settings, its programs, what it knows of its users' places."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lab_hub_files
short_description: The files of a hub's slot
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives the files of an instance of the type C(hub) of the software P(clachan.platform.lab#role), for the option
    RV(ignore:files) of the module P(clachan.platform.slot#module).
  - What its own programs know one another by is made of one secret.
options:
  _input:
    description: The variable C(clachan_instance) of the hub.
    type: dict
    required: true
  wanted:
    description: The hub's options, without their prefix. Those about the lake may be empty.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Describe the hub
  clachan.platform.slot:
    files: "{{ clachan_instance | clachan.platform.lab_hub_files(wanted) }}"
"""

RETURN = r"""
_value:
  description: Files by their path in the slot.
  type: dict
"""

import hashlib
import json

from ansible_collections.clachan.platform.plugins.filter.lab_files import lock_files

PROGRAMS = (
    "culler.py",
    "hub_lake.py",
    "hub_login.py",
    "hub_places.py",
    "hub_spawner.py",
    "jupyterhub_config.py",
    "proxy.py",
)
TOLD = ("url", "secret", "limits", "warning")


def lab_hub_files(instance, wanted):
    slot = str(instance["slot"]["directory"])
    files = {
        "etc/build": _content("%s\n" % instance["digest"]),
        "etc/proxy-token": _content(derived(wanted["token"], "proxy") + "\n"),
        "etc/culler-token": _content(derived(wanted["token"], "culler") + "\n"),
        "etc/lake-token": _content("%s\n" % wanted["lake_token"]),
        "etc/controller.pem": _content(wanted["controller_ca"]),
        "etc/lake.pem": _content(wanted["lake_ca"]),
        "etc/hub.json": _json(_hub(instance, slot, wanted)),
        "etc/proxy.json": _json(_proxy(instance, slot, wanted)),
        "etc/users.json": _json(_users(instance, wanted)),
    }
    for name in PROGRAMS:
        files["etc/hub/%s" % name] = {"copy": "hub/%s" % name}
    files.update(lock_files(wanted))
    return files


def derived(secret, what):
    """A secret for one purpose, from which the others cannot be told."""
    return hashlib.sha256(("%s of %s" % (what, secret)).encode()).hexdigest()


def _hub(instance, slot, wanted):
    place = instance["slot"]
    return {
        "address": str(place["addresses"]["ipv4"]),
        "port": int(place["ports"]["first"]),
        "scheme": "https" if wanted["tls"] else "http",
        "tenant": str(instance["tenant"]),
        "idle_seconds": int(wanted["idle_seconds"]),
        "controller": {
            "url": str(wanted["controller_url"]),
            "ca": slot + "/etc/controller.pem" if wanted["controller_ca"] else "",
        },
        "lake": {
            "url": str(wanted["lake_url"]).rstrip("/"),
            "ca": slot + "/etc/lake.pem" if wanted["lake_ca"] else "",
            "scopes": [str(scope) for scope in wanted["lake_scopes"]],
            "seconds": int(wanted["lake_token_seconds"]),
            "note": "lab %s" % instance["path"],
        },
    }


def _proxy(instance, slot, wanted):
    place = instance["slot"]
    return {
        "address": str(place["addresses"]["ipv4"]),
        "port": int(place["ports"]["first"]),
        "api_port": int(place["ports"]["first"]) + 2,
        "certificate": slot + "/var/certificate.pem" if wanted["tls"] else "",
        "key": slot + "/var/key.pem" if wanted["tls"] else "",
    }


def _users(instance, wanted):
    """All that are wanted; of one whose place is not made yet nothing is known."""
    found = {}
    for user in wanted["users"]:
        said = instance["children"].get(user["name"], {}).get("published", {})
        found[str(user["name"])] = {key: str(said[key]) for key in TOLD if key in said}
    return found


def _content(text):
    return {"content": str(text)}


def _json(document):
    return _content(json.dumps(document, indent=2, sort_keys=True) + "\n")


class FilterModule:
    def filters(self):
        return {"lab_hub_files": lab_hub_files}
