# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of a machine: a folder, by the sha256 of the disk's bytes.

    <store>/<sha256>/disk.qcow2 (or disk.raw)   never changed
    <store>/<sha256>/manifest.json
    <store>/recipes/<recipe digest>             the sha256 of the image that the recipe gave; written last
    <store>/cache/<what>-<digest>/              root file systems that builders keep
    <store>/.partial-<random>/                  work in progress
    <store>/.locks/<what>                       whoever works holds one of these

A folder of work is locked by its worker for as long as that lives, so what a kill left is known by its lock being free.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile

from ansible_collections.clachan.platform.plugins.module_utils import layout
from ansible_collections.clachan.platform.plugins.module_utils.file_content import digest_of, sync

FORMAT = 1
FORMATS = ("qcow2", "raw")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
PARTIAL = ".partial-"
MANIFEST = {
    "format": int,
    "name": str,
    "sha256": str,
    "size": int,
    "virtual_size": int,
    "disk_format": str,
    "recipe_digest": (str, type(None)),
    "recipe": (dict, type(None)),
    "packages": dict,
    "builder": str,
    "created": str,
}
BLOCK = 1 << 20


class ImageStoreError(Exception):
    """What is wrong in a store, as "<what> <which>: <value>, expected <what>"."""


class ImageStore:
    """The images below one folder."""

    def __init__(self, path):
        self.path = os.path.abspath(path)

    # -- what is there -----------------------------------------------------------------------------------------------

    def get(self, sha256):
        """The manifest of an image; None when it is not there. Raises ImageStoreError when it is damaged."""
        path = os.path.join(self.folder(sha256), "manifest.json")
        try:
            with open(path, encoding="utf-8") as file:
                manifest = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ImageStoreError("manifest %s: no JSON (%s), expected a manifest" % (path, error)) from error
        check_manifest(manifest, path)
        if manifest["sha256"] != sha256:
            raise ImageStoreError("manifest %s: sha256 %s, expected %s" % (path, manifest["sha256"], sha256))
        return manifest

    def find(self, recipe_digest):
        """The manifest of the image that a recipe gave here; None when there is none."""
        try:
            with open(self._recipe(recipe_digest), encoding="ascii") as file:
                sha256 = file.read().strip()
        except FileNotFoundError:
            return None
        manifest = self.get(sha256) if SHA256.match(sha256) else None
        return manifest if manifest and self._whole(manifest) else None

    def _whole(self, manifest):
        """Whether a disk of the manifest's size is there."""
        disk = os.path.join(self.folder(manifest["sha256"]), "disk." + manifest["disk_format"])
        return os.path.isfile(disk) and os.path.getsize(disk) == manifest["size"]

    def list(self):
        """All manifests, the oldest first."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        found = [manifest for name in names if SHA256.match(name) for manifest in [self.get(name)] if manifest]
        return sorted(found, key=lambda manifest: (manifest["created"], manifest["sha256"]))

    def folder(self, sha256):
        if not isinstance(sha256, str) or not SHA256.match(sha256):
            raise ImageStoreError("image %r: expected the sha256 of its disk, 64 hexadecimal digits" % (sha256,))
        return os.path.join(self.path, sha256)

    def disk(self, sha256):
        """The path of an image's disk. Raises ImageStoreError when there is no such image."""
        manifest = self.get(sha256)
        if manifest is None:
            raise ImageStoreError("image %s: not in the store %s, expected it there" % (sha256, self.path))
        return os.path.join(self.folder(sha256), "disk." + manifest["disk_format"])

    def verify(self, sha256):
        """Read the whole disk again. Raises ImageStoreError when it is not what its name says."""
        disk = self.disk(sha256)
        found = digest_of(disk)
        if found != sha256:
            raise ImageStoreError("image %s: its disk's sha256 is %s, expected %s" % (disk, found, sha256))

    # -- changes -----------------------------------------------------------------------------------------------------

    def add(self, disk, manifest):
        """Move a disk into the store; returns its manifest, completed. `disk` is below the store, or is copied.

        `manifest` needs name, virtual_size, disk_format and builder; its sha256, when given, must be the disk's.
        """
        self.make()
        found = digest_of(disk)
        if manifest.get("sha256") not in (None, found):
            raise ImageStoreError("disk %s: sha256 %s, expected %s" % (disk, found, manifest["sha256"]))
        whole = self._complete(manifest, found, os.path.getsize(disk))
        with self.lock():
            present = self.get(found)
            if present is None or not self._whole(present):
                self._place(disk, whole)
            whole = self.get(found)
            if manifest.get("recipe_digest"):
                os.makedirs(os.path.join(self.path, "recipes"), 0o755, exist_ok=True)
                layout.write_file(self._recipe(manifest["recipe_digest"]), found.encode() + b"\n", 0o644)
        return whole

    def _complete(self, manifest, sha256, size):
        whole = dict({"recipe_digest": None, "recipe": None, "packages": {}, "created": now()}, **manifest)
        whole.update(format=FORMAT, sha256=sha256, size=size)
        check_manifest(whole, "of %s" % whole.get("name"))
        return whole

    def _place(self, disk, manifest):
        """Both files in a folder beside, then one rename."""
        with self.partial() as folder:
            image = os.path.join(folder, "image")
            os.mkdir(image, 0o755)
            target = os.path.join(image, "disk." + manifest["disk_format"])
            move(disk, target, self.path)
            os.chmod(target, 0o444)
            text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
            layout.write_file(os.path.join(image, "manifest.json"), text.encode(), 0o644)
            for path in (target, os.path.join(image, "manifest.json"), image):
                sync(path)
            final = self.folder(manifest["sha256"])
            if os.path.isdir(final):  # without its disk or its manifest: nothing that anybody could use
                shutil.rmtree(final)
            os.rename(image, final)
            sync(self.path)

    def remove(self, sha256):
        """Remove an image and what recipes say of it; returns whether it was there."""
        folder = self.folder(sha256)
        if not os.path.isdir(folder):
            return False
        with self.lock(), self.partial() as bin_:
            for digest in self._recipes_of(sha256):
                os.unlink(self._recipe(digest))
            if not os.path.isdir(folder):
                return False
            os.rename(folder, os.path.join(bin_, sha256))
        return True

    def _recipes_of(self, sha256):
        found = []
        with contextlib.suppress(FileNotFoundError):
            for digest in os.listdir(os.path.join(self.path, "recipes")):
                if SHA256.match(digest):
                    with open(self._recipe(digest), encoding="ascii") as file:
                        found += [digest] if file.read().strip() == sha256 else []
        return found

    def _recipe(self, digest):
        if not SHA256.match(digest):
            raise ImageStoreError("recipe digest %r: expected 64 hexadecimal digits" % digest)
        return os.path.join(self.path, "recipes", digest)

    # -- work in progress --------------------------------------------------------------------------------------------

    def make(self):
        for folder in (self.path, os.path.join(self.path, ".locks")):
            if not os.path.isdir(folder):
                os.makedirs(folder, 0o755, exist_ok=True)

    @contextlib.contextmanager
    def lock(self, what="store"):
        """Hold one of the store's locks: `store` for short changes, others for one long work each."""
        self.make()
        with open(os.path.join(self.path, ".locks", what), "a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def partial(self):
        """A folder for work in progress; it and all in it is gone at the end."""
        self.make()
        with self.lock("partial"):  # between its making and its lock it would look like a leftover
            folder = tempfile.mkdtemp(dir=self.path, prefix=PARTIAL)
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def clean(self):
        """Remove what killed work left; returns the removed paths."""
        self.make()
        removed = []
        with self.lock("partial"):
            for name in sorted(os.listdir(self.path)):
                path = os.path.join(self.path, name)
                if name.startswith(PARTIAL) and os.path.isdir(path) and is_free(path):
                    shutil.rmtree(path)
                    removed.append(path)
        return removed


def is_free(folder):
    """Whether nobody who lives holds a lock on a folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def check_manifest(manifest, where):
    """Raises ImageStoreError when a document is no manifest of this format."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ImageStoreError("manifest %s: format %s, expected %d" % (where, found, FORMAT))
    for key, kind in MANIFEST.items():
        value = manifest.get(key)
        if key not in manifest or not isinstance(value, kind) or isinstance(value, bool):
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise ImageStoreError("manifest %s: %s %r, expected %s" % (where, key, value, names))
    if manifest["disk_format"] not in FORMATS:
        formats = " or ".join(FORMATS)
        raise ImageStoreError("manifest %s: disk_format %r, expected %s" % (where, manifest["disk_format"], formats))
    for key in ("sha256", "recipe_digest"):
        if manifest[key] is not None and not SHA256.match(manifest[key]):
            raise ImageStoreError("manifest %s: %s %r, expected 64 hexadecimal digits" % (where, key, manifest[key]))


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def move(source, target, store):
    """Rename a file that lies in the store; copy any other, keeping holes."""
    if os.path.realpath(source).startswith(os.path.realpath(store) + os.sep):
        os.rename(source, target)
        return
    with open(source, "rb") as reader, open(target, "wb") as writer:
        copy_sparsely(reader, writer)


def copy_sparsely(reader, writer):
    size = os.fstat(reader.fileno()).st_size
    writer.truncate(size)
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(reader.fileno(), offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(reader.fileno(), offset, os.SEEK_HOLE)
        while offset < end:
            data = os.pread(reader.fileno(), min(BLOCK, end - offset), offset)
            os.pwrite(writer.fileno(), data, offset)
            offset += len(data)
