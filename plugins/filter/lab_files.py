# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in the slot of a lab: the settings of its server, its kernels, their lock files, what opens the lake."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lab_files
short_description: The files of a lab's slot
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives the files of an instance of the software P(clachan.platform.lab#role), for the option RV(ignore:files) of the
    module P(clachan.platform.slot#module).
  - The server listens at the slot's address and port, serves the slot's own files, and starts no kernel but C(science)
    and those of the environments.
options:
  _input:
    description: The variable C(clachan_instance) of the lab.
    type: dict
    required: true
  wanted:
    description: The lab's options, without their prefix. Those about the lake may be empty.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Describe the lab
  clachan.platform.slot:
    files: "{{ clachan_instance | clachan.platform.lab_files(wanted) }}"
"""

RETURN = r"""
_value:
  description: Files by their path in the slot.
  type: dict
"""

import json
import os

from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.module_utils.names import is_name

SCIENCE = "science"
TITLES = {SCIENCE: "Science"}
CHECK = "etc/check.py"
EXTENSION = "--ext=clachan_lake.notebook"
FILES = "var/home"
NOTEBOOKS = ("waveform", "consumption", "fitting", "away", "time_travel", "page")
SOCKET_PATH = 107
SOCKET_NAME = len("/var/run/kernel-%s-ipc-1" % ("-" * 36))
NOTIFICATIONS = "@jupyterlab/apputils-extension:notification"
OVERRIDES = {NOTIFICATIONS: {"fetchNews": "false", "checkForUpdates": False}}
"""The server fetches no news; without these the page would ask whether to."""
UNUSED = ("jupyter_lsp", "jupyter_server_terminals", "notebook_shim")
"""Extensions of the server that would cost memory for nothing, and the terminals, see below."""


def lab_files(instance, wanted):
    slot = str(instance["slot"]["directory"])
    home = os.path.dirname(os.path.dirname(slot))
    pythons = {SCIENCE: home + "/envs/science/bin/python"}
    for name in environments_of(wanted):
        pythons[name] = "%s/var/environments/%s/bin/python" % (slot, name)
    places = {
        "lake_token": slot + "/etc/lake-token" if wanted["lake_token"] else "",
        "lake_ca": slot + "/etc/lake.pem" if wanted["lake_ca"] else "",
        "cache": slot + "/var/cache",
    }
    files = {
        "etc/token": _content(str(wanted["token"])),
        "etc/certificate.pem": _content(str(wanted["certificate"])),
        "etc/lake.pem": _content(str(wanted["lake_ca"])),
        "etc/build": _content("%s\n" % instance["digest"]),
        CHECK: {"copy": "check.py"},
        # without it Jupyter would look for settings of 2015 to take over, and write this file where it may not
        "etc/jupyter/migrated": _content("nothing\n"),
        "etc/jupyter/labconfig/default_setting_overrides.json": _json(OVERRIDES),
        "etc/jupyter/jupyter_server_config.json": _json(_server(instance, slot, sorted(pythons), wanted)),
    }
    if not wanted["lake_token_seconds"]:
        files["etc/lake-token"] = _content("%s\n" % wanted["lake_token"])
    for name, python in pythons.items():
        files["etc/data/kernels/%s/kernel.json" % name] = _json(kernel_of(name, python, instance, wanted, places))
    files.update(lock_files(wanted))
    for name in NOTEBOOKS:
        # its owner cannot write to it, so Jupyter says so before one has worked in it, and offers to save it elsewhere
        files["%s/examples/%s.ipynb" % (FILES, name)] = {"copy": "notebooks/%s.ipynb" % name, "mode": "0440"}
    return files


def by_name(option, entries, taken=()):
    """The entries by their names, each a name that no other has."""
    found = {}
    for entry in entries:
        name = entry.get("name")
        if not is_name(name) or name in found or name in taken:
            raise AnsibleFilterError("%s name: %.80r, expected another name ([a-z][a-z0-9_]{0,30})" % (option, name))
        found[name] = entry
    return found


def environments_of(wanted, option="lab_environments"):
    """Those that are declared, by name."""
    return by_name(option, wanted["environments"], (SCIENCE,))


def lock_files(wanted):
    found = environments_of(wanted)
    return {"etc/environments/%s.txt" % name: _content(str(one["lock"])) for name, one in found.items()}


def _server(instance, slot, kernels, wanted):
    place = instance["slot"]
    settings = server_settings("%s/%s" % (slot, FILES), kernels)
    settings["ServerApp"].update(ip=str(place["addresses"]["ipv4"]), port=int(place["ports"]["first"]), port_retries=0)
    if wanted["certificate"]:
        settings["ServerApp"].update(certfile=slot + "/etc/certificate.pem", keyfile=slot + "/var/key.pem")
    settings["LabApp"].update(user_settings_dir=slot + "/var/lab/settings", workspaces_dir=slot + "/var/lab/workspaces")
    # over TCP whoever is on the node could listen to what a kernel prints; the path of a socket must not be long
    settings["KernelManager"] = {"transport": "ipc" if len(slot) + SOCKET_NAME <= SOCKET_PATH else "tcp"}
    return settings


def server_settings(root, kernels):
    """What every server of a lab has."""
    return {
        "ServerApp": {
            "root_dir": root,
            "open_browser": False,
            "quit_button": False,
            "allow_external_kernels": False,
            # what ran in them would be beside the limit of a kernel; in a notebook `!command` is within it
            "terminals_enabled": False,
            "jpserver_extensions": dict.fromkeys(UNUSED, False),
        },
        "LabApp": {
            "extension_manager": "readonly",
            "news_url": None,
            "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        },
        "FileContentsManager": {"delete_to_trash": False},
        "KernelSpecManager": {"ensure_native_kernel": False, "allowed_kernelspecs": kernels},
        "MultiKernelManager": {"default_kernel_name": SCIENCE},
    }


def kernel_of(name, python, instance, wanted, places):
    """What starts a kernel. `places` has the files of the lake's token and certificate, or "", and the folder of what
    may be lost."""
    limit = "--data=%d" % (int(wanted["memory_mib"]) << 20)
    threads = str(max(1, int(instance["slot"]["limits"]["cpu_milli"]) // 1000))
    lake = {
        "CLACHAN_LAKE": wanted["lake_url"],
        "CLACHAN_LAKE_TOKEN_FILE": places["lake_token"],
        "CLACHAN_LAKE_CA_FILE": places["lake_ca"],
    }
    return {
        # the limit is of what is allocated, and holds for what the kernel starts, too
        "argv": [
            "/usr/bin/prlimit",
            limit,
            python,
            "-I",
            "-m",
            "ipykernel_launcher",
            EXTENSION,
            "-f",
            "{connection_file}",
        ],
        "display_name": TITLES.get(name, name),
        "language": "python",
        "metadata": {"debugger": True},
        # each of their threads takes of the limit, and a big node has many processors
        "env": dict(
            {key: str(value) for key, value in lake.items() if value},
            PATH="%s:/usr/local/bin:/usr/bin:/bin" % os.path.dirname(python),
            MPLCONFIGDIR=places["cache"] + "/matplotlib",
            OMP_NUM_THREADS=threads,
            OPENBLAS_NUM_THREADS=threads,
        ),
    }


def _content(text):
    return {"content": text}


def _json(document):
    return _content(json.dumps(document, indent=2, sort_keys=True) + "\n")


class FilterModule:
    def filters(self):
        return {"lab_files": lab_files}
