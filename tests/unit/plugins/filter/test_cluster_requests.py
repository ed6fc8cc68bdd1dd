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


def linked(number, state="started"):
    """A member that its host has linked."""
    link = {"address": "10.0.0.%d" % number, "address6": "fd00::%d" % number, "canary": 20001 + 20 * number}
    return {"state": state, "published": link}


def machines(requests):
    return {name: one for name, one in requests.items() if one["software"] == "clachan.platform.vm"}


def images(requests):
    return {name: request["parameters"]["vm_image"][0] for name, request in machines(requests).items()}


def test_members_are_virtual_machines_spread_over_nodes():
    requests = cluster_requests(instance(), WANTED)
    assert sorted(requests) == ["m1", "m2", "m3", "probe_m1", "probe_m2", "probe_m3"]
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
    assert sorted(machines(five)) == ["m1", "m2", "m3", "m4", "m5"]
    assert {name: five[name] for name in three} == three
    assert cluster_requests(instance(m1=member(), m2=member(), m3=member()), dict(WANTED, size=1)) == {
        "m1": three["m1"],
        "probe_m1": three["probe_m1"],
    }


def test_together_follows_the_first_member():
    wanted = dict(WANTED, placement="together")
    assert sorted(cluster_requests(instance(m1=member(host=None)), wanted)) == ["m1", "probe_m1"]
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
    others = sorted(name for name in requests if not name.startswith("probe_") and name not in machines(requests))
    assert others == ["master_m1", "worker_m2", "worker_m3"]
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


def reached(requests, name):
    return {(one["name"], one["address"]) for one in requests[name]["parameters"]["probe_reached"]}


def test_each_member_asks_for_those_whose_agents_were_heard_of():
    seen = {"m1": linked(1), "m2": linked(2), "m3": linked(3, "converging")}
    seen.update(probe_m1={"state": "started"}, probe_m2={"state": "converging"}, probe_m3={"state": "allocated"})
    requests = cluster_requests(instance(**seen), WANTED)
    assert requests["probe_m1"]["placement"] == {"inside": "lab.hadoop.m1"}
    assert requests["probe_m1"]["software"] == "clachan.platform.probe"
    assert reached(requests, "probe_m1") == {("m2", "10.0.0.2"), ("m2", "fd00::2")}
    assert reached(requests, "probe_m3") == {
        ("m1", "10.0.0.1"), ("m1", "fd00::1"), ("m2", "10.0.0.2"), ("m2", "fd00::2")
    }  # fmt: skip
    seen["probe_m3"] = {"state": "started"}
    assert len(reached(cluster_requests(instance(**seen), WANTED), "probe_m1")) == 4
    assert reached(cluster_requests(instance(**seen), dict(WANTED, size=2)), "probe_m1") == reached(
        requests, "probe_m1"
    )


@pytest.mark.parametrize("state", ["converging", "failing", "failed"])
def test_a_member_that_is_away_for_a_moment_shall_be_reached_all_the_same(state):
    seen = {"m1": linked(1), "m2": linked(2), "probe_m1": {"state": "started"}, "probe_m2": {"state": "started"}}
    before = cluster_requests(instance(**seen), dict(WANTED, size=2))
    seen["m2"] = linked(2, state)
    assert cluster_requests(instance(**seen), dict(WANTED, size=2)) == before


def test_a_member_asks_for_the_canary_of_its_own_host():
    requests = cluster_requests(instance(m1=linked(1), m2={"state": "converging", "published": {}}), WANTED)
    assert requests["probe_m1"]["parameters"]["probe_silent"] == [
        {"name": "the host of m1", "address": "169.254.1.1", "port": 20021},
        {"name": "the host of m1", "address": "fe80::1", "port": 20021},
    ]
    assert requests["probe_m2"]["parameters"] == {"probe_reached": [], "probe_silent": []}


def test_a_software_with_the_name_of_the_probes_is_refused():
    wanted = dict(WANTED, software=[{"name": "probe", "software": "a.b.c", "members": [2]}])
    with pytest.raises(AnsibleFilterError) as told:
        cluster_requests(instance(), wanted)
    assert "software probe of lab.hadoop: the name of the cluster's own probes, expected another" in str(told.value)


def test_backups_are_alike_for_all_and_one_member_is_brought_back():
    backups = [{"name": "monday", "volume": "data"}]
    back = {"member": 2, "volume": "data", "backup": "monday", "word": ""}
    requests = machines(cluster_requests(instance(), dict(WANTED, backups=backups, delete_backups=True, restore=back)))
    said = {name: one["parameters"] for name, one in requests.items()}
    assert [one["vm_backups"] for one in said.values()] == [backups] * 3
    assert {name: one.get("vm_restore") for name, one in said.items()} == {
        "m1": None,
        "m2": {"volume": "data", "backup": "monday"},
        "m3": None,
    }
    assert all(one["vm_delete_backups"] for one in said.values())
    for number in (0, 4, None, "1 or 1"):
        with pytest.raises(AnsibleFilterError) as told:
            cluster_requests(instance(), dict(WANTED, restore=dict(back, member=number)))
        assert "restore of lab.hadoop: member %s, expected 1 to 3" % number in str(told.value)
