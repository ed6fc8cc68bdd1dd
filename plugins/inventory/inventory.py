# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: inventory
short_description: The instances and nodes of a Clachan platform
author:
  - The Clachan maintainers (@clachan)
description:
  - Reads the platform's inventory from the controller, or a node's slice of it from a file.
  - The name of the configuration file must end in C(clachan.yml) or C(clachan.yaml).
  - Each instance is a host named by its path (C(tenant.name)), with C(clachan_instance) and its parameters as
    variables; each node is a host with C(clachan_node). Groups are C(nodes), C(instances), C(software_NAME),
    C(tenant_NAME), C(cluster_TENANT_ROOT), C(label_KEY_VALUE) and C(node_NAME) (the instances on a node).
  - Values are what tenants wrote. They are never marked trusted, so a template in one stays text.
  - The nodes that are VMs of a tenant's cluster are in the group C(members_TENANT_ROOT).
  - A host whose node is this machine has a local connection. Any other is reached by SSH at the address that an
    operator assigned to its node; user and privilege escalation come from your own group variables.
  - A VM that has no such address is reached by SSH through C(clachan instance connect), over the outgoing connection
    of the machine that it runs on, and trusted by the host key that it was made with. SSH must be OpenSSH 8.5 or newer,
    and the command C(clachan) beside the Python of Ansible or in the PATH. A token that stands in the configuration
    file is not handed on to it, only one in the environment or in the credentials of O(home).
  - Secrets read C(<secret>) unless the source is a slice. Hosts that have any are then in the group C(unrevealed).
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [clachan.platform.inventory]
  slice:
    description:
      - Read this file (an inventory as the controller sends it) instead of asking the controller.
      - A relative path begins at the directory of the configuration file.
    type: str
  url:
    description: The controller, as C(https://HOST:PORT). Default is the one in the credentials of O(home).
    type: str
    env:
      - name: CLACHAN_URL
  token:
    description: Who asks. Default is the one in the credentials of O(home).
    type: str
    env:
      - name: CLACHAN_TOKEN
  ca:
    description: File with the certificate of the controller's CA.
    type: path
    env:
      - name: CLACHAN_CA
  home:
    description:
      - The platform's state directory on this machine, which says who this machine is (C(node/node.json)) and holds the
        stored credentials (C(credentials.json)).
      - Default is C(/var/lib/clachan) for root, else C(~/.local/share/clachan).
    type: path
    env:
      - name: CLACHAN_HOME
  optional:
    description: Give an empty inventory, with a notice, while the platform is not up.
    type: bool
    default: false
"""

EXAMPLES = r"""
# clachan.yml: the platform whose state is on this machine
plugin: clachan.platform.inventory

# lab.clachan.yml: a controller elsewhere; the token comes from CLACHAN_TOKEN
---
plugin: clachan.platform.inventory
url: https://controller.lab.example:8443
ca: /etc/clachan/ca.crt
"""

import gc
import json
import os
import re
import shlex
import shutil
import sys

from ansible.errors import AnsibleParserError
from ansible.plugins import loader
from ansible.plugins.inventory import BaseInventoryPlugin

from ansible_collections.clachan.platform.plugins.module_utils.names import is_fqcn, is_name, is_path

WRAPPER = "clachan_inventory"
FORMAT = 1
UNREVEALED = "unrevealed"
NODE_VARIABLES = frozenset({"clachan_node", "clachan_supply"})
HOST = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+"


class Unusable(Exception):
    """A record that must not become a host; the text says why."""


class InventoryModule(BaseInventoryPlugin):
    NAME = "clachan.platform.inventory"

    def verify_file(self, path):
        return path.endswith(("clachan.yml", "clachan.yaml")) and super().verify_file(path)

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        document = self._fetch(os.path.dirname(path))
        if document is not None:
            self._fill(unwrap(document))
        if os.environ.get("CLACHAN_RUN_SOFTWARE"):
            warm()

    def _fetch(self, directory):
        """The wrapped document; None when it is optional and the platform is not up."""
        if self.get_option("slice"):
            return read_slice(os.path.join(directory, self.get_option("slice")))
        # imported here: a run from a slice, the usual one, need not pay for the HTTP client
        from ansible_collections.clachan.platform.plugins.module_utils import client

        try:
            address = client.find_address(
                self.get_option("url"), self.get_option("token"), self.get_option("ca"), self.get_option("home")
            )
            return client.Client(address).get("/inventory")
        except (client.NotConfigured, client.Unreachable) as problem:
            if not self.get_option("optional"):
                raise AnsibleParserError(str(problem)) from problem
            self.display.display("The platform is not up, its inventory is empty: %s" % problem, stderr=True)
            return None
        except client.ClientError as problem:
            raise AnsibleParserError(str(problem)) from problem

    def _fill(self, content):
        records = content["records"]
        here = Here(self._home(), bool(self.get_option("slice")), self._command())
        for name in sorted(records):
            try:
                variables = host_variables(name, records[name])
                connection = here.connection(variables, records)
            except Unusable as problem:
                self.display.warning("inventory leaves out a host: %s" % problem)
                continue
            self.inventory.add_host(name)
            for key, value in dict(variables, **connection).items():
                self.inventory.set_variable(name, key, value)
        self._group(content["groupings"])
        if not self.get_option("slice"):
            self._group({UNREVEALED: [name for name in records if _sealed(records[name])]})

    def _group(self, groupings):
        for group in sorted(groupings):
            if not re.fullmatch(r"[a-z][A-Za-z0-9_]*", group) or group in ("all", "ungrouped"):
                self.display.warning("inventory leaves out a group: name %r, expected [a-z][A-Za-z0-9_]*" % group)
                continue
            hosts = [name for name in groupings[group] if name in self.inventory.hosts]
            if hosts:
                self.inventory.add_group(group)
            for name in hosts:
                self.inventory.add_child(group, name)

    def _command(self):
        """The command `clachan` for the same controller, as words."""
        beside = os.path.join(os.path.dirname(sys.executable), "clachan")
        command = beside if os.access(beside, os.X_OK) else shutil.which("clachan") or "clachan"
        given = [("CLACHAN_" + name.upper(), self.get_option(name)) for name in ("home", "url", "ca")]
        # the full path, as SSH starts one of its two without a shell
        return ["/usr/bin/env"] + ["%s=%s" % (n, v) for n, v in given if v and v != os.environ.get(n)] + [command]

    def _home(self):
        from ansible_collections.clachan.platform.plugins.module_utils.home import home

        return home(self.get_option("home"))


def warm():
    """Load once what each worker of a run would load for its host: workers are forked from this process.

    The kinds are of all hosts of a slice: the connection and its privilege escalation, the action of roles, and the
    filters and tests of templates, whose first use loads every one. Halves the time of a worker.
    """
    loader.action_loader.get("clachan.platform.slot", class_only=True)
    loader.connection_loader.get("ansible.builtin.local", class_only=True)
    loader.become_loader.get("ansible.builtin.su", class_only=True)
    loader.filter_loader.get("default")
    loader.test_loader.get("clachan.platform.confined")
    # a worker's garbage collection would else write to, and so copy, every page that it shares
    gc.freeze()


class Here:
    """Which node this machine is, and so how each host is reached."""

    def __init__(self, home, is_slice, command):
        self._is_slice = is_slice
        self._command = command
        try:
            with open(os.path.join(home, "node", "node.json"), encoding="utf-8") as source:
                own = json.load(source)
            self._id, self._name = own["id"], own["name"]
        except (OSError, ValueError, KeyError, TypeError):
            self._id = self._name = None

    def connection(self, variables, records):
        """The connection variables of a host."""
        if "clachan_node" in variables:
            node_name = variables["clachan_node"]["name"]
        else:
            node_name = variables["clachan_instance"]["node"]
        node = records.get(node_name, {}).get("clachan_node")
        if self._is_here(node, node_name):
            # su, because a slot's user has no password and a minimal machine no sudo
            return {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "ansible_become_method": "ansible.builtin.su",
                "ansible_su_flags": "-s /bin/sh",
            }
        machine = (node or {}).get("vm")
        if machine is not None and not ((node or {}).get("addresses") or {}).get("reach"):
            return dict(through(machine, self._command), ansible_connection="ssh")
        return {"ansible_connection": "ssh", "ansible_host": _reach(node, node_name)}

    def _is_here(self, node, name):
        if self._id is None:
            return False
        if node is None:  # a slice with only the instances of a run
            return self._is_slice and name == self._name
        return node["id"] == self._id


def read_slice(path):
    try:
        with open(path, encoding="utf-8") as source:
            return json.load(source)
    except (OSError, ValueError) as problem:
        raise AnsibleParserError(
            "slice %s: %s, expected an inventory as the controller sends it" % (path, problem)
        ) from problem


def unwrap(document):
    """The content of the wrapping; raises AnsibleParserError when this is not an inventory of the known format."""
    content = document.get(WRAPPER) if isinstance(document, dict) else None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("records", "groupings")):
        raise AnsibleParserError("inventory: no %s with records and groupings, expected the controller's" % WRAPPER)
    if content.get("format") != FORMAT:
        raise AnsibleParserError(
            "inventory's format: %r, expected %d (is the collection older than the controller?)"
            % (content.get("format"), FORMAT)
        )
    return content


def host_variables(name, record):
    """The record as host variables; raises Unusable when anything in it could steer Ansible."""
    if name in ("all", "ungrouped", "localhost") or not isinstance(record, dict):
        raise Unusable("name %r, expected a path or a node's name" % name)
    if "clachan_node" in record:
        _check_node(name, record)
    else:
        _check_instance(name, record)
    return record


def _check_node(name, record):
    node = record["clachan_node"]
    if not is_name(name) or not isinstance(node, dict) or node.get("name") != name:
        raise Unusable("node %r: expected a name, and the same in clachan_node" % name)
    for key in record:
        if key not in NODE_VARIABLES:
            raise Unusable("node %s: variable %r, expected clachan_node" % (name, key))


def _check_instance(name, record):
    instance = record.get("clachan_instance")
    if not is_path(name) or not isinstance(instance, dict) or instance.get("path") != name:
        raise Unusable("host %r: expected a path, and the same in clachan_instance" % name)
    if not is_fqcn(instance.get("software")) or not is_name(instance.get("node")):
        raise Unusable("host %s: no software or no node, expected both" % name)
    prefix = instance["software"].rpartition(".")[2] + "_"
    for key in record:
        if key == "clachan_instance":
            continue
        if (
            not key.startswith(prefix)
            or key.startswith(("ansible_", "clachan_"))
            or not re.fullmatch(r"[a-z0-9_]+", key)
        ):
            raise Unusable("host %s: variable %r, expected one that begins with %s" % (name, key, prefix))


def _sealed(record):
    return bool(record.get("clachan_instance", {}).get("sealed"))


def through(path, command):
    """SSH to the VM at `path` through its node's connection; the one key that counts is the one that it publishes."""
    if not is_path(path):
        raise Unusable("vm %r: expected the path of an instance" % path)

    def words(verb):
        return " ".join(shlex.quote(word.replace("%", "%%")) for word in command + ["instance", verb, path])

    options = [
        "ProxyCommand=" + words("connect"),
        "KnownHostsCommand=" + words("host-key"),
        "HostKeyAlias=" + path,
        "StrictHostKeyChecking=yes",
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=/dev/null",
    ]
    arguments = " ".join("-o " + shlex.quote(option) for option in options)
    return {"ansible_host": path, "ansible_ssh_common_args": arguments}


def _reach(node, name):
    reach = ((node or {}).get("addresses") or {}).get("reach")
    if not reach:
        # never a name that someone else could own: what is not assigned does not resolve
        return "%s-has-no-reach-assigned.invalid" % name.replace("_", "-")
    if not isinstance(reach, str) or not re.fullmatch(HOST, reach):
        raise Unusable("node %s: reach %r, expected a host name or an address" % (name, reach))
    return reach
