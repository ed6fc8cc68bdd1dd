# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a tenant calls a backup never leaves the folder of its volume's backups."""

from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.filter.vm_backups import vm_backups
from ansible_collections.clachan.platform.plugins.filter.vm_saved import vm_saved
from ansible_collections.clachan.platform.plugins.filter.vm_volumes import vm_volumes

VOLUMES = vm_volumes([{"name": "data", "size_mib": 64}, {"name": "logs", "size_mib": 8}], "/srv/volumes/lab.web")


def told(backups):
    with pytest.raises(AnsibleFilterError) as problem:
        vm_backups(backups, "/srv", VOLUMES)
    return str(problem.value)


def test_a_backup_is_a_file_of_its_volume():
    assert vm_backups([{"name": "monday", "volume": "logs"}], "/srv/backups/lab.web", VOLUMES) == [
        {
            "name": "monday",
            "label": "logs/monday",
            "volume": VOLUMES[1],
            "folder": "/srv/backups/lab.web/logs",
            "archive": "/srv/backups/lab.web/logs/monday.qcow2",
        }
    ]
    both = [{"name": "monday", "volume": volume} for volume in ("data", "logs")]
    assert [one["label"] for one in vm_backups(both, "/srv", VOLUMES)] == ["data/monday", "logs/monday"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "{{ 1 }}", "a\nb", "a" * 32, None, 7])
def test_what_is_no_name_is_refused(name):
    said = "backup %r: expected a name of [a-z0-9_], at most 31 letters" % (name,)
    assert said in told([{"name": name, "volume": "data"}])


@pytest.mark.parametrize("volume", ["other", "../data", None, ["data"]])
def test_a_backup_is_of_a_volume_that_is_declared(volume):
    said = "backup monday: of volume %r, expected one of the volumes (data, logs)" % (volume,)
    assert said in told([{"name": "monday", "volume": volume}])


def test_a_backup_stands_once():
    assert "backup data/monday: there twice, expected each once" in told([{"name": "monday", "volume": "data"}] * 2)
    many = [{"name": "n%d" % number, "volume": "data"} for number in range(101)]
    assert "backups: 101, expected at most 100" in told(many)


def test_what_was_saved_is_told_as_json():
    item = vm_backups([{"name": "monday", "volume": "data"}], "/srv", VOLUMES)[0]
    saved = {"item": item, "sha256": "ab", "consistency": "frozen", "saved_size": 64 << 20}
    assert json.loads(vm_saved([saved, {"item": item, "changed": True}])) == [
        {"volume": "data", "name": "monday", "size_mib": 64, "sha256": "ab", "consistency": "frozen"}
    ]
    assert vm_saved([]) == ""
