# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No two VMs write to one file or device, whatever names they use for it, and none to what the node itself uses."""

from __future__ import annotations

import errno
import os
import stat

from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError


def refuse_conflicts(form, others):
    """Raise HypervisorError when a disk of a domain is another's, or the node's.

    others: the forms of all other domains of this node.
    """
    taken = [(identity, other["name"], disk) for other in others for disk, identity in _identified(other)]
    for disk, identities in _identified(form):
        for theirs, name, other in taken:
            if identities & theirs and not (disk["readonly"] and other["readonly"]):
                raise HypervisorError(
                    "disk %s of domain %s: is %s of domain %s, expected one that no other VM has"
                    % (disk["path"], form["name"], other["path"], name)
                )
    for interface in form["interfaces"]:
        _refuse_interface(form["name"], interface, others)


def refuse_used_devices(form, known):
    """Refuse block devices that the node has mounted or given to something else.

    known: paths of the disks that the domain has already.
    """
    for disk in form["disks"].values():
        if disk["type"] != "block" or disk["path"] in known or disk["readonly"]:
            continue
        try:
            # the kernel lets nobody claim a device that is mounted, swapped to, or part of a RAID or a volume group
            os.close(os.open(disk["path"], os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as problem:
            if problem.errno == errno.EBUSY:
                raise HypervisorError(
                    "disk %s of domain %s: used by this node, expected a device that nothing uses"
                    % (disk["path"], form["name"])
                ) from None


def _refuse_interface(name, interface, others):
    for other in others:
        for theirs in other["interfaces"]:
            same = interface["kind"] == "tap" and theirs["kind"] == "tap" and interface["device"] == theirs["device"]
            if same or interface["mac"] == theirs["mac"]:
                what = "tap %s" % interface["device"] if same else "mac %s" % interface["mac"]
                raise HypervisorError(
                    "%s of domain %s: is domain %s's, expected one that no other VM has" % (what, name, other["name"])
                )


def _identified(form):
    return [(disk, _identities(disk["path"])) for disk in form["disks"].values() if disk["path"]]


def _identities(path):
    """What a path is, whatever it is called: its real path, its inode, its device and the device it is a part of."""
    found = {("path", os.path.realpath(path))}
    try:
        status = os.stat(path)
    except OSError:
        return found
    if stat.S_ISBLK(status.st_mode):
        number = "%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))
        return found | {("device", one) for one in {number} | _parts(number)}
    return found | {("inode", status.st_dev, status.st_ino)}


def _parts(number):
    """The partitions of a disk, as numbers: who has the disk has them too."""
    folder = "/sys/dev/block/%s" % number
    try:
        names = os.listdir(folder)
    except OSError:
        return set()
    files = [
        os.path.join(folder, name, "dev") for name in names if os.path.exists(os.path.join(folder, name, "partition"))
    ]
    return {_text(file) for file in files}


def _text(path):
    with open(path, encoding="utf-8") as file:
        return file.read().strip()
