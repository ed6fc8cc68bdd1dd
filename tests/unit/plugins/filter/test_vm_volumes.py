# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a tenant calls a volume never leaves the folder of its instance."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.filter.vm_volumes import vm_volumes


def test_a_volume_is_a_file_and_a_disk():
    assert vm_volumes([{"name": "data", "size_mib": 64}], "/srv/lab.web") == [
        {
            "name": "data",
            "path": "/srv/lab.web/data.raw",
            "size": "64MiB",
            "format": "raw",
            "disk": {
                "path": "/srv/lab.web/data.raw",
                "format": "raw",
                "cache": "auto",
                "io": "auto",
                "serial": "data",
            },
        }
    ]


def test_how_a_disk_is_kept_is_chosen_from_what_harms_nobody():
    wanted = {"name": "data", "size_mib": 64, "format": "qcow2", "cache": "writeback", "io": "threads"}
    found = vm_volumes([wanted], "/srv")[0]
    assert found["path"] == "/srv/data.qcow2"
    assert {key: found["disk"][key] for key in ("format", "cache", "io")} == {
        "format": "qcow2",
        "cache": "writeback",
        "io": "threads",
    }
    for key, value in (("format", "vmdk"), ("cache", "unsafe"), ("io", "io_uring"), ("cache", "a' b")):
        with pytest.raises(AnsibleFilterError) as told:
            vm_volumes([dict(wanted, **{key: value})], "/srv")
        assert "volume data: %s %r, expected one of " % (key, value) in str(told.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "{{ 1 }}", "a\nb", 'a"b', "a" * 21, None, 7])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(AnsibleFilterError) as told:
        vm_volumes([{"name": name, "size_mib": 1}], "/srv")
    assert "volume %r: expected a name of [a-z0-9_], at most 20 letters" % (name,) in str(told.value)


@pytest.mark.parametrize("size", [0, -1, "1", None, 1.5])
def test_a_size_is_a_whole_number(size):
    with pytest.raises(AnsibleFilterError) as told:
        vm_volumes([{"name": "data", "size_mib": size}], "/srv")
    assert "volume data: size_mib %r, expected 1 or more" % (size,) in str(told.value)


def test_a_name_stands_once():
    with pytest.raises(AnsibleFilterError) as told:
        vm_volumes([{"name": "data", "size_mib": 1}] * 2, "/srv")
    assert "volume data: there twice, expected each name once" in str(told.value)
