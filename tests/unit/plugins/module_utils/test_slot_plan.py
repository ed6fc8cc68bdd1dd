# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a slot task writes, and what nobody can make it write."""

from __future__ import annotations

import grp
import os
import pwd
import stat

import pytest
from ansible_collections.clachan.platform.plugins.module_utils.slot_arguments import make_plan
from ansible_collections.clachan.platform.plugins.module_utils.slot_files import SlotError
from ansible_collections.clachan.platform.plugins.module_utils.slot_plan import apply_plan


def plan_for(slot, secrets=(), **arguments):
    arguments.setdefault("files", {})
    arguments.setdefault("directories", [])
    plan = make_plan(arguments, slot.directory, slot.user)
    plan.update(difference=True, secrets=list(secrets))
    return plan


def content(text, mode=None):
    return {"content": text.encode(), "mode": mode}


def both(slot, check=False, **arguments):
    return apply_plan(plan_for(slot, **arguments), check)


WHOLE = {
    "files": {"etc/web.ini": content("a = 1\n"), "var/data/seed": content("x", "0600")},
    "directories": ["var/spool", "etc/conf.d"],
    "services": {"web": {"command": ["sleep", 1000], "environment": {"PORT": 8080}}},
    "promises": {"up": {"kind": "process", "service": "web"}},
    "requests": {"child": {"software": "a.b.c", "parameters": {"c_x": [1, None]}}},
    "publish": {"url": "http://127.0.0.1:1", "port": 1},
}
PATHS = [
    "etc/conf.d/",
    "etc/promises.d/up.json",
    "etc/published.json",
    "etc/requests.d/child.json",
    "etc/services.d/web.json",
    "etc/web.ini",
    "var/spool/",
    "var/data/seed",
]


def test_the_first_run_writes_and_the_second_changes_nothing(slot):
    first = both(slot, **WHOLE)
    assert first["changed"] is True
    assert first["paths"] == PATHS
    assert slot.read("etc/web.ini") == b"a = 1\n"
    assert slot.read("etc/services.d/web.json") == (
        b'{\n "command": [\n  "sleep",\n  "1000"\n ],\n "environment": {\n  "PORT": "8080"\n }\n}\n'
    )
    assert both(slot, **WHOLE) == {"changed": False, "paths": [], "diff": []}


def test_check_mode_tells_the_same_and_writes_nothing(slot):
    assert both(slot, check=True, **WHOLE)["paths"] == PATHS
    assert os.listdir(slot.path("etc")) == os.listdir(slot.path("var")) == []


def test_what_is_not_named_any_more_is_removed(slot):
    both(slot, **WHOLE)
    again = both(slot, services={"other": {"command": ["true"]}})
    assert again["paths"] == [
        "etc/services.d/other.json",
        "etc/services.d/web.json",
        "etc/promises.d/up.json",
        "etc/requests.d/child.json",
        "etc/published.json",
    ]
    assert os.listdir(slot.path("etc/services.d")) == ["other.json"]
    assert os.listdir(slot.path("etc/requests.d")) == []
    assert not os.path.exists(slot.path("etc/published.json"))
    assert slot.read("etc/web.ini") == b"a = 1\n"


def test_a_task_without_documents_leaves_them_alone(slot):
    both(slot, **WHOLE)
    assert both(slot, files={"etc/web.ini": content("a = 1\n")})["changed"] is False
    assert os.listdir(slot.path("etc/services.d")) == ["web.json"]


def test_the_difference_shows_texts_and_rights(slot):
    both(slot, files={"etc/a": content("one\n")})
    changed = both(slot, check=True, files={"etc/a": content("two\n", "0600")})
    owner = pwd.getpwuid(os.geteuid())
    who = "%s:%s" % (owner.pw_name, grp.getgrgid(owner.pw_gid).gr_name)
    assert changed["diff"] == [
        {
            "before_header": "etc/a (0640 %s)" % who,
            "after_header": "etc/a (0600 %s)" % who,
            "before": "one\n",
            "after": "two\n",
        }
    ]


def test_rights_alone_are_a_change(slot):
    both(slot, files={"etc/a": content("one\n")})
    os.chmod(slot.path("etc/a"), 0o666)
    assert both(slot, files={"etc/a": content("one\n")})["paths"] == ["etc/a"]
    assert stat.S_IMODE(os.stat(slot.path("etc/a")).st_mode) == 0o640


def test_a_file_is_replaced_as_a_whole(slot):
    both(slot, files={"etc/a": content("one\n")})
    with open(slot.path("etc/a"), "rb") as reader:
        both(slot, files={"etc/a": content("two\n")})
        assert reader.read() == b"one\n"
    assert os.listdir(slot.path("etc")) == ["a"]


def test_binary_content_is_named_not_shown(slot):
    shown = apply_plan(plan_for(slot, files={"etc/a": {"content": b"\xff\x00", "mode": None}}), False)
    assert shown["diff"][0]["after"] == "<binary, 2 bytes>\n"
    assert slot.read("etc/a") == b"\xff\x00"


def test_what_a_killed_run_left_is_replaced_without_following_it(slot, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.symlink(str(victim), slot.path("etc/.a.new"))
    both(slot, files={"etc/a": content("one\n")})
    assert victim.read_text() == "untouched"
    assert os.listdir(slot.path("etc")) == ["a"]


@pytest.mark.parametrize("top", ["etc", "var"])
def test_a_link_instead_of_the_file_is_refused(slot, tmp_path, top):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.symlink(str(victim), slot.path(top + "/a"))
    with pytest.raises(SlotError, match=r"^file %s/a: a link, expected a regular file$" % top):
        both(slot, files={top + "/a": content("taken")})
    assert victim.read_text() == "untouched"


def test_a_link_instead_of_a_directory_is_refused(slot, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    os.symlink(str(tmp_path / "elsewhere"), slot.path("var/data"))
    with pytest.raises(SlotError, match=r"^directory var/data: .*, expected a directory that is no link$"):
        both(slot, files={"var/data/a": content("taken")})
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_instead_of_documents_is_unlinked_not_followed(slot, tmp_path):
    both(slot, services={"web": {"command": ["true"]}})
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.symlink(str(victim), slot.path("etc/services.d/old.json"))
    assert both(slot, services={"web": {"command": ["true"]}})["paths"] == ["etc/services.d/old.json"]
    assert victim.read_text() == "untouched"


def test_a_fifo_does_not_hold_up_the_run(slot):
    os.mkfifo(slot.path("var/a"))
    with pytest.raises(SlotError, match=r"^file var/a: prw.*, expected a regular file$"):
        both(slot, files={"var/a": content("x")})


@pytest.mark.parametrize(
    "path", ["../x", "etc/../../x", "/etc/passwd", "log/x", "etc", "etc//x", "etc/./x", "var/a\nb", ""]
)
def test_paths_outside_are_refused(slot, path):
    with pytest.raises(SlotError, match=r"expected a path below etc/ or var/"):
        both(slot, files={path: content("x")})


@pytest.mark.parametrize(
    ("path", "option"),
    [("etc/services.d/a.json", "services"), ("etc/requests.d", "requests"), ("etc/published.json", "publish")],
)
def test_documents_are_not_written_as_files(slot, path, option):
    with pytest.raises(SlotError) as caught:
        both(slot, files={path: content("{}")})
    assert str(caught.value) == "file %s: expected the option %s for it" % (path, option)


@pytest.mark.parametrize("mode", ["rw", "4755", 640, "06400", "0o640"])
def test_modes_are_octal_texts(slot, mode):
    with pytest.raises(SlotError, match=r'^file etc/a: mode .*, expected octal digits in quotes, as "0640"$'):
        both(slot, files={"etc/a": content("x", mode)})


def test_a_slot_that_is_not_there(slot):
    slot.directory += "x"
    with pytest.raises(
        SlotError, match=r"^slot's directory .*/s000x: No such file.*, expected one that the node's agent made$"
    ):
        both(slot, files={"etc/a": content("x")})


def test_a_user_that_is_not_there(slot):
    slot.user = "nobody_of_this_name"
    with pytest.raises(SlotError, match=r"^slot's user: 'nobody_of_this_name', expected one of this machine$"):
        both(slot, files={"etc/a": content("x")})


def test_root_owns_etc_and_the_slots_user_owns_var(foreign_slot):
    nobody = pwd.getpwnam("nobody")
    both(foreign_slot, **WHOLE)
    assert foreign_slot.rights("etc/web.ini") == "0640 0:%d" % nobody.pw_gid
    assert foreign_slot.rights("etc/services.d") == "0750 0:%d" % nobody.pw_gid
    assert foreign_slot.rights("etc/services.d/web.json") == "0640 0:%d" % nobody.pw_gid
    assert foreign_slot.rights("var/data") == "0750 %d:%d" % (nobody.pw_uid, nobody.pw_gid)
    assert foreign_slot.rights("var/data/seed") == "0600 %d:%d" % (nobody.pw_uid, nobody.pw_gid)
    assert both(foreign_slot, **WHOLE)["changed"] is False


def test_the_slots_user_cannot_lead_root_to_what_it_may_not_write(foreign_slot, tmp_path):
    secret = tmp_path / "roots"
    secret.mkdir(mode=0o700)
    os.symlink(str(secret), foreign_slot.path("var/data"))
    with pytest.raises(SlotError, match=r"^directory var/data: "):
        both(foreign_slot, files={"var/data/a": content("x")})
    os.unlink(foreign_slot.path("var/data"))
    os.mkdir(foreign_slot.path("var/data"), 0o700)  # root's, as an earlier mistake would leave it
    with pytest.raises(SlotError, match=r"^file var/data/a: |Permission denied"):
        both(foreign_slot, files={"var/data/a": content("x")})
    assert os.listdir(str(secret)) == os.listdir(foreign_slot.path("var/data")) == []


def test_a_hard_link_in_var_is_replaced_not_written_through(foreign_slot, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.chmod(str(victim), 0o644)
    os.link(str(victim), foreign_slot.path("var/a"))
    both(foreign_slot, files={"var/a": content("mine")})
    assert victim.read_text() == "untouched"
    assert foreign_slot.read("var/a") == b"mine"


def test_a_slot_that_another_owns_is_refused(foreign_slot):
    os.chown(foreign_slot.directory, 65534, 65534)
    with pytest.raises(SlotError, match=r"owner nobody, mode 0750, expected owner root and nobody else may write$"):
        both(foreign_slot, files={"etc/a": content("x")})


def test_an_etc_that_another_owns_is_refused(foreign_slot):
    os.chown(foreign_slot.path("etc"), 65534, 65534)
    with pytest.raises(SlotError, match=r"^slot's directory etc: owner nobody, expected root$"):
        both(foreign_slot, files={"etc/a": content("x")})


def test_secrets_stand_in_no_difference(slot):
    before = {"etc/a": content("user = x\ntoken = old-secret\n")}
    both(slot, files=before)
    plan = plan_for(
        slot,
        secrets=["new secret/\u00e9"],
        files={"etc/a": content("user = x\ntoken = new secret/\u00e9\n")},
        publish={"token": "new secret/\u00e9"},
    )
    shown = apply_plan(plan, False)["diff"]
    assert shown[0]["before"] == "user = x\n<hidden: this file holds a secret>\n"
    assert shown[0]["after"] == "user = x\ntoken = <secret>\n"
    assert shown[1]["after"] == '{\n "token": "<secret>"\n}\n'
    assert b"new secret" in slot.read("etc/published.json")
