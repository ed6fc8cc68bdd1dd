# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that are VMs' disks: data volumes, and system disks made from images.

Invariants. A file that exists belongs to the volume's owner, is no link, and is never made smaller; nothing that holds
data is replaced unless a restore says so. What a guest or a QEMU that was taken over could have written into a qcow2
header is read here by hand, and qemu-img opens such a file only as the user that could write it. Every new file is made
beside the old one, synced, and put in its place in one step; `.<name>.new` is a run that was killed.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import subprocess

from ansible_collections.clachan.platform.plugins.module_utils.domain import is_roots_alone
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError
from ansible_collections.clachan.platform.plugins.module_utils.user_process import UserProcessError, as_user

UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
MAGIC = b"QFI\xfb"
HEADER = ">4sIQIIQIIQQIIQ"
EXTERNAL_DATA = 4
SECONDS = 12 * 3600


def size_of(text):
    """Bytes of "10GiB"; raises HypervisorError for any other form."""
    match = re.fullmatch(r"([1-9]\d{0,5})\s?(MiB|GiB|TiB)", text)
    if not match:
        raise HypervisorError("size %r: expected a number and MiB, GiB or TiB" % text)
    return int(match.group(1)) * UNITS[match.group(2)]


def size_text(size):
    """The shortest exact form of a size."""
    for unit in ("TiB", "GiB", "MiB"):
        if size and size % UNITS[unit] == 0:
            return "%d%s" % (size // UNITS[unit], unit)
    return "%d bytes" % size


def read_header(what, file):
    """(virtual size, path of the backing file or None) in the header of an open qcow2 file.

    Raises HypervisorError for what is none, or leads to another file in other ways.
    """
    header = file.read(104)
    if not header.startswith(MAGIC) or len(header) < struct.calcsize(HEADER):
        raise HypervisorError("%s: not qcow2, expected format qcow2" % what)
    _magic, version, offset, length, _bits, size, encrypted = struct.unpack_from(HEADER, header)[:7]
    features = struct.unpack_from(">Q", header, 72)[0] if version == 3 and len(header) >= 80 else 0
    if features & EXTERNAL_DATA or encrypted:
        raise HypervisorError("%s: has an external data file or a key, expected a plain qcow2" % what)
    if not offset:
        return size, None
    file.seek(offset)
    return size, file.read(min(length, 1023)).decode("utf-8", "replace")


class FileVolume:
    """One file, by its path, the user that it belongs to, and the format that is in it."""

    def __init__(self, path, owner, disk_format, adopt=False):
        """owner: the entry of the user in the password database; adopt: whether one of another user may be its."""
        self.path, self.format, self._owner = path, disk_format, owner
        folder, name = os.path.split(path)
        self.beside, self._note = (os.path.join(folder, ".%s.%s" % (name, end)) for end in ("new", "origin"))
        # in root's own directory nobody else can put a link, and nobody else can write
        self._root = is_roots_alone(path) and os.geteuid() == 0
        self._actor = 0 if self._root else owner.pw_uid
        # a raw file has no header that could lead root anywhere
        self._reader = self._actor if disk_format == "raw" else owner.pw_uid
        self._adopt = adopt and self._root

    def look(self):
        """{size, mode, owner (None: the right one), backing} of what is there; None for nothing.

        Raises HypervisorError for what is not ours.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as problem:
            kind = "a link" if os.path.islink(self.path) else problem.strerror
            raise HypervisorError("volume %s: %s, expected a regular file" % (self.path, kind)) from None
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            self._refuse(found)
            size, backing = found.st_size, None
            if self.format == "qcow2":
                size, backing = read_header("volume %s" % self.path, file)
        mode = "%04o" % stat.S_IMODE(found.st_mode)
        owner = None if found.st_uid == self._owner.pw_uid else found.st_uid
        return {"size": size, "mode": mode, "owner": owner, "backing": backing}

    def _refuse(self, found):
        if not stat.S_ISREG(found.st_mode):
            raise HypervisorError("volume %s: no regular file, expected one" % self.path)
        if found.st_uid != self._owner.pw_uid and not self._adopt:
            raise HypervisorError(
                "volume %s: belongs to user %d, expected %d (%s)"
                % (self.path, found.st_uid, self._owner.pw_uid, self._owner.pw_name)
            )

    def origin(self):
        """What was noted beside the volume: what it was made from."""
        try:
            with open(os.open(self._note, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
                return file.read(4096)
        except OSError:
            return None

    def create(self, size, mode):
        """Make an empty one."""
        self._as_actor(lambda: self._fill(["create", "-q", "-f", self.format], [str(size)], mode, replace=False))

    def create_from(self, image, image_format, size, mode, copy):
        """Make one with an image's content: a layer over it, or a copy of it. Replaces what is there."""
        before = [] if copy else ["create", "-q", "-f", self.format, "-b", image, "-F", image_format]
        if copy:
            before = ["convert", "-q", "-f", image_format, "-O", self.format, image]
        after = [str(size)] if size and not copy else []

        def work():
            self._fill(before, after, mode, replace=True, size=size if copy else None)
            self._write_note(image)

        self._as_actor(work)

    def grow(self, size):
        self._with_content(
            os.O_RDWR,
            lambda path, handles: qemu_img(["resize", "-q", "-f", self.format, path, str(size)], handles),
        )

    def set_mode(self, mode):
        self._as_actor(lambda: _chmod(self.path, mode))

    def give(self):
        """Make it the owner's, in a directory that is root's alone."""
        os.chown(self.path, self._owner.pw_uid, self._owner.pw_gid, follow_symlinks=False)

    def remove(self):
        def work():
            for path in (self.path, self.beside, self._note):
                _unlink(path)

        self._as_actor(work)

    def save(self, archive):
        """Write the content, with what stands in its image, to the open file `archive` as qcow2."""
        target = "/proc/self/fd/%d" % archive
        os.fchown(archive, self._reader, -1)
        self._with_content(
            os.O_RDONLY,
            lambda path, handles: qemu_img(
                ["convert", "-q", "-f", self.format, "-O", "qcow2", path, target], [*handles, archive]
            ),
        )

    def prepare(self, archive, size):
        """Make the open file `archive` an empty qcow2 that QEMU can write."""
        qemu_img(["create", "-q", "-f", "qcow2", "/proc/self/fd/%d" % archive, str(size)], [archive])
        os.fchown(archive, self._owner.pw_uid, self._owner.pw_gid)

    def used(self):
        """How many bytes it takes on the disk."""
        return os.lstat(self.path).st_blocks * 512

    def load(self, archive, mode, note, size):
        """Replace the content by that of an archive, a file that only root can write; size: at least so large."""
        self._as_actor(lambda: _unlink(self.beside))
        handle = self._as_actor_open()
        try:
            qemu_img(
                ["convert", "-q", "-f", "qcow2", "-O", self.format, archive, "/proc/self/fd/%d" % handle], [handle]
            )
            os.fsync(handle)
        finally:
            os.close(handle)

        def work():
            if size:
                qemu_img(["resize", "-q", "-f", self.format, self.beside, str(size)])
            self._finish(mode, replace=True)
            self._write_note(note)

        self._as_actor(work)

    def _as_actor_open(self):
        """A descriptor of a new file beside the volume, made by the actor."""
        os.umask(0o077)

        def make():
            os.close(os.open(self.beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))

        self._as_actor(make)
        handle = os.open(self.beside, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != self._actor or found.st_nlink != 1:
            os.close(handle)
            raise HypervisorError("volume %s: replaced while it was made, expected it left alone" % self.beside)
        return handle

    def _with_content(self, flags, work):
        """Call `work(path, descriptors)` as who may be led wherever the content's header leads."""
        if self._reader == self._actor:
            self._as_actor(lambda: work(self.path, []))
            return
        handle = os.open(self.path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._as(self._reader, lambda: work("/proc/self/fd/%d" % handle, [handle]))
        finally:
            os.close(handle)

    def _as_actor(self, work):
        return self._as(self._actor, work)

    def _as(self, uid, work):
        try:
            return as_user(uid, work)
        except UserProcessError as problem:
            raise HypervisorError("volume %s: %s" % (self.path, problem)) from None

    def _fill(self, before, after, mode, replace, size=None):
        _unlink(self.beside)
        qemu_img([*before, self.beside, *after])
        if size:
            qemu_img(["resize", "-q", "-f", self.format, self.beside, str(size)])
        self._finish(mode, replace)

    def _finish(self, mode, replace):
        """Give the new file its owner and mode, make it durable, and put it in its place."""
        with open(self.beside, "rb") as file:
            if self._root:
                os.fchown(file.fileno(), self._owner.pw_uid, self._owner.pw_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if replace:
            os.replace(self.beside, self.path)
        else:
            os.link(self.beside, self.path)  # unlike a rename this never replaces what came meanwhile
            os.unlink(self.beside)
        _sync_folder(self.path)

    def _write_note(self, text):
        temporary = self._note + ".new"
        _unlink(temporary)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            os.fsync(file.fileno())
        os.replace(temporary, self._note)
        _sync_folder(self._note)


def qemu_img(arguments, handles=()):
    """Run qemu-img; raises HypervisorError with what it said."""
    try:
        done = subprocess.run(
            ["qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            pass_fds=list(handles),
        )
    except FileNotFoundError:
        raise HypervisorError("command qemu-img: not found, expected it (Debian: qemu-utils)") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")[-500:]
        raise HypervisorError("qemu-img %s: %s, expected it to succeed" % (arguments[0], said or done.returncode))


def _chmod(path, mode):
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fchmod(handle, mode)
    finally:
        os.close(handle)


def _unlink(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _sync_folder(path):
    handle = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
