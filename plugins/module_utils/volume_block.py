# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices that are VMs' disks: devices that the node has, and logical volumes that are made."""

from __future__ import annotations

import grp
import os
import re
import shutil
import stat
import subprocess

from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError

LVM_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"


class Device:
    """A block device of this node, given to a user. It is neither made nor removed."""

    def __init__(self, path, owner):
        self.path, self._owner = path, owner

    def look(self):
        """{size, mode, owner} of the device; None for nothing. Raises HypervisorError for what is no block device."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        if not stat.S_ISBLK(found.st_mode):
            raise HypervisorError("volume %s: no block device, expected one" % self.path)
        return {"size": self._size(), "mode": "%04o" % stat.S_IMODE(found.st_mode), "owner": found.st_uid}

    def _size(self):
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(handle, 0, os.SEEK_END)
        finally:
            os.close(handle)

    def create(self, _size):
        raise HypervisorError("volume %s: nothing there, expected a block device" % self.path)

    def grow(self, size):
        raise HypervisorError("volume %s: %d bytes, expected %d" % (self.path, self._size(), size))

    def give(self, mode):
        """To the owner; a device's node is made anew by each boot of the machine, so this is done anew as well."""
        real = os.path.realpath(self.path)
        os.chown(real, self._owner.pw_uid, self._owner.pw_gid)
        os.chmod(real, mode)

    def remove(self):
        """Take it back."""
        real = os.path.realpath(self.path)
        os.chown(real, 0, grp.getgrnam("disk").gr_gid)
        os.chmod(real, 0o660)


class LogicalVolume(Device):
    """A volume of LVM: `/dev/<group>/<name>`."""

    def __init__(self, path, owner, group):
        super().__init__(path, owner)
        self._group, self._name = group, os.path.basename(path)
        for what, word in (("volume_group", group), ("logical volume", self._name)):
            if not re.fullmatch(LVM_NAME, word):
                raise HypervisorError("%s %r: expected letters, digits and _ . -" % (what, word))
        if path != "/dev/%s/%s" % (group, self._name):
            raise HypervisorError("volume %s: expected /dev/%s/<name>" % (path, group))

    def create(self, size):
        # -Wy -Zy --yes: what an earlier volume left there is wiped as far as it could be taken for a file system
        lvm(["lvcreate", "--yes", "-Wy", "-Zy", "-n", self._name, "-L", "%db" % size, self._group])

    def grow(self, size):
        lvm(["lvextend", "-L", "%db" % size, "%s/%s" % (self._group, self._name)])

    def remove(self):
        lvm(["lvremove", "--yes", "%s/%s" % (self._group, self._name)])


def lvm(command):
    if shutil.which(command[0]) is None:
        raise HypervisorError("command %s: not found, expected it (Debian: lvm2)" % command[0])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")[-500:]
        raise HypervisorError("%s: %s, expected it to succeed" % (command[0], said))
