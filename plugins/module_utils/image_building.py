# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module `image` does: an image of a recipe, or of a disk of the user's own, is in a store, or is not.

A builder is an object with `build(recipe, folder, stages)`, which makes the disk of a normalized recipe in the folder
and gives (the path of the disk, {package: version}).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil

from ansible_collections.clachan.platform.plugins.module_utils import disk_image, image_recipe, image_tree
from ansible_collections.clachan.platform.plugins.module_utils.home import home
from ansible_collections.clachan.platform.plugins.module_utils.image_bootstrap import Bootstrap
from ansible_collections.clachan.platform.plugins.module_utils.image_packer import Packer
from ansible_collections.clachan.platform.plugins.module_utils.image_process import BuildError, Stages, explain, find
from ansible_collections.clachan.platform.plugins.module_utils.image_provision import Setting
from ansible_collections.clachan.platform.plugins.module_utils.file_content import digest_of
from ansible_collections.clachan.platform.plugins.module_utils.image_store import (
    ImageStore,
    ImageStoreError,
)

COLLECTION_PATHS = "~/.ansible/collections:/usr/share/ansible/collections"
ROLE_PATHS = "~/.ansible/roles:/usr/share/ansible/roles:/etc/ansible/roles"
STORE = re.compile(r"(/[\w.@+=~-]+)+\Z", re.ASCII)
"""Paths that mount options and a play can carry."""
SHOWN = ("name", "sha256", "disk_format", "virtual_size", "recipe_digest", "recipe")


PROBLEMS = (BuildError, ImageStoreError, disk_image.DiskImageError)


class Failure(Exception):
    """Why the task failed, for its user."""


class Images:
    """One task of the module; `say(text)` tells how far it is."""

    def __init__(self, params, check_mode, say, environment):
        self._params, self._check, self._say, self._environment = params, check_mode, say, environment
        self._store = ImageStore(params["store"] or os.path.join(home(), "images"))
        self._stages = Stages(str(params["name"]), say)

    def run(self):
        """The task's result. Raises Failure."""
        try:
            return self._run()
        except (*PROBLEMS, OSError) as problem:
            raise Failure(str(problem)) from problem

    def _run(self):
        if not STORE.match(self._store.path):
            wanted = "an absolute path of letters, digits and . _ @ + = ~ -"
            raise BuildError("store %r: expected %s" % (self._store.path, wanted))
        if not image_recipe.NAME.match(self._params["name"]):
            wanted = "a lower-case letter, then letters, digits, _ and -"
            raise BuildError("name of the image: %r, expected %s" % (self._params["name"], wanted))
        if self._params["state"] == "absent":
            return self._absent()
        if self._params["source"]:
            return self._import()
        return self._present()

    # -- verbs -------------------------------------------------------------------------------------------------------

    def _present(self):
        recipe = image_recipe.normalize(dict(self._params["recipe"], name=self._params["name"]))
        setting = Setting(
            self._environment,
            self._paths("ANSIBLE_COLLECTIONS_PATH", COLLECTION_PATHS),
            self._paths("ANSIBLE_ROLES_PATH", ROLE_PATHS),
        )
        digest = image_recipe.digest(recipe, setting.collection, setting.collection_paths)
        before = self._store.find(digest)
        if before:
            return self._result(False, before, before)
        previous = self._named()[-1:]
        if self._check:
            planned = {"name": recipe["name"], "recipe": recipe, "recipe_digest": digest}
            return self._result(True, previous[0] if previous else None, None, planned)
        with self._store.lock("recipe-" + digest):
            after = self._store.find(digest)  # by somebody who was quicker
            if after:
                return self._result(False, after, after)
            self._store.clean()
            after = self._build(recipe, digest, setting)
        return self._result(True, previous[0] if previous else None, after)

    def _paths(self, variable, usual):
        given = self._environment.get(variable) or usual
        return [os.path.expanduser(path) for path in given.split(os.pathsep) if path]

    def _build(self, recipe, digest, setting):
        builder = self._builder(setting)
        with self._work() as folder:
            disk, packages = builder.build(recipe, folder, self._stages)
            with self._stages.stage("store"):
                manifest = {
                    "name": recipe["name"],
                    "virtual_size": image_recipe.size_of(recipe["size"]),
                    "disk_format": recipe["format"],
                    "recipe_digest": digest,
                    "recipe": recipe,
                    "packages": packages,
                    "builder": builder.NAME,
                }
                return self._store.add(disk, manifest)

    @contextlib.contextmanager
    def _work(self):
        """A folder for the work, which may find the file system full."""
        with self._store.partial() as folder:
            try:
                yield folder
            except (*PROBLEMS, OSError) as problem:
                raise BuildError(explain(problem, self._store.path)) from problem

    def _builder(self, setting):
        chosen = self._params["builder"]
        if chosen == "auto":
            works = image_tree.obstacle() is None and find("mmdebstrap")
            chosen = "bootstrap" if works or find("packer") is None else "packer"
        return {"bootstrap": Bootstrap, "packer": Packer}[chosen](self._store, setting)

    def _import(self):
        source = os.path.abspath(self._params["source"])
        limit = image_recipe.size_of(self._params["maximum_size"])
        found = disk_image.inspect(source, limit, self._params["source_format"])
        before = self._store.get(digest_of(source))
        if before:
            if before["name"] != self._params["name"]:
                told = (source, before["name"], self._params["name"])
                raise BuildError("disk %s: is in the store as %s, expected the name %s" % told)
            return self._result(False, before, before)
        if self._check:
            planned = {"name": self._params["name"], "disk_format": found["format"]}
            return self._result(True, None, None, dict(planned, virtual_size=found["virtual_size"]))
        self._store.clean()
        with self._work() as folder, self._stages.stage("copy and inspect"):
            disk = os.path.join(folder, "disk")
            shutil.copyfile(source, disk)
            # the copy, as the source may be another by now
            found = disk_image.inspect(disk, limit, self._params["source_format"])
            manifest = {"name": self._params["name"], "builder": "import", "disk_format": found["format"]}
            after = self._store.add(disk, dict(manifest, virtual_size=found["virtual_size"]))
        return self._result(True, None, after)

    def _absent(self):
        present = self._named()
        if not self._check:
            if os.path.isdir(self._store.path):
                self._store.clean()
            for manifest in present:
                self._store.remove(manifest["sha256"])
        return self._result(bool(present), present[-1] if present else None, None)

    def _named(self):
        return [manifest for manifest in self._store.list() if manifest["name"] == self._params["name"]]

    # -- what is told ------------------------------------------------------------------------------------------------

    def _result(self, changed, before, after, planned=None):
        result = {"changed": changed, "image": after or {}}
        result["path"] = self._store.disk(after["sha256"]) if after else ""
        if self._stages.times:
            result["stages"] = self._stages.times
        result["diff"] = {"before": _shown(before), "after": _shown(after) if after else planned or {}}
        return result


def _shown(manifest):
    return {key: manifest[key] for key in SHOWN} if manifest else {}
