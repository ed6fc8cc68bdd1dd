# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import json
import os
import signal
import time

import pytest
from ansible_collections.clachan.platform.plugins.module_utils.image_store import ImageStore, ImageStoreError

ABOUT = {"name": "web", "virtual_size": 1 << 30, "disk_format": "raw", "builder": "import"}
RECIPE = "7" * 64


def hold_partial(path, pipe):
    """In a process of its own: hold a partial folder until it is killed."""
    with ImageStore(path).partial() as folder:
        os.write(pipe, folder.encode())
        while True:
            time.sleep(60)


@pytest.fixture
def store(tmp_path):
    return ImageStore(str(tmp_path / "store"))


def disk(store, data=b"disk"):
    store.make()
    path = os.path.join(store.path, "given")
    with open(path, "wb") as file:
        file.write(data)
    return path


def leftovers(store):
    return [name for name in os.listdir(store.path) if name.startswith(".partial-")]


def test_an_image_is_found_by_its_digest_and_its_recipe(store):
    manifest = store.add(disk(store), dict(ABOUT, recipe_digest=RECIPE, recipe={"name": "web"}))
    sha256 = hashlib.sha256(b"disk").hexdigest()
    assert (manifest["sha256"], manifest["size"], manifest["format"]) == (sha256, 4, 1)
    assert manifest["created"].endswith("Z")
    assert store.get(sha256) == store.find(RECIPE) == manifest
    assert store.list() == [manifest]
    with open(store.disk(sha256), "rb") as file:
        assert file.read() == b"disk"
    assert os.stat(store.disk(sha256)).st_mode & 0o777 == 0o444
    with open(os.path.join(store.path, "recipes", RECIPE)) as file:
        assert file.read() == sha256 + "\n"
    store.verify(sha256)
    assert leftovers(store) == []


def test_an_empty_store_has_nothing(store):
    assert store.list() == []
    assert store.get("0" * 64) is None
    assert store.find(RECIPE) is None
    assert store.remove("0" * 64) is False


def test_adding_twice_keeps_the_first(store):
    first = store.add(disk(store), dict(ABOUT))
    assert store.add(disk(store), dict(ABOUT, name="other")) == first


def test_a_disk_that_is_not_what_its_manifest_says_is_refused(store):
    path = disk(store)
    with pytest.raises(ImageStoreError) as told:
        store.add(path, dict(ABOUT, sha256="0" * 64))
    found = hashlib.sha256(b"disk").hexdigest()
    assert str(told.value) == "disk %s: sha256 %s, expected %s" % (path, found, "0" * 64)
    assert store.list() == []


def test_a_damaged_disk_is_told_and_not_found_by_its_recipe(store):
    manifest = store.add(disk(store), dict(ABOUT, recipe_digest=RECIPE))
    path = store.disk(manifest["sha256"])
    os.chmod(path, 0o600)
    with open(path, "wb") as file:
        file.write(b"risk")
    with pytest.raises(ImageStoreError, match=r"^image .*disk\.raw: its disk's sha256 is .*, expected "):
        store.verify(manifest["sha256"])
    with open(path, "wb") as file:
        file.write(b"shorter")
    assert store.find(RECIPE) is None
    assert store.add(disk(store), dict(ABOUT, recipe_digest=RECIPE))["sha256"] == manifest["sha256"]
    store.verify(manifest["sha256"])


def test_removal_takes_what_recipes_say_of_it_with_it(store):
    manifest = store.add(disk(store), dict(ABOUT, recipe_digest=RECIPE))
    assert store.remove(manifest["sha256"]) is True
    assert store.find(RECIPE) is None
    assert os.listdir(os.path.join(store.path, "recipes")) == []
    assert leftovers(store) == []


@pytest.mark.parametrize("name", ["", "../x", "A" * 64, "0" * 63, "0" * 64 + "\n", None, 7])
def test_only_digests_name_images(store, name):
    with pytest.raises(ImageStoreError) as told:
        store.get(name)
    assert str(told.value) == "image %r: expected the sha256 of its disk, 64 hexadecimal digits" % (name,)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, "format 2, expected 1"),
        ({"size": "4"}, "size '4', expected int"),
        ({"recipe_digest": 4}, "recipe_digest 4, expected str or NoneType"),
        ({"disk_format": "vdi"}, "disk_format 'vdi', expected qcow2 or raw"),
    ],
)
def test_a_manifest_of_another_form_is_told(store, change, text):
    manifest = store.add(disk(store), dict(ABOUT))
    path = os.path.join(store.folder(manifest["sha256"]), "manifest.json")
    with open(path, "w") as file:
        json.dump(dict(manifest, **change), file)
    with pytest.raises(ImageStoreError) as told:
        store.get(manifest["sha256"])
    assert str(told.value) == "manifest %s: %s" % (path, text)


def test_holes_of_a_disk_from_elsewhere_stay_holes(store, tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(b"begin")
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    manifest = store.add(str(path), dict(ABOUT))
    store.verify(manifest["sha256"])
    assert manifest["size"] == 64 << 20
    assert os.stat(store.disk(manifest["sha256"])).st_blocks * 512 < 1 << 20
    assert path.exists()


def test_work_of_the_living_is_left_and_that_of_the_killed_is_removed(store):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            hold_partial(store.path, writer)
        finally:
            os._exit(1)
    folder = os.read(reader, 4096).decode()
    try:
        assert store.clean() == []
        assert os.path.isdir(folder)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    assert store.clean() == [folder]
    assert leftovers(store) == []
