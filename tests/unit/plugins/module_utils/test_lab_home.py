# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The home of a lab of one user: saved, brought back, killed in between, and what its user puts in the way of root."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import traceback

import pytest
from ansible_collections.clachan.platform.plugins.module_utils import lab_home
from ansible_collections.clachan.platform.plugins.module_utils.lab_backup import keep_backups
from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError

ALONE = {"chown": 0, "dac_override": 1, "dac_read_search": 2, "fowner": 3}
"""What lets root do anything with others' files, by the number of the capability."""


class Place:
    """A slot with a home that its user has worked in, as `other`."""

    def __init__(self, slot):
        self.slot, self.account = slot, pwd.getpwnam(slot.user)
        self.var, self.home = slot.path("var"), slot.path("var/home")
        self.archives, self.mark = slot.path("backups/home.lab"), slot.path("etc/restored")

    def keep(self, check=False, **options):
        given = {"backups": [], "delete_backups": False, "restore": "", "restore_word": ""}
        given.update(path=self.var, user=self.slot.user, archives=self.archives, mark=self.mark)
        return keep_backups(dict(given, **options), check)

    def write(self, text, path="work.txt"):
        def work():
            os.makedirs(os.path.dirname(os.path.join(self.home, path)), exist_ok=True)
            with open(os.path.join(self.home, path), "w", encoding="utf-8") as file:
                file.write(text)

        self.as_user(work)

    def as_user(self, work):
        """In another process: what the slot's user does."""
        run_aside(lambda: (become(self.account), work()))

    def text(self):
        with open(os.path.join(self.home, "work.txt"), encoding="utf-8") as file:
            return file.read()

    def archive(self, name="first", end=""):
        return os.path.join(self.archives, name + ".tar" + end)


def become(account):
    if os.geteuid() != account.pw_uid:
        os.setgroups([])
        os.setresgid(*[account.pw_gid] * 3)
        os.setresuid(*[account.pw_uid] * 3)


def run_aside(work):
    """The child's exit status; what is raised in it fails here."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # nothing may return into the parent's code
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1] >> 8
    assert status in (0, 9)
    return status


@pytest.fixture
def place(slot):
    return Place(slot)


@pytest.fixture
def foreign(reachable_slot):
    return Place(reachable_slot)


@pytest.fixture(params=["place", "foreign"])
def either(request):
    return request.getfixturevalue(request.param)


def test_a_backup_is_made_once_and_brought_back_once(either):
    place = either
    place.write("before")
    saved = place.keep(backups=["first"])
    with open(place.archive(), "rb") as file:
        content = file.read()
    digest = hashlib.sha256(content).hexdigest()
    assert saved["backups"] == {"first": {"size": len(content), "sha256": digest}}
    assert (saved["changed"], saved["actions"]) == (True, ["saved first"])
    with open(place.archive(end=".sha256"), encoding="ascii") as file:
        assert file.read() == "%s  first.tar\n" % digest
    rights = [os.stat(path).st_mode & 0o777 for path in (place.archives, place.archive(), place.archive(end=".sha256"))]
    assert rights == [0o700, 0o600, 0o600]
    place.write("after")
    again = place.keep(backups=["first"])
    assert again == {"changed": False, "actions": [], "backups": saved["backups"]}
    assert place.keep(restore="first")["actions"] == ["brought back first"]
    assert place.text() == "before"
    assert os.listdir(place.var) == ["home"]
    place.write("later")
    assert place.keep(restore="first")["changed"] is False
    assert place.text() == "later"
    assert place.keep(restore="first", restore_word="again")["changed"] is True
    assert place.text() == "before"
    assert place.slot.rights("etc/restored") == "0600 %d:%d" % (os.geteuid(), os.getegid())
    assert os.stat(os.path.join(place.home, "work.txt")).st_uid == place.account.pw_uid


def test_check_mode_changes_nothing(place):
    place.write("before")
    assert place.keep(check=True, backups=["first"])["actions"] == ["saved first"]
    assert not os.path.exists(place.archives)
    place.keep(backups=["first"])
    place.write("after")
    found = place.keep(check=True, backups=["second"], restore="first", delete_backups=True)
    assert found["actions"] == ["saved second", "brought back first", "removed first"]
    assert (place.text(), sorted(os.listdir(place.archives))) == ("after", ["first.tar", "first.tar.sha256"])


def test_backups_outlive_the_home_and_another_can_be_brought_back_to_them(place):
    place.write("before")
    place.keep(backups=["first"])
    place.keep(restore="first")
    for part in ("etc", "var"):  # as when the instance is removed, and ordered again
        shutil.rmtree(place.slot.path(part))
        os.mkdir(place.slot.path(part))
    assert place.keep(restore="first")["actions"] == ["brought back first"]
    assert place.text() == "before"


def test_the_word_removes_what_is_not_named_and_what_was_never_finished(place):
    place.write("before")
    place.keep(backups=["first", "second"])
    for end in (".new", ".sha256.new"):
        with open(place.archive("third", end), "w", encoding="ascii"):
            pass
    assert sorted(place.keep(backups=["first"])["backups"]) == ["first", "second"]
    assert place.keep(backups=["first"], delete_backups=True)["actions"] == ["removed second", "removed third"]
    assert sorted(os.listdir(place.archives)) == ["first.tar", "first.tar.sha256"]
    assert place.keep(delete_backups=True)["backups"] == {}
    assert not os.path.exists(place.archives)
    assert place.keep(delete_backups=True)["changed"] is False


def test_what_cannot_be_done_is_said_before_anything_is_touched(place):
    place.write("now")
    place.keep(backups=["first"])
    with pytest.raises(LabError, match=r"^backup 'other': none that is finished, expected one of them \(first\)$"):
        place.keep(restore="other")
    with pytest.raises(LabError, match=r"^backup '\.\./first': none that is finished, expected one of them \(first\)$"):
        place.keep(restore="../first")
    with pytest.raises(LabError, match=r"^backup 'B': expected a name of \[a-z0-9_\], at most 31 letters$"):
        place.keep(backups=["B"])
    with pytest.raises(LabError, match=r"^backups: 101, expected at most 100$"):
        place.keep(backups=["b%d" % number for number in range(101)])
    with pytest.raises(LabError, match=r"^user no-such-user: unknown, expected one of the node$"):
        place.keep(user="no-such-user")
    with open(place.archive(), "r+b") as file:
        file.write(b"?")
    place.write("later")
    inode = os.stat(place.home).st_ino
    with pytest.raises(LabError, match=r"^backup first: another sha256, expected [0-9a-f]{64}$"):
        place.keep(restore="first")
    assert (place.text(), os.stat(place.home).st_ino, os.listdir(place.var)) == ("later", inode, ["home"])
    assert not os.path.exists(place.mark)


def test_a_home_that_cannot_be_read_leaves_no_backup(foreign):
    foreign.write("secret", "closed/a")
    os.chmod(os.path.join(foreign.home, "closed"), 0)
    with pytest.raises(LabError, match=r"^backup first: home .*: Permission denied, expected it to be saved"):
        foreign.keep(backups=["first"])
    assert os.listdir(foreign.archives) == []


def test_without_room_the_home_stays(foreign):
    var = foreign.var
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "none", var], check=False)
    if mounted.returncode:
        pytest.skip("this machine cannot: no tmpfs can be mounted")
    try:
        os.chown(var, foreign.account.pw_uid, foreign.account.pw_gid)
        foreign.write("x" * 1200000)
        foreign.keep(backups=["first"])
        foreign.write("mine", "more.txt")
        with pytest.raises(LabError, match=r"^home .*/var/home: no room, tar: \./work.txt: .*, expected it to be"):
            foreign.keep(restore="first")
        assert (os.listdir(var), sorted(os.listdir(foreign.home))) == (["home"], ["more.txt", "work.txt"])
        assert not os.path.exists(foreign.mark)
        foreign.write("small")
        foreign.keep(restore="first")
        assert len(foreign.text()) == 1200000
    finally:
        subprocess.run(["umount", var], check=True)


KILLED_BEFORE = ((os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "open"), (shutil, "rmtree"), (subprocess, "Popen"))


def killed_at(number, work):
    """Whether the process that does it was killed, before that one of its steps."""

    def doomed():
        left = [number]

        def ends(step):
            def call(*arguments, **named):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)
                return step(*arguments, **named)

            return call

        for module, name in KILLED_BEFORE:
            setattr(module, name, ends(getattr(module, name)))
        work()

    return run_aside(doomed) == 9


def test_killed_anywhere_the_next_run_finishes_it(place):
    place.write("before")
    place.write("deep", "a/b/c")
    place.keep(backups=["first"])
    number = 0
    while True:
        number += 1
        word = "word %d" % number
        place.write("after")
        if not killed_at(number, lambda word=word: place.keep(restore="first", restore_word=word)):
            break
        # whatever the next run is asked for, there is a whole home
        if number % 2:
            place.keep()
            assert os.listdir(place.var) == ["home"]
            assert place.text() in ("before", "after")
        place.keep(restore="first", restore_word=word)
        assert (place.text(), os.listdir(place.var)) == ("before", ["home"])
        assert place.keep(restore="first", restore_word=word)["changed"] is False
        assert list(place.keep()["backups"]) == ["first"]
    assert number > 8


def test_a_backup_that_was_killed_is_made_by_the_next_run(place):
    place.write("before")
    number = 1
    while killed_at(number, lambda: place.keep(backups=["first"])):
        assert place.keep()["backups"] in ({}, place.keep(backups=["first"])["backups"])
        place.keep(restore="first", restore_word=str(number))
        assert place.text() == "before"
        shutil.rmtree(os.path.dirname(place.archives))
        number += 1
    assert number > 5


def test_what_the_user_puts_in_the_way_leads_root_nowhere(foreign, tmp_path):
    """Links where the folders of a home are made, and folders that nobody may enter."""
    target = tmp_path / "roots"
    target.mkdir(mode=0o700)
    (target / "kept").write_text("untouched")
    before = os.stat(str(target))
    foreign.write("before")
    foreign.keep(backups=["first"])

    def plant():
        for name in ("home.new", "home.old"):
            os.symlink(str(target), os.path.join(foreign.var, name))
        os.mkdir(os.path.join(foreign.home, "closed"))
        os.symlink(str(target / "kept"), os.path.join(foreign.home, "closed", "link"))
        os.chmod(os.path.join(foreign.home, "closed"), 0)

    foreign.as_user(plant)
    assert foreign.keep(restore="first")["actions"] == ["settled", "brought back first"]
    assert (foreign.text(), os.listdir(foreign.var)) == ("before", ["home"])
    now = os.stat(str(target))
    assert (now.st_mode, now.st_uid, now.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert (target / "kept").read_text() == "untouched"
    # the home itself is a link, to what is the user's and what is not
    for place in ("elsewhere", str(target)):
        foreign.as_user(
            lambda place=place: (
                os.makedirs(os.path.join(foreign.var, "elsewhere"), exist_ok=True),
                os.rename(foreign.home, foreign.home + "." + os.path.basename(place)),
                os.symlink(place, foreign.home),
            )
        )
        foreign.keep(restore="first", restore_word=place)
        assert foreign.text() == "before"
    assert os.listdir(str(target)) == ["kept"]


def without_power():
    """Root that may become others, and has no more right over their files than anybody."""
    libc = ctypes.CDLL(None, use_errno=True)
    left = 0xFFFFFFFF & ~sum(1 << number for number in ALONE.values())
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    words = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, words) == 0
    for index in (0, 1):
        words[index] &= left
    assert libc.capset(header, words) == 0


def test_in_the_users_folder_only_the_user_works(foreign):
    """As root without its power over others' files, which could do nothing there."""
    foreign.write("before")

    def work():
        without_power()
        with pytest.raises(PermissionError):
            os.listdir(foreign.var)
        assert foreign.keep(backups=["first"])["changed"]
        foreign.write("after")
        assert foreign.keep(restore="first")["changed"]
        foreign.write("half", "../home.new/half")
        foreign.write("half", "../home.old/half")
        assert foreign.keep(restore="first")["actions"] == ["settled"]

    assert run_aside(work) == 0
    assert (foreign.text(), os.listdir(foreign.var)) == ("before", ["home"])


def test_a_tar_that_its_user_stopped_is_given_up(foreign, monkeypatch):
    monkeypatch.setattr(lab_home, "STALL_SECONDS", 0.3)
    foreign.write("more than a pipe holds" * 10000)

    class Stopped(subprocess.Popen):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            os.kill(self.pid, signal.SIGSTOP)

    monkeypatch.setattr(subprocess, "Popen", Stopped)
    with pytest.raises(LabError, match=r"^backup first: home .*: tar stands still, expected it to go on$"):
        foreign.keep(backups=["first"])
    assert os.listdir(foreign.archives) == []


def test_the_mark_says_what_was_brought_back(place):
    place.write("before")
    place.keep(backups=["first"])
    place.keep(restore="first", restore_word="\u00e9")
    with open(place.mark, encoding="utf-8") as file:
        assert json.load(file) == {"backup": "first", "word": "\u00e9"}
