# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible does to an image, the same with every builder: plays from a recipe, and the variables of a build."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys

from ansible_collections.clachan.platform.plugins.module_utils.home import home
from ansible_collections.clachan.platform.plugins.module_utils.image_debian import host_apt_options
from ansible_collections.clachan.platform.plugins.module_utils.image_process import BuildError, find, follow, hide
from ansible_collections.clachan.platform.plugins.module_utils.image_tree import BUILD

COLLECTION = "ansible_collections/clachan/platform"
HOST = "image"
PASSED = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
PIP_FILES = ("~/.config/pip/pip.conf", "~/.pip/pip.conf", "/etc/pip.conf")
TASK = re.compile(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \**")
POLICY = "/usr/sbin/policy-rc.d"
POLICY_TEXT = "#!/bin/sh\nexit 101\n"
"""No package starts its services while an image is built."""
BUILD_KEY = "clachan-build"
"""The comment of the key with which a builder logs in."""
SEED_STATE = "/var/lib/clachan-seed"

# standard input becomes the user's keys; the one with which a builder logs in stays until the end
KEYS = """set -e
umask 077
mkdir -p "$1/.ssh"
own=$(grep ' {key}$' "$1/.ssh/authorized_keys" 2> /dev/null || true)
cat > "$1/.ssh/authorized_keys"
[ -z "$own" ] || printf '%s\n' "$own" >> "$1/.ssh/authorized_keys"
chown -R "$2:" "$1/.ssh"
""".replace("{key}", BUILD_KEY)

# Both builders end with this, inside. What a build had and a machine must not: identity, keys, logs, caches, secrets.
CLEAN = """set -e
rm -f /etc/ssh/ssh_host_* /etc/ssh/sshd_config.d/00-clachan-build.conf {policy} /etc/systemd/network/10-seed-*
rm -f /var/lib/clachan/envs/pip*.json /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /var/lib/dbus/machine-id /etc/.pwd.lock /var/lib/dpkg/lock* /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache
rm -rf {seed}
(cd /root && rm -rf .ansible .cache .config/pip .pip .bash_history .python_history)
rm -rf /var/lib/apt/lists /var/cache/apt/archives /var/log/journal /var/log/apt
rm -rf /var/lib/systemd/timers /var/lib/systemd/timesync /var/lib/systemd/catalog/database
find /tmp /var/tmp -xdev -mindepth 1 -delete
rm -f /var/lib/clachan/supervisor/supervisord.log* /var/lib/clachan/supervisor/supervisord.pid
rm -f /var/lib/clachan/supervisor/supervisor.sock* /var/lib/clachan/envs/*.lock
rmdir /var/lib/systemd/linger 2> /dev/null || true
mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt
touch -d @0 /var/lib/apt/lists
find /var/log -type f \\( -name '*.gz' -o -name '*.[0-9]' -o -name '*.old' \\) -delete
rm -f /var/log/dpkg.log /var/log/alternatives.log /var/log/bootstrap.log
find /var/log -type f -exec truncate -s 0 '{{}}' +
find /etc /var/cache/debconf /var/lib/dpkg -xdev -type f \\( -name '*-old' -o -name '*-' \\) -delete
if [ -f /root/.ssh/authorized_keys ]; then
  sed -i '/ {key}$/d' /root/.ssh/authorized_keys
  [ -s /root/.ssh/authorized_keys ] || rm /root/.ssh/authorized_keys
fi
[ ! -d /root/.ssh ] || rm -f /root/.ssh/known_hosts
rmdir /root/.ssh 2> /dev/null || true
truncate -s 0 /etc/machine-id
truncate -s 0 /etc/resolv.conf 2> /dev/null || true
""".format(policy=POLICY, seed=SEED_STATE, key=BUILD_KEY)


# -- plays -----------------------------------------------------------------------------------------------------------


def play(recipe):
    """The packages, users and roles of a normalized recipe as a play; its values hold no template."""
    tasks = [_user_task(user) for user in recipe["users"]]
    tasks += [_keys_task(user) for user in recipe["users"] if user["authorized_keys"]]
    packages = {
        "name": "Install the packages",
        "ansible.builtin.apt": {"name": recipe["packages"], "install_recommends": False, "update_cache": True},
    }
    return {
        "name": "Recipe %s" % recipe["name"],
        "hosts": "all",
        # roles commonly read them
        "gather_facts": bool(recipe["roles"]),
        "pre_tasks": ([packages] if recipe["packages"] else []) + tasks,
        "roles": [{"role": role} for role in recipe["roles"]],
    }


def _user_task(user):
    options = {"name": user["name"], "shell": user["shell"], "groups": user["groups"], "append": True}
    return {"name": "Make the user %s" % user["name"], "ansible.builtin.user": options}


def _keys_task(user):
    home_folder = "/root" if user["name"] == "root" else "/home/" + user["name"]
    return {
        "name": "Let the keys of %s in" % user["name"],
        "ansible.builtin.command": {
            "argv": ["sh", "-c", KEYS, "sh", home_folder, user["name"]],
            "stdin": "".join(key + "\n" for key in user["authorized_keys"]),
            "stdin_add_newline": False,
        },
    }


def has_content(recipe):
    """Whether the recipe puts anything into the image beside its base."""
    return any(recipe[key] for key in ("packages", "users", "roles", "playbooks"))


AGENT_PLAY = {
    "name": "The agent, which joins when the machine has got its seed",
    "hosts": "all",
    "gather_facts": False,
    "tasks": [
        {
            "name": "Install the agent",
            "ansible.builtin.include_role": {"name": "clachan.platform.node", "tasks_from": "image"},
        }
    ],
}


# -- variables and files of a build ----------------------------------------------------------------------------------


def build_needs(environment):
    """What commands inside need from this machine: (variables, files below BUILD).

    A file is ("text", what it says) or ("path", what it shows).
    """
    files = {"apt.conf": ("text", "".join(option + ";\n" for option in host_apt_options()))}
    variables = {}
    for name, value in sorted(environment.items()):
        if name.startswith("PIP_") or name in PASSED or name.lower().endswith("_proxy"):
            variables[name] = value
    given = [os.path.expanduser(path) for path in PIP_FILES]
    if "PIP_CONFIG_FILE" not in variables and any(map(os.path.exists, given)):
        variables["PIP_CONFIG_FILE"] = next(path for path in given if os.path.exists(path))
    for name, value in variables.items():
        if value.startswith("/") and os.path.exists(value):
            files[name.lower()] = ("path", value)
            variables[name] = "%s/%s" % (BUILD, name.lower())
    lines = ["export %s=%s\n" % (name, shlex.quote(value)) for name, value in variables.items()]
    files["environment"] = ("text", "".join(lines))
    return variables, files


# -- Ansible ---------------------------------------------------------------------------------------------------------


def collection_folder():
    """The folder of the platform collection: the running one, or on a node the one installed in its home."""
    running = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    installed = os.path.join(home(), "platform", "current", COLLECTION)
    for folder in (running, installed):
        if os.path.isdir(os.path.join(folder, "files", "guest")):
            return folder
    raise BuildError("collection clachan.platform: neither in %s nor in %s, expected it whole" % (running, installed))


def ansible_playbook():
    """The path of ansible-playbook: beside the running Python, in the node's environment, or in the PATH."""
    places = [os.path.dirname(sys.executable), os.path.join(home(), "envs", "agent", "bin")]
    for place in places:
        path = os.path.join(place, "ansible-playbook")
        if os.access(path, os.X_OK):
            return path
    path = find("ansible-playbook")
    if path is None:
        raise BuildError("command ansible-playbook: not found, expected ansible-core on the machine that builds")
    return path


class Ansible:
    """Runs plays from a folder of its own, with nothing of the user's configuration."""

    def __init__(self, folder, environment, collection, collection_paths, role_paths):
        self.folder, self._environment = folder, environment
        link = os.path.join(folder, "collections", COLLECTION)
        os.makedirs(os.path.dirname(link), 0o755)
        os.symlink(collection, link)
        self._collections = [os.path.join(folder, "collections"), *collection_paths]
        self._roles = list(role_paths)
        self.write("ansible.cfg", "[defaults]\n")

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def write_play(self, name, content):
        return self.write(name, json.dumps([content], indent=1) + "\n")

    def variables(self):
        kept = {
            name: value
            for name, value in self._environment.items()
            if not name.startswith("ANSIBLE_") or name.startswith("ANSIBLE_VAULT_")
        }
        return dict(
            kept,
            ANSIBLE_CONFIG=os.path.join(self.folder, "ansible.cfg"),
            ANSIBLE_HOME=os.path.join(self.folder, "ansible"),
            ANSIBLE_COLLECTIONS_PATH=os.pathsep.join(self._collections),
            ANSIBLE_ROLES_PATH=os.pathsep.join(self._roles),
            ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default",
            ANSIBLE_NOCOLOR="1",
            ANSIBLE_PIPELINING="1",
            ANSIBLE_RETRY_FILES_ENABLED="0",
            ANSIBLE_SYSTEM_WARNINGS="0",
            ANSIBLE_DEPRECATION_WARNINGS="0",
            PYTHONUNBUFFERED="1",
        )

    def run(self, command, playbooks, tell):
        """Run playbooks on the one host that `command` enters; `tell` gets the name of each task."""
        enter = {"ansible_connection": "clachan.platform.enter", "ansible_enter_command": command}
        enter.update(ansible_user="root", ansible_python_interpreter="/usr/bin/python3")
        inventory = self.write("hosts.json", json.dumps({"all": {"hosts": {HOST: enter}}}))
        follow([ansible_playbook(), "-i", inventory, *playbooks], task_teller(tell), self.variables())


class Setting:
    """Where a build takes things from."""

    def __init__(self, environment, collection_paths, role_paths):
        self.environment, self.collection_paths, self.role_paths = environment, collection_paths, role_paths
        self.collection = collection_folder()
        self.guest = os.path.join(self.collection, "files", "guest")

    def ansible(self, folder):
        os.mkdir(folder)
        return Ansible(folder, self.environment, self.collection, self.collection_paths, self.role_paths)


def task_teller(tell):
    """A function that takes lines of Ansible's output and tells the names of the tasks in them."""

    def line(text):
        match = TASK.match(text)
        if match:
            tell("  " + hide(match.group(1)))

    return line
