# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in the slot of a hub's user: what the launcher works with, the settings of the server, the kernels."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lab_user_files
short_description: The files of the slot of a hub's user
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives the files of an instance of the software P(clachan.platform.lab_user#role), for the option RV(ignore:files) of
    the module P(clachan.platform.slot#module).
options:
  _input:
    description: The variable C(clachan_instance) of the user.
    type: dict
    required: true
  wanted:
    description:
      - The user's options, without their prefix, C(disk), where the user's disk is mounted, and C(held), as the module
        P(clachan.platform.lab_user#module) returns it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Describe the user's place
  clachan.platform.slot:
    files: "{{ clachan_instance | clachan.platform.lab_user_files(wanted) }}"
"""

RETURN = r"""
_value:
  description: Files by their path in the slot.
  type: dict
"""

import json
import os

from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.filter.lab_files import (
    NOTEBOOKS,
    SCIENCE,
    environments_of,
    kernel_of,
    server_settings,
)
from ansible_collections.clachan.platform.plugins.module_utils.names import is_name

SERVER_MIB = 256
"""Of the user's memory the part that is left to the server, so that a kernel's limit is met before that of all."""
EXAMPLES_OF = "../../lab/files/notebooks"


def lab_user_files(instance, wanted):
    if not is_name(wanted["name"]):
        raise AnsibleFilterError("lab_user_name: %r, expected a name ([a-z][a-z0-9_]{0,30})" % (wanted["name"],))
    slot = str(instance["slot"]["directory"])
    platform = os.path.dirname(os.path.dirname(slot))
    home = "/home/%s" % wanted["name"]
    pythons = {SCIENCE: platform + "/envs/science/bin/python"}
    for name in environments_of(wanted, "lab_user_environments"):
        pythons[name] = "%s/environments/%s/bin/python" % (wanted["disk"], name)
    kernel = dict(wanted, memory_mib=int(wanted["memory_mib"]) - SERVER_MIB)
    places = {
        "lake_token": slot + "/var/lake-token" if wanted["lake_url"] else "",
        "lake_ca": slot + "/etc/lake.pem" if wanted["lake_ca"] else "",
        "cache": home + "/.cache",
    }
    files = {
        "etc/secret": {"content": "%s\n" % wanted["secret"]},
        "etc/build": {"content": "%s\n" % instance["digest"]},
        "etc/lake.pem": {"content": str(wanted["lake_ca"])},
        "etc/launcher.py": {"copy": "launcher.py"},
        "etc/try_kernel.py": {"copy": "try_kernel.py"},
        "etc/launcher.json": _json(_launcher(instance, wanted, platform, home)),
        "etc/jupyter/migrated": {"content": "nothing\n"},
        "etc/jupyter/jupyter_server_config.json": _json(_server(home, sorted(pythons))),
    }
    for name, python in pythons.items():
        files["etc/data/kernels/%s/kernel.json" % name] = _json(kernel_of(name, python, instance, kernel, places))
    for name in NOTEBOOKS:
        files["etc/examples/%s.ipynb" % name] = {"copy": "%s/%s.ipynb" % (EXAMPLES_OF, name)}
    return files


def _launcher(instance, wanted, platform, home):
    python = platform + "/envs/lab/bin/python"
    return {
        "name": str(wanted["name"]),
        "home": home,
        "disk": str(wanted["disk"]),
        "platform": platform,
        "address": str(instance["slot"]["addresses"]["ipv4"]),
        "port": int(instance["slot"]["ports"]["first"]),
        "held": {str(name): str(path) for name, path in wanted["held"].items()},
        "python": python,
        "server": [python, "-I", "-m", "jupyterhub.singleuser"],
    }


def _server(home, kernels):
    settings = server_settings(home, kernels)
    settings["LabApp"].update(
        user_settings_dir=home + "/.jupyter/lab/settings", workspaces_dir=home + "/.jupyter/lab/workspaces"
    )
    settings["KernelManager"] = {"transport": "ipc"}
    return settings


def _json(document):
    return {"content": json.dumps(document, indent=2, sort_keys=True) + "\n"}


class FilterModule:
    def filters(self):
        return {"lab_user_files": lab_user_files}
