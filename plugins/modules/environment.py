#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: environment
short_description: Make a pinned Python environment of the platform
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes a virtual environment from a lock file with hashes and from wheels, as the platform collection carries them.
  - It is made in C(<path>-<digest>) of what goes into it and O(path) is then pointed there. So one that is in use is
    never changed, and one that a kill left half made is made anew. The one before the last is removed.
  - The Python is one that every user of the machine can run, when run by root, as the slots' users need it.
  - C(PIP_*), proxy and certificate variables are remembered in C(pip.json) beside O(path), readable only by its owner,
    for environments that are made later by a program that does not have them, as the agent. Those that say where
    packages come from and hold no password are in C(pip.shared.json), too, which every user can read, for O(settings).
  - pip's temporary files are beside what it makes. When it fails, nothing of it is left.
options:
  path:
    description:
      - The environment, a link to its present make.
    type: path
    required: true
  files:
    description:
      - The C(files) directory of the platform collection, with C(requirements/<lock>.txt) and C(wheels/).
    type: path
    required: true
  lock:
    description:
      - Which lock file, or the path of another one without its C(.txt).
    type: str
    required: true
  wheels:
    description:
      - Distributions to install from C(wheels/), without their dependencies, which are in the lock. May be empty.
    type: list
    elements: str
    required: true
  commands:
    description:
      - Commands of the environment to link into O(bin).
    type: list
    elements: str
  bin:
    description:
      - The directory for O(commands).
    type: path
  settings:
    description:
      - For an environment of an instance, whose user has none of them, the C(pip.shared.json) beside those of the node.
        Of its variables those hold that this process does not have. pip then keeps no cache.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and say whether the environment would be made.
    support: full
  diff_mode:
    description: Shows the digest before and after.
    support: full
"""

EXAMPLES = r"""
- name: Make the agent's environment
  clachan.platform.environment:
    path: /var/lib/clachan/envs/agent
    files: /var/lib/clachan/platform/current/ansible_collections/clachan/platform/files
    lock: agent
    wheels: [clachan]
"""

RETURN = r"""
folder:
  description: The directory that O(path) points to.
  returned: always but in check mode before the first run
  type: str
python:
  description: The Python that the environment was made from.
  returned: when it was made
  type: str
"""

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import layout

OLDEST = (3, 11)
STAMP = "clachan-environment"
REMEMBERED = "pip.json"
SHARED = "pip.shared.json"
NAMES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
PLACES = (
    "CERT",
    "EXTRA_INDEX_URL",
    "FIND_LINKS",
    "INDEX_URL",
    "NO_INDEX",
    "PROXY",
    "RETRIES",
    "TIMEOUT",
    "TRUSTED_HOST",
)
"""Of pip, what others need who install from the same places."""
NO_ROOM = ("No space left on device", "Disk quota exceeded")
PIP = ["--disable-pip-version-check", "--no-input", "--quiet"]
PROBE = """
import sys, sysconfig
print(*sys.version_info[:2], sys.base_prefix, sysconfig.get_path("stdlib"), sep="\\n")
"""


class Environment:
    """Brings one environment to what its lock and wheels say."""

    def __init__(self, module):
        self.module = module
        self.path = module.params["path"]
        self.lock = os.path.join(module.params["files"], "requirements", module.params["lock"] + ".txt")
        self.wheels = [self._wheel(name) for name in module.params["wheels"]]
        self.before = os.readlink(self.path) if os.path.islink(self.path) else None
        self.python = self.folder = None

    def _wheel(self, name):
        folder = os.path.join(self.module.params["files"], "wheels")
        found = glob.glob(os.path.join(folder, name.replace("-", "_") + "-*.whl"))
        if len(found) != 1:
            raise layout.HomeError("wheel %s in %s: %d files, expected 1" % (name, folder, len(found)))
        return found[0]

    def digest(self):
        digest = hashlib.sha256()
        for path in [self.lock] + self.wheels:
            with open(path, "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest())
        return digest.hexdigest()[:12]

    def make(self):
        """Make it when it is missing; returns whether it was, or in check mode would be."""
        wanted = "%s-%s" % (os.path.basename(self.path), self.digest())
        self.folder = os.path.join(os.path.dirname(self.path), wanted)
        self.after = wanted
        whole = os.path.exists(os.path.join(self.folder, STAMP))
        changed = not whole or self.before != wanted
        if changed and not self.module.check_mode:
            with open(self.path + ".lock", "w") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                if not os.path.exists(os.path.join(self.folder, STAMP)):
                    self._build()
                layout.point(self.path, wanted)
            self._prune()
        return self._link_commands() or changed

    def _build(self):
        self.python = find_python(shared=os.geteuid() == 0)
        settings = self.module.params["settings"]
        # a cache would lie in the user's slot, beside the disk that holds what the user takes
        self.variables = dict(read_variables(settings), PIP_NO_CACHE_DIR="1") if settings else {}
        self.variables.update(remember_variables(os.path.join(os.path.dirname(self.path), REMEMBERED)))
        shutil.rmtree(self.folder, ignore_errors=True)
        temporary = os.path.join(self.folder, "tmp")
        os.makedirs(temporary)
        self.variables["TMPDIR"] = temporary
        pip = self._venv()
        self._run([*pip, "install", *PIP, "--require-hashes", "-r", self.lock])
        if self.wheels:
            self._run([*pip, "install", *PIP, "--no-deps", "--no-index", *self.wheels])
        shutil.rmtree(temporary)
        layout.write_file(os.path.join(self.folder, STAMP), self.python.encode(), 0o644)

    def _venv(self):
        """Make the bare environment; returns the command of its pip."""
        inside = os.path.join(self.folder, "bin", "python")
        bundled = self.module.run_command([self.python, "-Ic", "import ensurepip"])[0] == 0
        # pip by a command of its own: venv would keep to itself what it said
        self._run([self.python, "-Im", "venv", "--without-pip", self.folder])
        if bundled:
            self._run([inside, "-Im", "ensurepip", "--upgrade", "--default-pip"])
        else:
            self._copy_pip(inside)
        return [inside, "-Im", "pip"]

    def _copy_pip(self, inside):
        """Debian without python3-venv has no ensurepip; then the pip of whoever runs Ansible serves, as it is."""
        packages = self.module.run_command([inside, "-Ic", "import sysconfig; print(sysconfig.get_path('purelib'))"])[1]
        for outside in dict.fromkeys([sys.executable, self.python]):
            status, found, _err = self.module.run_command([outside, "-Ic", "import pip; print(pip.__path__[0])"])
            if status == 0:
                shutil.copytree(found.strip(), os.path.join(packages.strip(), "pip"))
                return
        places = "%s or %s" % (sys.executable, self.python)
        raise layout.HomeError("pip: none in %s, expected one (Debian: python3-venv)" % places)

    def _run(self, command):
        status, out, err = self.module.run_command(command, cwd="/", environ_update=self.variables)
        if status:
            message = "command %s: exit status %d, expected 0" % (" ".join(command[:5]), status)
            self.give_up(message, stdout=hide_passwords(out), stderr=hide_passwords(err))

    def give_up(self, message, **said):
        """What is half made takes no room from whoever works on the same file system."""
        if self.folder and not os.path.exists(os.path.join(self.folder, STAMP)):
            shutil.rmtree(self.folder, ignore_errors=True)
        if any(part in text for part in NO_ROOM for text in (message, *said.values())):
            message = "environment %s: no room in %s, expected more" % os.path.split(self.path)[::-1]
        self.module.fail_json(msg=message, **said)

    def _prune(self):
        """Keep the one in use and the one before, which programs may still run from until they are restarted."""
        folder, name = os.path.split(self.path)
        for other in os.listdir(folder):
            made = re.match(re.escape(name) + r"-[0-9a-f]{12}\Z", other)
            if made and other not in (self.after, self.before):
                shutil.rmtree(os.path.join(folder, other))

    def _link_commands(self):
        changed = False
        for command in self.module.params["commands"] or []:
            link = os.path.join(self.module.params["bin"], command)
            target = os.path.relpath(os.path.join(self.path, "bin", command), self.module.params["bin"])
            if os.path.islink(link) and os.readlink(link) == target:
                continue
            changed = True
            if not self.module.check_mode:
                layout.point(link, target)
        return changed


def remember_variables(path):
    """What says where packages come from: of this process if it has any such variable, else of one before."""
    present = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name in NAMES or name.lower().endswith("_proxy")
    }
    if present:
        layout.write_file(path, json.dumps(present).encode(), 0o600)
    else:
        present = read_variables(path)
    if not present:
        return {}
    # an @ may follow a password, a ? a key
    shared = {
        name: value
        for name, value in present.items()
        if (name[4:] in PLACES or not name.startswith("PIP_")) and not set("@?") & set(value)
    }
    layout.write_file(os.path.join(os.path.dirname(path), SHARED), json.dumps(shared).encode(), 0o644)
    return present


def read_variables(path):
    try:
        with open(path or os.devnull, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def hide_passwords(text):
    """An index's address may carry a password."""
    return re.sub(r"://[^/\s@]*@", "://***@", text)


def candidates():
    """Pythons of this machine, the distribution's own first, as every user can run those."""
    minors = [".%d" % minor for minor in range(14, OLDEST[1] - 1, -1)]
    named = [folder + "/python3" + minor for folder in ("/usr/bin", "/usr/local/bin") for minor in ["", *minors]]
    own = getattr(sys, "_base_executable", None) or sys.executable
    return [path for path in dict.fromkeys([*named, own]) if os.access(path, os.X_OK)]


def find_python(shared):
    """The first Python that is new enough and, when shared, that every user can run and read."""
    refused = []
    for path in candidates():
        reason = _unfit(path, shared)
        if reason is None:
            return path
        refused.append("%s %s" % (path, reason))
    wanted = ".".join(map(str, OLDEST))
    raise layout.HomeError("Python: %s, expected one of %s or newer" % ("; ".join(refused) or "none found", wanted))


def _unfit(path, shared):
    """Why a Python will not do; None when it does."""
    process = subprocess.run([path, "-Ic", PROBE], capture_output=True, text=True, check=False)
    if process.returncode:
        return "does not run"
    major, minor, *folders = process.stdout.split("\n")
    if (int(major), int(minor)) < OLDEST:
        return "is %s.%s" % (major, minor)
    if not shared:
        return None
    if not os.stat(path).st_mode & stat.S_IXOTH:
        return "is closed to other users"
    for folder in [os.path.dirname(os.path.realpath(path)), *filter(None, folders)]:
        closed = layout.closed_parent(folder)
        if closed:
            return "lies below %s, which is closed to other users" % closed
    return None


def make(environment):
    try:
        return environment.make()
    except OSError as error:
        environment.give_up("environment %s: %s, expected to make it" % (environment.path, error))


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "path", "required": True},
            "lock": {"type": "str", "required": True},
            "wheels": {"type": "list", "elements": "str", "required": True},
            "commands": {"type": "list", "elements": "str"},
            "bin": {"type": "path"},
            "settings": {"type": "path"},
        },
        required_by={"commands": "bin"},
        supports_check_mode=True,
    )
    os.umask(0o022)
    if module.check_mode and not os.path.isdir(module.params["files"]):
        module.exit_json(changed=True, folder=None)
    try:
        environment = Environment(module)
        changed = make(environment)
    except layout.HomeError as error:
        module.fail_json(msg=str(error))
    result = {"changed": changed, "folder": environment.folder, "python": environment.python}
    if module._diff:
        result["diff"] = {"before": (environment.before or "") + "\n", "after": environment.after + "\n"}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
