# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk of a lab's user: a file of the node that holds an ext4 file system, mounted through a loop device.

All of its room is taken from the node when it is made, so who fills theirs takes none from others, and nobody else can
take it from them. In it are directories of the user's: `home`, `tmp` and `log`, and `environments` when there shall be
some; its root is root's.
"""

from __future__ import annotations

import errno
import os
import struct

DIRECTORIES = {"home": 0o700, "tmp": 0o700, "log": 0o700}
SUPERBLOCK = 1024


class LabError(Exception):
    """What is wrong, as "<what> <which>: <value>, expected <what>"."""


class Disk:
    """`run` is called with a command, and gives its status, output and errors."""

    def __init__(self, image, mount, run, check_mode=False):
        self.image, self.mount, self._run, self._check = image, mount, run, check_mode
        self.actions = []

    def present(self, size_mib, uid, gid, more=()):
        """Made, grown and mounted, with `more` directories beside those of all. Raises LabError."""
        size = size_mib << 20
        found = os.stat(self.image).st_size if os.path.exists(self.image) else None
        if found is not None and found > size:
            least = found >> 20
            raise LabError(
                "disk %s: %d MiB, expected at least %d, as it does not shrink" % (self.image, size_mib, least)
            )
        if found is None:
            self._act("made", self._make, size)
        elif found < size or _inside(self.image) < found:
            self._act("grown", self._grow, size)
        elif os.stat(self.image).st_blocks * 512 < size and not self._check:
            self._reserve(self.image, size)  # a block of zeros may have become a hole, which has no room
        if not self.is_mounted():
            self._act("mounted", self._attach)
        if not self._check:
            self._prepare(uid, gid, dict(DIRECTORIES, **dict.fromkeys(more, 0o700)))

    def absent(self):
        """Not mounted any more, whoever still works in it; the image stays."""
        while self.is_mounted():
            self._act("unmounted", self._command, ["umount", "--lazy", self.mount])
            if self._check:
                return
        if os.path.isdir(self.mount) and not self._check:
            os.rmdir(self.mount)

    def is_mounted(self):
        return os.path.ismount(self.mount)

    def _act(self, action, work, *arguments):
        self.actions.append(action)
        if not self._check:
            work(*arguments)

    def _make(self, size):
        make_directories(os.path.dirname(self.image))
        draft = self.image + ".new"
        self._reserve(draft, size, os.O_CREAT | os.O_TRUNC)
        try:
            options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
            self._command(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, draft])
            self._reserve(draft, size)  # it has made holes where it wanted zeros
        except LabError:
            os.unlink(draft)
            raise
        os.rename(draft, self.image)

    def _reserve(self, path, size, flags=0):
        with os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o600), "r+b") as file:
            before = os.fstat(file.fileno()).st_size
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                os.ftruncate(file.fileno(), before)
                if flags:
                    os.unlink(path)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise LabError(
                    "disk %s: no room on the node, expected %d MiB" % (path, (size - before) >> 20)
                ) from None

    def _grow(self, size):
        self._reserve(self.image, size)
        if not self.is_mounted():
            self._attach()
        device = self._device()
        self._command(["losetup", "--set-capacity", device])
        self._command(["resize2fs", device])

    def _attach(self):
        make_directories(self.mount)
        self._command(["mount", "-t", "ext4", "-o", "loop,nosuid,nodev", self.image, self.mount])

    def _device(self):
        name = "%d:%d" % (os.major(os.stat(self.mount).st_dev), os.minor(os.stat(self.mount).st_dev))
        return "/dev/" + os.path.basename(os.readlink("/sys/dev/block/" + name))

    def _prepare(self, uid, gid, directories):
        """The root of the disk is root's, so nobody else can put anything where these are made."""
        left = os.path.join(self.mount, "lost+found")
        if os.path.isdir(left) and not os.listdir(left):
            os.rmdir(left)
        for name, mode in directories.items():
            self._take_back(name)
            path = os.path.join(self.mount, name)
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
                self.actions.append("made " + name)
            if os.stat(path).st_uid != uid:
                os.chown(path, uid, gid)
            os.chmod(path, mode)

    def _take_back(self, name):
        """What a backup was just to take the place of, when that was killed."""
        path = os.path.join(self.mount, name)
        if os.path.isdir(path + ".old") and not os.path.isdir(path):
            os.rename(path + ".old", path)

    def _command(self, command):
        status, _out, err = self._run(command)
        if status:
            raise LabError("command %s: %s, expected success" % (" ".join(command), err.strip() or status))


def make_directories(path):
    """Root's, that others may pass; what is there stays as it is."""
    if not os.path.isdir(path):
        make_directories(os.path.dirname(path))
        os.mkdir(path, 0o711)
        os.chmod(path, 0o711)  # noqa: S103 - others pass, and see nothing


def _inside(image):
    """How many bytes the file system in it says that it has."""
    with open(image, "rb") as file:
        file.seek(SUPERBLOCK)
        head = file.read(28)
    blocks, scale = struct.unpack_from("<I", head, 4)[0], struct.unpack_from("<I", head, 24)[0]
    return blocks << (10 + scale)
