# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A root file system as a disk to boot from, and back.

One MBR partition with ext4, labelled `root`, and extlinux. The file system is made at its place in the file, and the
loop device for extlinux begins there: so no kernel needs to read the partition table, which some cannot, and the
device goes with its mount.
"""

from __future__ import annotations

import os

from ansible_collections.clachan.platform.plugins.module_utils.image_process import BuildError, require, run

START = 2048 * 512
"""Bytes before the partition."""
MBR = "/usr/lib/EXTLINUX/mbr.bin"
MBR_BYTES = 440
TABLE = "label: dos\nstart=2048, type=83, bootable\n"
ROOM = 96 << 20
"""Bytes of a disk that files cannot have: tables of the file system, its journal."""
# zstd makes a third of the size in twice the time of none; zlib takes ten times as long
COMPRESSED = ["-c", "-o", "compression_type=zstd"]


def make_raw(tree, path, size):
    """Write the root file system of a `Tree` to a disk of `size` bytes at `path`."""
    require("mkfs.ext4", "sfdisk", "extlinux")
    if not os.path.exists(MBR):
        raise BuildError("file %s: missing, expected it (Debian: extlinux)" % MBR)
    used = int(tree.run("du", "-xsk", tree.root).split()[0]) << 10
    if used + ROOM > size:
        needed = (used + ROOM >> 20) + 1
        raise BuildError("size of the recipe: %dMiB, expected at least %dMiB for its files" % (size >> 20, needed))
    with open(path, "wb") as file:
        file.truncate(size)
    tree_run = tree.run
    run(tree.outside("sfdisk", "--quiet", path), text=TABLE)
    options = ["-q", "-F", "-O", "^64bit", "-L", "root", "-E", "lazy_itable_init=1,offset=%d" % START]
    tree_run("mkfs.ext4", *options, "-d", tree.root, path, str((size - START) >> 10))
    mounted = os.path.join(tree.folder, "mounted")
    os.mkdir(mounted)
    mount(tree, path, mounted, "rw")
    tree_run("extlinux", "--install", os.path.join(mounted, "boot", "extlinux"))
    tree_run("umount", mounted)
    with open(MBR, "rb") as code, open(path, "r+b") as disk:
        disk.write(code.read(MBR_BYTES))


def mount(tree, disk, folder, mode):
    """Mount the first partition of a raw disk in the tree's namespaces."""
    options = "loop,%s,offset=%d,sizelimit=%d" % (mode, START, os.path.getsize(disk) - START)
    tree.run("mount", "-t", "ext4", "-o", options, disk, folder)


def convert(source, source_format, target, target_format):
    """Write a disk in another format, without the blocks that nothing is in."""
    require("qemu-img")
    options = COMPRESSED if target_format == "qcow2" else []
    run(["qemu-img", "convert", "-f", source_format, "-O", target_format, *options, source, target])
