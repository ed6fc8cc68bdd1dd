# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written into control groups. That they hold is tested with a hub, and version 2 in a guest."""

from __future__ import annotations

import os

from ansible_collections.clachan.platform.plugins.module_utils.lab_limits import Group, find

NOBODY = 4242424


def test_the_versions_are_found(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpuset memory pids\n")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "31 25 0:27 / %s rw - cgroup2 cgroup2 rw\n36 25 0:32 / /proc rw - proc proc rw\n" % tmp_path
    )
    assert find(str(mounts)) == {
        "cpu": (1, "/sys/fs/cgroup/cpu,cpuacct"),
        "memory": (2, str(tmp_path)),
        "pids": (2, str(tmp_path)),
    }


def test_version_2(tmp_path):
    (tmp_path / "cgroup.subtree_control").write_text("")
    group = Group("clachan_003", NOBODY, {one: (2, str(tmp_path)) for one in ("memory", "cpu", "pids")})
    held = group.present(1024, 1500, 512)
    mine = tmp_path / "clachan/clachan_003"
    assert held == dict.fromkeys(("cpu", "memory", "pids"), str(mine / "cgroup.procs"))
    read = {name: (mine / name).read_text() for name in ("memory.max", "cpu.max", "pids.max")}
    assert read == {"memory.max": str(1024 << 20), "cpu.max": "150000 100000", "pids.max": "512"}
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"
    assert group.changed
    again = Group("clachan_003", NOBODY, {one: (2, str(tmp_path)) for one in ("memory", "cpu", "pids")})
    again.present(1024, 1500, 512)
    assert not again.changed


def test_check_mode_makes_nothing(tmp_path):
    group = Group("clachan_003", NOBODY, {"memory": (1, str(tmp_path))}, check_mode=True)
    group.present(1024, 1000, 512)
    assert (group.changed, os.listdir(tmp_path)) == (True, [])


def test_one_that_cannot_be_written_holds_nothing():
    assert Group("clachan_003", NOBODY, {"cpu": (1, "/proc")}).present(1024, 1000, 512) == {}
