# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder that boots nothing: a root file system, Ansible inside it, and a disk made of it. Needs root.

The root file system of a base is made once, and the agent is installed over it once; both are kept in the store's
cache as layers. A recipe is one more layer over these.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil

from ansible_collections.clachan.platform.plugins.module_utils import image_bootable, image_debian, image_provision
from ansible_collections.clachan.platform.plugins.module_utils.image_process import BuildError, require, run
from ansible_collections.clachan.platform.plugins.module_utils.image_recipe import BASES, collection_digest, size_of
from ansible_collections.clachan.platform.plugins.module_utils.image_store import is_free
from ansible_collections.clachan.platform.plugins.module_utils.image_tree import Tree, is_layer, obstacle

PACKAGES = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${binary:Package} ${Version}\n"]
CACHED = re.compile(r"(debian-12|agent)-[0-9a-f]{64}\Z")


class Bootstrap:
    """`build` gives the disk of a recipe."""

    NAME = "bootstrap"

    def __init__(self, store, setting):
        self._store, self._setting = store, setting
        self._used = []

    def build(self, recipe, folder, stages):
        """Make the disk of a normalized recipe in a folder; returns (its path, the packages in it)."""
        reason = obstacle()
        if reason:
            raise BuildError("builder bootstrap: %s, expected root on Linux" % reason)
        require("qemu-img", "mkfs.ext4", "extlinux")
        work = os.path.join(folder, "recipe")
        os.mkdir(work)
        try:
            with Tree(work, recipe["name"]) as tree:
                return self._build(tree, recipe, folder, stages)
        finally:
            while self._used:
                os.close(self._used.pop())

    def _build(self, tree, recipe, folder, stages):
        self._lay(tree, recipe, folder, stages)
        if image_provision.has_content(recipe):
            with stages.stage("recipe"):
                self._provision(tree, stages, image_provision.play(recipe), recipe["playbooks"])
        packages = installed_packages(run(tree.outside("chroot", tree.root, *PACKAGES)))
        return self._disk(tree, recipe, folder, stages), packages

    def _lay(self, tree, recipe, folder, stages):
        if recipe["base"] in BASES:
            tree.mount_layers(self.layers(recipe["agent"], folder, stages))
            return
        with stages.stage("base image"):
            lower = self._base_image(tree, recipe["base"])
        tree.mount_layers([lower])

    def _base_image(self, tree, sha256):
        """The root file system of an image in the store, mounted."""
        manifest = self._store.get(sha256)
        if manifest is None:
            raise BuildError("base of the recipe: %s is not in %s, expected it there" % (sha256, self._store.path))
        if manifest["builder"] == "import":
            raise BuildError("base of the recipe: %s was imported, expected an image from a recipe, or packer" % sha256)
        raw = os.path.join(tree.folder, "base.raw")
        image_bootable.convert(self._store.disk(sha256), manifest["disk_format"], raw, "raw")
        lower = os.path.join(tree.folder, "base")
        os.mkdir(lower)
        image_bootable.mount(tree, raw, lower, "ro,noload")
        return lower

    def _disk(self, tree, recipe, folder, stages):
        with stages.stage("disk"):
            raw = os.path.join(folder, "disk.raw")
            image_bootable.make_raw(tree, raw, size_of(recipe["size"]))
            if recipe["format"] == "raw":
                return raw
            disk = os.path.join(folder, "disk.qcow2")
            image_bootable.convert(raw, "raw", disk, "qcow2")
            os.unlink(raw)
            return disk

    # -- layers that are kept ----------------------------------------------------------------------------------------

    def layers(self, agent, folder, stages):
        """The folders of the base's layers, the uppermost first; made when they are missing."""
        base_digest = image_debian.base_digest(self._setting.guest)
        base = self._cached("debian-12", base_digest, lambda: self._make_base(folder, stages))
        if not agent:
            return [base]
        parts = json.dumps([base_digest, collection_digest(self._setting.collection)])
        digest = hashlib.sha256(parts.encode()).hexdigest()
        layer = self._cached("agent", digest, lambda: self._make_agent(base, folder, stages))
        return [layer, base] if is_layer(layer) else [layer]

    def _cached(self, what, digest, make):
        cache = os.path.join(self._store.path, "cache")
        os.makedirs(cache, 0o755, exist_ok=True)
        kept = os.path.join(cache, "%s-%s" % (what, digest))
        with self._store.lock(what):
            if not os.path.isdir(kept):
                os.rename(make(), kept)
                self._prune(cache, what, kept)
            self._used.append(os.open(kept, os.O_RDONLY | os.O_CLOEXEC))
            fcntl.flock(self._used[-1], fcntl.LOCK_SH)
        return kept

    def _prune(self, cache, what, kept):
        """One root file system of a kind: those of earlier contents would only fill the disk, unless one is in use."""
        for name in os.listdir(cache):
            if CACHED.match(name) and name.startswith(what + "-") and name != os.path.basename(kept):
                if is_free(os.path.join(cache, name)):
                    shutil.rmtree(os.path.join(cache, name))

    def _make_base(self, folder, stages):
        with stages.stage("root file system of debian-12"):
            work = os.path.join(folder, "debian-12")
            os.mkdir(work)
            root = os.path.join(work, "root")
            image_debian.make_base(root, work, self._setting.guest)
            run(["chroot", root, "sh", "-c", image_provision.CLEAN])
            return root

    def _make_agent(self, base, folder, stages):
        with stages.stage("agent"):
            work = os.path.join(folder, "agent")
            os.mkdir(work)
            with Tree(work) as tree:
                tree.mount_layers([base])
                self._provision(tree, stages, image_provision.AGENT_PLAY, [])
                return tree.keep_layer()

    # -- Ansible inside ----------------------------------------------------------------------------------------------

    def _provision(self, tree, stages, play, playbooks):
        tree.prepare(image_provision.build_needs(self._setting.environment)[1])
        run(tree.outside("tee", tree.root + image_provision.POLICY), text=image_provision.POLICY_TEXT)
        tree.run("chmod", "755", tree.root + image_provision.POLICY)
        ansible = self._setting.ansible(os.path.join(tree.folder, "ansible"))
        first = ansible.write_play("play.json", play)
        ansible.run(tree.inside(), [first, *playbooks], stages.tell)
        run(tree.inside("sh", "-c", image_provision.CLEAN))
        tree.release()


def installed_packages(listed):
    """Name -> version of what dpkg-query lists as installed."""
    lines = (line.split() for line in listed.splitlines())
    return {words[1]: words[2] for words in lines if len(words) == 3 and words[0].startswith("ii")}
