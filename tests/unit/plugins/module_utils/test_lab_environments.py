# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks that a hub's user gets from the hub's slot, and what goes when nobody wants it."""

from __future__ import annotations

import hashlib
import os
import pwd

import pytest
from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError
from ansible_collections.clachan.platform.plugins.module_utils.lab_environments import Environments

LOCK = "a==1 # {{ x }}\n"
SUM = hashlib.sha256(LOCK.encode()).hexdigest()


class Place:
    """A user's slot and disk, beside the slot s007 of a hub."""

    def __init__(self, slot):
        self.slot, self.account = slot, pwd.getpwnam(slot.user)
        self.hub = os.path.join(os.path.dirname(slot.path("")).rpartition("/")[0], "s007/etc/environments")
        os.makedirs(self.hub)
        self.disk = slot.path("mount/environments")
        os.makedirs(self.disk)
        os.chown(self.disk, self.account.pw_uid, self.account.pw_gid)
        self.offer(LOCK)

    def offer(self, text, name="sky"):
        write(os.path.join(self.hub, name + ".txt"), text)

    def keep(self, *wanted, **options):
        found = Environments(self.slot.path("").rstrip("/"), self.slot.path("mount"), self.account, **options)
        found.keep(list(wanted))
        return found.actions

    def lock(self, name="sky"):
        return self.slot.path("etc/environments/%s.txt" % name)


def write(path, text=""):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def sky(**more):
    return dict({"name": "sky", "slot": "s007", "sha256": SUM}, **more)


@pytest.fixture
def place(reachable_slot):
    return Place(reachable_slot)


def test_a_lock_is_brought_once_and_the_user_can_read_it(place):
    assert place.keep(sky(), check_mode=True) == ["brought the lock of sky"]
    assert not os.path.exists(place.lock())
    assert place.keep(sky()) == ["brought the lock of sky"]
    with open(place.lock(), encoding="utf-8") as file:
        assert file.read() == LOCK
    os.chmod(place.lock(), 0o600)  # as a run that was killed leaves it
    place.offer("of another revision\n")
    assert place.keep(sky()) == [], "it has it already"
    found = os.stat(place.lock())
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, place.account.pw_gid, 0o640)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (sky(sha256="0" * 64), "environment sky: no lock with sha256 %s in slot s007" % ("0" * 64)),
        (sky(slot="s008"), "environment sky: no lock with sha256 %s in slot s008" % SUM),
        (sky(slot="../s007"), "environment 'sky': slot '../s007', expected names"),
        (sky(name="../sky"), "environment '../sky': slot 's007', expected names"),
    ],
)
def test_only_who_knows_a_lock_gets_it(place, wanted, message):
    with pytest.raises(LabError) as error:
        place.keep(wanted)
    assert str(error.value) == message
    assert not os.path.exists(place.slot.path("etc/environments"))


def test_a_link_instead_of_a_lock_is_not_followed(place):
    os.unlink(os.path.join(place.hub, "sky.txt"))
    write(place.slot.path("secret"), LOCK)
    os.symlink(place.slot.path("secret"), os.path.join(place.hub, "sky.txt"))
    with pytest.raises(LabError, match="no lock with sha256"):
        place.keep(sky())


def test_what_nobody_wants_goes(place):
    place.offer(LOCK, "pip")
    kept = [sky(), sky(name="pip")]
    place.keep(*kept)
    for name in ("science", "sky", "old"):
        write(place.slot.path("etc/data/kernels/%s/kernel.json" % name))
    write(place.lock("old"))
    own = ("pip.json", "pip.shared.json", "pip.lock", "pip-%s/x" % ("b" * 12), "sky-%s/x" % ("c" * 12))
    for name in (*own, "old.lock", "old-%s/x" % ("a" * 12)):
        write(os.path.join(place.disk, name))
    os.chown(os.path.join(place.disk, "old-%s" % ("a" * 12)), place.account.pw_uid, -1)
    os.symlink("old-%s" % ("a" * 12), os.path.join(place.disk, "old"))
    said = place.keep(*kept)
    gone = "removed old, old-%s, old.lock" % ("a" * 12)
    assert said == ["removed the kernel old", "removed the lock old.txt", gone]
    assert sorted(os.listdir(place.disk)) == sorted({name.partition("/")[0] for name in own})
    assert sorted(os.listdir(place.slot.path("etc/data/kernels"))) == ["science", "sky"]
    assert place.keep(*kept) == []


def test_what_the_user_puts_in_the_way_is_removed_as_the_user(place):
    """A link is a link; what is another's stays, and is said."""
    write(place.slot.path("foreign/file"))
    os.symlink(place.slot.path("foreign"), os.path.join(place.disk, "old"))
    place.keep(sky())
    assert os.path.exists(place.slot.path("foreign/file"))
    write(os.path.join(place.disk, "old/file"))
    with pytest.raises(LabError, match=r"^environments in .*: .*Permission denied.*, expected to remove some$"):
        place.keep(sky())
