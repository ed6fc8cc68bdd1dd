#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: volume
short_description: Keep the disks of virtual machines
author:
  - The Clachan maintainers (@clachan)
description:
  - Makes data volumes (files, logical volumes), system disks from images, and gives block devices to a VM's user.
  - A volume that exists is only ever made larger. A data volume is removed only by O(delete_data).
  - A file is refused when it is a link, or belongs to another user than O(owner).
  - A volume whose VM runs is made larger and saved by libvirt; it is not removed, replaced or restored.
options:
  path:
    description: The file or the block device.
    type: str
    required: true
  kind:
    description:
      - V(file) is a data volume.
      - V(system) is a system disk, made from O(image) and disposable.
      - V(block) is a device that exists, or with O(volume_group) a logical volume.
    type: str
    choices: [file, system, block]
    default: file
  state:
    description:
      - V(backed_up) makes O(archive) when there is none of that name yet. While a VM runs with the volume, its QEMU
        writes what the volume held at the moment when that began, with the guest's file systems frozen for that moment
        where the guest's agent answers.
      - V(restored) replaces the content by that of O(archive), once. The archive is compared with its sha256 first.
        In check mode it may be in use; RV(used_by) says by what.
    type: str
    choices: [present, absent, backed_up, restored]
    default: present
  format:
    description: What is in the file.
    type: str
    choices: [raw, qcow2]
    default: qcow2
  size:
    description:
      - Like V(10GiB). Needed for data volumes and logical volumes.
      - Of a system disk at least the image's, which is the default.
    type: str
  owner:
    description: The unix user that QEMU runs as.
    type: str
    default: root
  adopt:
    description:
      - Whether a data volume that belongs to another user is given to O(owner), as when its VM comes back in another
        slot. Only in a directory that root alone can write, and not while a VM runs with it.
    type: bool
    default: false
  mode:
    description: The mode, as octal digits in quotes.
    type: str
    default: "0600"
  image:
    description: The disk image that a system disk is made from.
    type: str
  image_format:
    description: What is in O(image).
    type: str
    choices: [raw, qcow2]
    default: qcow2
  copy:
    description: Whether a system disk is a copy of its image. By default it is a layer over it, which is made at once.
    type: bool
    default: false
  recreate:
    description: Whether a system disk that was made from another image is replaced, with all that it holds.
    type: str
    choices: [never, image_changed]
    default: never
  volume_group:
    description: LVM's volume group, for O(path) C(/dev/<group>/<name>).
    type: str
  delete_data:
    description: The word without which no data volume is removed.
    type: bool
    default: false
  archive:
    description:
      - A file in a directory that only root can write, and O(owner) can pass when the VM runs. Its sha256 is beside it,
        with C(.sha256) appended, and how it was made, with C(.json).
    type: str
  backup_seconds:
    description: After how many seconds a backup of a volume whose VM runs is given up.
    type: int
    default: 43200
  restore_again:
    description: Whether O(archive) is restored although it was the last that was.
    type: bool
    default: false
  restore_word:
    description: Another word restores the O(archive) that was restored last again, once.
    type: str
    default: ""
  uri:
    description: Which libvirt.
    type: str
    default: qemu:///system
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Shows size, format, rights and origin before and after.
    support: full
requirements:
  - qemu-img (Debian's qemu-utils)
  - libvirt-python (Debian's python3-libvirt), in this Python or the system's
"""

EXAMPLES = r"""
- name: Make a system disk
  clachan.platform.volume:
    path: /var/lib/clachan/slots/s003/var/system.qcow2
    kind: system
    image: /var/lib/clachan/images/0f3a/disk.qcow2
    size: 20GiB
    owner: clachan_003

- name: Make a data volume
  clachan.platform.volume:
    path: /var/lib/clachan/slots/s003/var/data.raw
    format: raw
    size: 100GiB
    owner: clachan_003

- name: Save it
  clachan.platform.volume:
    path: /var/lib/clachan/slots/s003/var/data.raw
    format: raw
    owner: clachan_003
    state: backed_up
    archive: /srv/backup/data-2031-05-01.qcow2
"""

RETURN = r"""
capacity:
  description: How many bytes the guest sees; 0 when it is absent.
  returned: success
  type: int
actions:
  description: What was done, in order, or in check mode would be.
  returned: success
  type: list
  elements: str
sha256:
  description: Of the archive.
  returned: for V(backed_up), unless in check mode, and V(restored)
  type: str
consistency:
  description:
    - How the archive was made. V(stopped) with no VM running, V(frozen) with the guest's file systems frozen, V(crash)
      of a running VM without that, so it is as after a loss of power.
  returned: for V(backed_up), unless in check mode
  type: str
saved_size:
  description: How many bytes a guest sees of the archive.
  returned: for V(backed_up), unless in check mode
  type: int
used_by:
  description: The domain that runs with the volume; empty for none.
  returned: for V(restored)
  type: str
"""

import os
import pwd
import re
from functools import partial

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import volume_archive
from ansible_collections.clachan.platform.plugins.module_utils.domain import check, check_path
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import (
    URI,
    HypervisorError,
    folder_locked,
    libvirt,
    locked,
)
from ansible_collections.clachan.platform.plugins.module_utils.volume import FileVolume, size_of, size_text
from ansible_collections.clachan.platform.plugins.module_utils.volume_block import Device, LogicalVolume
from ansible_collections.clachan.platform.plugins.module_utils.volume_use import Use

OPTIONS = {
    "path": {"type": "str", "required": True},
    "kind": {"type": "str", "choices": ["file", "system", "block"], "default": "file"},
    "state": {"type": "str", "choices": ["present", "absent", "backed_up", "restored"], "default": "present"},
    "format": {"type": "str", "choices": ["raw", "qcow2"], "default": "qcow2"},
    "size": {"type": "str"},
    "owner": {"type": "str", "default": "root"},
    "adopt": {"type": "bool", "default": False},
    "mode": {"type": "str", "default": "0600"},
    "image": {"type": "str"},
    "image_format": {"type": "str", "choices": ["raw", "qcow2"], "default": "qcow2"},
    "copy": {"type": "bool", "default": False},
    "recreate": {"type": "str", "choices": ["never", "image_changed"], "default": "never"},
    "volume_group": {"type": "str"},
    "delete_data": {"type": "bool", "default": False},
    "archive": {"type": "str"},
    "backup_seconds": {"type": "int", "default": 43200},
    "restore_again": {"type": "bool", "default": False},
    "restore_word": {"type": "str", "default": ""},
    "uri": {"type": "str", "default": URI},
}
NEEDED = [("state", "backed_up", ["archive"]), ("state", "restored", ["archive"]), ("kind", "system", ["image"])]


class Volume:
    """What the kinds of volumes have in common: `before`, the verbs of the states, and what was done."""

    def __init__(self, params, check, use):
        self._params, self._check, self._use = params, check, use
        self.path = check_path("volume", params["path"])
        self._size = params["size"] and size_of(params["size"])
        if not re.fullmatch(r"0?[0-7]{3}", params["mode"]):
            raise HypervisorError("mode %r: expected three octal digits like 0600" % params["mode"])
        self._mode = int(params["mode"], 8)
        self.actions, self.facts, self._after = [], {}, None
        self._owner = _user(params["owner"])
        self._disk = self._make_disk(self._owner)
        self.before = self._disk.look()
        self._after = dict(self.before) if self.before else None

    def run(self):
        getattr(self, "_" + self._params["state"])()
        size = self._after["size"] if self._after else 0
        difference = {"before": _shown(self.before), "after": _shown(self._after)}
        facts = dict(self.facts, capacity=size, actions=self.actions)
        return dict(facts, changed=bool(self.actions), diff=difference)

    def _do(self, action, verb, *arguments):
        self.actions.append(action)
        if not self._check:
            verb(*arguments)

    def _need_size(self):
        if not self._size:
            raise HypervisorError("volume %s: no size, expected one like 10GiB" % self.path)

    def _refuse_use(self, what):
        """Raise HypervisorError when a VM runs with it."""
        name = self._use.running(self.path)
        if name:
            raise HypervisorError(
                "volume %s: used by domain %s, which runs, expected it stopped to be %s" % (self.path, name, what)
            )

    def _grow(self, size):
        if size < self.before["size"]:
            raise HypervisorError(
                "volume %s: size %s, expected at least %s, as no volume is made smaller"
                % (self.path, size_text(size), size_text(self.before["size"]))
            )
        if size > self.before["size"]:
            grow = self._disk.grow if not self._use.running(self.path) else self._grow_live
            self._do("grown", grow, size)
            self._after["size"] = size

    def _grow_live(self, size):
        self._use.resize(self.path, size)

    def _absent(self):
        if self.before is None:
            return
        if self._params["kind"] != "system" and not self._params["delete_data"]:
            raise HypervisorError("volume %s: may hold data, expected delete_data: true to remove it" % self.path)
        self._refuse_use("removed")
        self._do("removed", self._disk.remove)
        self._after = None


class Files(Volume):
    """Data volumes in files, and what system disks have of them."""

    def _make_disk(self, owner):
        return FileVolume(self.path, owner, self._params["format"], self._params["adopt"])

    def _present(self):
        self._need_size()
        if self.before is None:
            self._refuse_other_format()
            self._do("created", self._disk.create, self._size, self._mode)
            self._made(self._size, None)
            return
        if self.before["backing"]:
            raise HypervisorError(
                "volume %s: a layer over %s, expected a volume that stands alone" % (self.path, self.before["backing"])
            )
        self._keep_owner()
        self._grow(self._size)
        self._keep_mode()

    def _refuse_other_format(self):
        """An empty volume would stand in for one that is there, named like it but for its format."""
        stem, end = os.path.splitext(self.path)
        other = "%s.%s" % (stem, {".raw": "qcow2", ".qcow2": "raw"}.get(end))
        if end in (".raw", ".qcow2") and os.path.lexists(other):
            raise HypervisorError("volume %s: there as %s, expected the same format" % (self.path, other))

    def _made(self, size, backing):
        self._after = {"size": size or 0, "mode": "%04o" % self._mode, "backing": backing}

    def _keep_owner(self):
        if self.before["owner"] is not None:
            self._refuse_use("given to %s" % self._owner.pw_name)
            self._do("given to %s" % self._owner.pw_name, self._disk.give)
            self._after["owner"] = self._owner.pw_uid

    def _keep_mode(self):
        mode = "%04o" % self._mode
        if self.before["mode"] != mode:
            self._do("mode set", self._disk.set_mode, self._mode)
            self._after["mode"] = mode

    def _backed_up(self):
        archive = check_path("archive", self._params["archive"])
        still_to_be_made = self._check and not os.path.isdir(os.path.dirname(archive))
        noted = None if still_to_be_made else volume_archive.noted_sum(archive)
        if noted is None:
            if self.before is None and not self._check:
                raise HypervisorError("volume %s: nothing there, expected a volume to save" % self.path)
            self.actions.append("saved")
            noted = None if self._check else self._save(archive)
        if noted:
            known = volume_archive.known_of(archive)
            self.facts.update(sha256=noted, consistency=known.get("consistency"), saved_size=known.get("size"))

    def _save(self, archive):
        if not self._use.running(self.path):
            return volume_archive.write(archive, self._save_at_rest, self._disk.used())
        with locked(self._use.lock(self.path)):
            backup = self._use.backup(self.path, self._params["backup_seconds"])
            backup.end_leftover()
            return volume_archive.write(archive, partial(self._save_live, backup), self._disk.used())

    def _save_at_rest(self, _path, handle):
        self._disk.save(handle)
        return "stopped"

    def _save_live(self, backup, path, handle):
        self._disk.prepare(handle, self.before["size"])
        return backup.write(path)

    def _restored(self):
        archive = check_path("archive", self._params["archive"])
        noted = volume_archive.noted_sum(archive)
        word = check("restore_word", self._params["restore_word"], r"[\w.:+-]{0,64}", "letters, digits and . : + - _")
        note = " ".join(filter(None, (noted, word)))
        self.facts["used_by"] = self._use.running(self.path) or ""
        if noted and self.before and self._disk.origin() == note and not self._params["restore_again"]:
            self.facts["sha256"] = noted
            return
        if not self._check:  # who asks what would be done can stop it before
            self._refuse_use("restored")
        self.facts["sha256"] = volume_archive.checked_sum(archive)
        size = self._restored_size(archive)
        volume_archive.refuse_lack_of_space("volume", self.path, os.stat(archive).st_blocks * 512)
        self._do("restored", self._disk.load, archive, self._mode, note, size)
        if not self._check:
            self._after = self._disk.look()

    def _restored_size(self, archive):
        """The size that is asked for, when it is more than the archive has; else None."""
        size = volume_archive.size_in(archive)
        if self._size and self._size < size:
            raise HypervisorError(
                "volume %s: size %s, expected at least %s, which the archive has"
                % (self.path, size_text(self._size), size_text(size))
            )
        return self._size if self._size != size else None


class System(Files):
    """System disks."""

    def _present(self):
        image = check_path("image", self._params["image"])
        if self.before is None:
            self._create("created", image)
            return
        made_from = self.before["backing"] or self._disk.origin()
        if made_from == image:
            self._grow(self._size or self.before["size"])
            self._keep_mode()
        elif self._params["recreate"] == "image_changed":
            self._refuse_use("made anew")
            self._create("made anew", image)
        else:
            raise HypervisorError(
                "volume %s: made from %s, expected %s, or recreate: image_changed"
                % (self.path, made_from or "no image that is known", image)
            )

    def _create(self, action, image):
        if not os.path.isfile(image) and not self._check:
            raise HypervisorError("image %s: nothing there, expected a disk image" % image)
        if self._params["format"] != "qcow2" and not self._params["copy"]:
            raise HypervisorError(
                "format %s: of a layer over an image, expected qcow2 or copy: true" % self._params["format"]
            )
        size, copy = self._image_size(image), self._params["copy"]
        self._do(action, self._disk.create_from, image, self._params["image_format"], self._size, self._mode, copy)
        self._made(self._size or size, None if copy else image)

    def _image_size(self, image):
        """The image's virtual size; 0 in check mode when it is not there."""
        if not os.path.isfile(image):
            return 0
        owner = pwd.getpwuid(os.stat(image).st_uid)
        size = FileVolume(image, owner, self._params["image_format"]).look()["size"]
        if self._size and self._size < size:
            raise HypervisorError(
                "volume %s: size %s, expected at least %s, which the image has"
                % (self.path, size_text(self._size), size_text(size))
            )
        return size


class Blocks(Volume):
    """Devices and logical volumes."""

    def _make_disk(self, owner):
        self._owner = owner
        group = self._params["volume_group"]
        return LogicalVolume(self.path, owner, group) if group else Device(self.path, owner)

    def _present(self):
        if self._params["volume_group"]:
            self._need_size()
        if self.before is None:
            self._do("created", self._disk.create, self._size)
            self._after = {"size": self._size or 0, "mode": None, "owner": None}
        elif self._size:
            self._grow(self._size)
        wanted = {"mode": "%04o" % self._mode, "owner": self._owner.pw_uid}
        if any(self._after[key] != value for key, value in wanted.items()):
            self._do("given to %s" % self._owner.pw_name, self._disk.give, self._mode)
            self._after.update(wanted)

    def _grow_live(self, size):
        self._disk.grow(size)
        super()._grow_live(size)

    def _refuse_state(self):
        raise HypervisorError(
            "state %s of volume %s: of a block device, expected present or absent" % (self._params["state"], self.path)
        )

    _backed_up = _restored = _refuse_state


def _user(name):
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise HypervisorError("owner %r: expected a user of this machine" % name) from None


def _shown(found):
    if found is None:
        return {}
    known = {key: value for key, value in found.items() if value is not None}
    return dict(known, size=size_text(found["size"]))


def main():
    module = AnsibleModule(argument_spec=OPTIONS, required_if=NEEDED, supports_check_mode=True)
    kinds = {"file": Files, "system": System, "block": Blocks}
    try:
        binding = libvirt()
        try:
            with folder_locked(check_path("volume", module.params["path"])):
                use = Use(binding, module.params["uri"])
                result = kinds[module.params["kind"]](module.params, module.check_mode, use).run()
        except binding.libvirtError as problem:
            raise HypervisorError("volume %s: %s" % (module.params["path"], problem)) from None
    except (HypervisorError, OSError) as problem:
        module.fail_json(msg=str(problem))
    difference = result.pop("diff")
    if module._diff:
        result["diff"] = difference
    module.exit_json(**result)


if __name__ == "__main__":
    main()
