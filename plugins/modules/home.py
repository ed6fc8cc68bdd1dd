#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: home
short_description: Prepare a Clachan home and install the platform collection in it
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes the directory that holds everything the platform keeps on a machine, and marks it as such.
  - Installs the platform collection that is running into it, at C(platform/<digest>), and points C(platform/current)
    there. The digest is the sha256 of the collection's C(MANIFEST.json).
  - The roles C(clachan.platform.controller) and C(clachan.platform.node) begin with it; they are its users.
options:
  path:
    description:
      - The directory.
      - By default E(CLACHAN_HOME), else C(/var/lib/clachan) for root and C(~/.local/share/clachan) for others.
    type: path
  controller_host:
    description:
      - Address that a controller will listen on. When given, a free port is chosen and remembered.
    type: str
  controller_port:
    description:
      - The port to use instead of a free one.
    type: int
  source:
    description:
      - What identifies the running collection; set by the action plugin.
    type: str
  archive:
    description:
      - Artifact of the running collection on the target; set by the action plugin when it is needed.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Shows what changes.
    support: none
"""

EXAMPLES = r"""
- name: Prepare the home
  clachan.platform.home:
    path: /var/lib/clachan
  register: home
"""

RETURN = r"""
home:
  description: The home.
  returned: always
  type: str
root:
  description: Whether slots have unix users of their own.
  returned: always
  type: bool
systemd:
  description: Whether the platform's processes are systemd units.
  returned: always
  type: bool
digest:
  description: The digest of the installed platform collection.
  returned: when one is installed
  type: str
files:
  description: The directory with wheels and locks that the collection carries.
  returned: always
  type: str
port:
  description: The controller's port.
  returned: when O(controller_host) is given
  type: int
joined:
  description: Whether this machine has a node's certificate.
  returned: always
  type: bool
archive_needed:
  description: Whether the collection must be sent.
  returned: always
  type: bool
"""

import hashlib
import json
import os
import shutil
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import layout
from ansible_collections.clachan.platform.plugins.module_utils.home import home

COLLECTION = "ansible_collections/clachan/platform"


class Home:
    """Brings one home to what its options say."""

    def __init__(self, module):
        self.module = module
        self.path = os.path.abspath(home(module.params["path"]))
        self.root = os.geteuid() == 0
        self.changes = []
        self.needed = False

    def prepare(self):
        layout.check_path(self.path, self.root)
        settings = layout.read_settings(self.path)
        # images may have been built before there was a platform
        if settings is None and os.path.isdir(self.path) and set(os.listdir(self.path)) - {"images"}:
            raise layout.HomeError("home %s: not empty and no Clachan home, expected a new directory" % self.path)
        wanted = dict(settings or {}, clachan_home=layout.FORMAT)
        if self.module.params["controller_host"]:
            wanted["controller_port"] = self._port(wanted)
        self.settings = wanted
        if wanted != settings:
            self.changes.append(layout.SETTINGS)
        if not self.module.check_mode:
            self._write(settings)
        self._platform()

    def _port(self, settings):
        given = self.module.params["controller_port"]
        remembered = settings.get("controller_port")
        return given or remembered or layout.free_port(self.path, self.module.params["controller_host"])

    def _write(self, settings):
        if not os.path.isdir(self.path):
            os.makedirs(self.path, 0o755)
            os.chmod(self.path, 0o755)  # noqa: S103 - slots' users must enter
        if self.settings != settings:
            layout.write_settings(self.path, self.settings)
        self.changes += layout.make_directories(self.path)

    def _platform(self):
        """Install the archive, when the source is not what is installed."""
        if self._installed() == self.module.params["source"]:
            return
        self.needed = not self.module.params["archive"]
        if self.module.check_mode:
            self.changes.append("platform")
        elif not self.needed and self._install(self.module.params["archive"]):
            self.changes.append("platform")

    def _installed(self):
        try:
            with open(os.path.join(self.path, "platform/current/source"), encoding="utf-8") as file:
                return file.read()
        except OSError:
            return None

    def _install(self, archive):
        parent = os.path.join(self.path, "platform")
        for name in os.listdir(parent):
            if name.startswith(".unpack-"):  # what a killed run left
                shutil.rmtree(os.path.join(parent, name))
        folder = tempfile.mkdtemp(dir=parent, prefix=".unpack-")
        os.chmod(folder, 0o755)  # noqa: S103 - slots' users read it
        digest = unpack(archive, os.path.join(folder, COLLECTION))
        layout.write_file(os.path.join(folder, "source"), self.module.params["source"].encode(), 0o644)
        target = os.path.join(parent, digest)
        if os.path.isdir(target):
            os.replace(os.path.join(folder, "source"), os.path.join(target, "source"))
            shutil.rmtree(folder)
        else:
            os.rename(folder, target)
        return layout.point(os.path.join(parent, "current"), digest)

    def result(self):
        current = os.path.join(self.path, "platform", "current")
        result = {
            "home": self.path,
            "root": self.root,
            "systemd": self.root and os.path.isdir("/run/systemd/system"),
            "files": os.path.join(current, COLLECTION, "files"),
            "joined": os.path.exists(os.path.join(self.path, "node", "cert.pem")),
            "archive_needed": self.needed,
            "changed": bool(self.changes),
            "changes": self.changes,
        }
        if os.path.islink(current):
            result["digest"] = os.readlink(current)
        if "controller_port" in self.settings:
            result["port"] = self.settings["controller_port"]
        return result


def unpack(archive, folder):
    """Unpack an artifact, checking each file against the manifest; returns the manifest's digest."""
    with tarfile.open(archive, "r:gz") as tar:
        manifest = tar.extractfile("MANIFEST.json").read()
        listing = tar.extractfile("FILES.json").read()
        _check("FILES.json", listing, json.loads(manifest)["file_manifest_file"]["chksum_sha256"])
        os.makedirs(folder, 0o755)
        layout.write_file(os.path.join(folder, "MANIFEST.json"), manifest, 0o644)
        layout.write_file(os.path.join(folder, "FILES.json"), listing, 0o644)
        for entry in json.loads(listing)["files"]:
            _unpack_one(tar, entry, folder)
    return hashlib.sha256(manifest).hexdigest()


def _unpack_one(tar, entry, folder):
    name = entry["name"]
    if name == ".":
        return
    if os.path.isabs(name) or ".." in name.split("/"):
        raise layout.HomeError("file %s: outside of the collection, expected a path inside" % name)
    path = os.path.join(folder, name)
    if entry["ftype"] == "dir":
        os.makedirs(path, 0o755, exist_ok=True)
        return
    member = tar.getmember(name)
    data = tar.extractfile(member).read()
    _check(name, data, entry["chksum_sha256"])
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    layout.write_file(path, data, 0o755 if member.mode & 0o100 else 0o644)


def _check(name, data, wanted):
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        raise layout.HomeError("file %s of the artifact: sha256 %s, expected %s" % (name, found, wanted))


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "controller_host": {"type": "str"},
            "controller_port": {"type": "int"},
            "source": {"type": "str"},
            "archive": {"type": "path"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    work = Home(module)
    try:
        work.prepare()
    except layout.HomeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**work.result())


if __name__ == "__main__":
    main()
