# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cluster requests while it is made, grows, shrinks and rolls to another image."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.filter.cluster_requests import cluster_requests

FLAVOUR = {"cpus": 1, "memory_mib": 512, "disk_mib": 3072}
WANTED = {
    "size": 3,
    "image": "a" * 64,
    "flavour": FLAVOUR,
    "volumes": [{"name": "data", "size_mib": 64}],
    "network": "internal",
    "destinations": [],
    "authorized_keys": [],
    "placement": "spread",
    "software": [],
    "at_once": 1,
}


def instance(**children):
    return {"path": "lab.hadoop", "children": children}


def member(state="started", image="a", host="n1", **flavour):
    published = dict(FLAVOUR, **flavour, image=image * 64, host=host)
    return {"state": state, "published": published}


def images(requests):
    return {name: request["parameters"]["vm_image"][0] for name, request in requests.items()}


def test_members_are_virtual_machines_spread_over_nodes():
    requests = cluster_requests(instance(), WANTED)
    assert sorted(requests) == ["m1", "m2", "m3"]
    assert requests["m2"] == {
        "software": "clachan.platform.vm",
        "parameters": {
            "vm_image": "a" * 64,
            "vm_cpus": 1,
            "vm_memory_mib": 512,
            "vm_disk_mib": 3072,
            "vm_volumes": [{"name": "data", "size_mib": 64}],
            "vm_network": "internal",
            "vm_destinations": [],
            "vm_authorized_keys": [],
        },
        "placement": {"spread": True},
    }


def test_growing_and_shrinking_leave_the_others_as_they_are():
    three = cluster_requests(instance(m1=member(), m2=member(), m3=member()), WANTED)
    five = cluster_requests(instance(m1=member(), m2=member(), m3=member()), dict(WANTED, size=5))
    assert sorted(five) == ["m1", "m2", "m3", "m4", "m5"]
    assert {name: five[name] for name in three} == three
    assert cluster_requests(instance(m1=member(), m2=member(), m3=member()), dict(WANTED, size=1)) == {
        "m1": three["m1"]
    }


def test_together_follows_the_first_member():
    wanted = dict(WANTED, placement="together")
    assert sorted(cluster_requests(instance(m1=member(host=None)), wanted)) == ["m1"]
    requests = cluster_requests(instance(m1=member(host="n7")), wanted)
    assert [requests[name]["placement"] for name in ("m1", "m2", "m3")] == [
        {"spread": False},
        {"node": "n7"},
        {"node": "n7"},
    ]


def test_a_new_image_takes_one_member_at_a_time():
    wanted = dict(WANTED, image="b" * 64)
    seen = instance(m1=member(), m2=member(), m3=member())
    assert images(cluster_requests(seen, wanted)) == {"m1": "b", "m2": "a", "m3": "a"}
    seen = instance(m1=member("converging", "b"), m2=member(), m3=member())
    assert images(cluster_requests(seen, wanted)) == {"m1": "b", "m2": "a", "m3": "a"}
    seen = instance(m1=member(image="b"), m2=member(), m3=member())
    assert images(cluster_requests(seen, wanted)) == {"m1": "b", "m2": "b", "m3": "a"}
    assert images(cluster_requests(seen, dict(wanted, at_once=2))) == {"m1": "b", "m2": "b", "m3": "b"}


def test_a_member_that_serves_nobody_takes_the_new_at_once_and_holds_up_the_others():
    seen = instance(m1=member(), m2=member("failed"), m3=member())
    assert images(cluster_requests(seen, dict(WANTED, image="b" * 64))) == {"m1": "a", "m2": "b", "m3": "a"}


def test_another_flavour_rolls_too():
    seen = instance(m1=member(), m2=member(), m3=member())
    requests = cluster_requests(seen, dict(WANTED, flavour=dict(FLAVOUR, memory_mib=1024)))
    assert [requests[name]["parameters"]["vm_memory_mib"] for name in ("m1", "m2", "m3")] == [1024, 512, 512]


def test_software_is_placed_inside_its_members():
    wanted = dict(
        WANTED,
        software=[
            {"name": "master", "software": "acme.hadoop.namenode", "members": [1]},
            {"name": "worker", "software": "acme.hadoop.datanode", "members": [2, 3], "parameters": {"datanode_a": 1}},
        ],
    )
    requests = cluster_requests(instance(), wanted)
    assert sorted(set(requests) - {"m1", "m2", "m3"}) == ["master_m1", "worker_m2", "worker_m3"]
    assert requests["worker_m3"] == {
        "software": "acme.hadoop.datanode",
        "type": "main",
        "parameters": {"datanode_a": 1},
        "placement": {"inside": "lab.hadoop.m3"},
    }


def test_a_member_that_is_not_there_is_refused():
    wanted = dict(WANTED, software=[{"name": "master", "software": "a.b.c", "members": [4]}])
    with pytest.raises(AnsibleFilterError) as told:
        cluster_requests(instance(), wanted)
    assert "software master of lab.hadoop: member 4, expected 1 to 3" in str(told.value)
