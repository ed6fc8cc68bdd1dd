# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was seen on a node against what its instances say: each way to differ has one finding that names it."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.clachan.platform.plugins.module_utils.node_doctor import examine

DISK = "/c/slots/s003/var/system-0123456789abcdef.qcow2"
IMAGE = "/c/images/abc/disk.qcow2"
DATA = "/c/volumes/home.lab.m1/data.raw"
ID = "0a9a4c4e-4d55-4f5c-9d5e-0f1b3c3f2a11"
OTHER = "0a9a4c4e-4d55-4f5c-9d5e-0f1b3c3f2a22"
WHOLE = {
    "slots": {
        3: {"user": "clachan_003", "uid": 903},
        4: {"user": "clachan_004", "uid": 904},
    },
    "instances": [{"path": "home.lab.m1", "id": ID, "index": 3, "state": "started", "machine": True}],
    "domains": {
        "home.lab.m1": {
            "uuid": ID,
            "state": "started",
            "uid": 903,
            "disks": [DISK, DATA],
            "backing": [IMAGE],
            "taps": ["cv3"],
        }
    },
    "no_domains": None,
    "files": [
        {"path": DISK, "uid": 903, "slot": 3, "instance": None},
        {"path": DATA, "uid": 903, "slot": None, "instance": "home.lab.m1"},
    ],
    "missing": [],
    "unfinished": [],
    "taps": ["cv3"],
    "members": {"cv3": {"user": "clachan_003", "cluster": "home.lab"}},
    "steps": [],
    "elements": {},
    "table": None,
    "unreached": [],
    "no_links": None,
    "broken_links": None,
    "processes": [{"pid": 7, "name": "qemu-system-x86", "uid": 903, "uuid": ID}],
}
EMPTY = dict(WHOLE, instances=[], domains={}, files=[], taps=[], members={}, processes=[])


def changed(whole, *where, **to):
    """A copy in which what is at the path of keys has other values."""
    seen = copy.deepcopy(whole)
    found = seen
    for key in where:
        found = found[key]
    found.update(to)
    return seen


def wrong(seen):
    found = [one for one in examine(seen) if not one["ok"]]
    return ["{kind} {name}: {found}, expected {expected}".format(**one) for one in found]


def test_each_kind_says_that_it_is_well():
    assert [(one["kind"], one["name"], one["ok"]) for one in examine(WHOLE)] == [
        ("domain", "home.lab.m1", True),
        ("volume", DISK, True),
        ("volume", DATA, True),
        ("image", IMAGE, True),
        ("tap", "cv3", True),
        ("rule", "table inet clachan", True),
        ("user", "clachan_003", True),
    ]


def test_each_kind_says_that_there_is_none():
    assert [(one["kind"], one["ok"], one["found"]) for one in examine(EMPTY)] == [
        ("domain", True, "none"),
        ("volume", True, "none"),
        ("image", True, "none: no machine is made from one"),
        ("tap", True, "none"),
        ("rule", True, "none"),
        ("user", True, "none"),
    ]


DOMAIN = ("domains", "home.lab.m1")
DIFFERENCES = [
    (DOMAIN, {"state": "paused"}, "domain home.lab.m1: paused, expected started"),
    (DOMAIN, {"uid": 904}, "domain home.lab.m1: user clachan_004, expected user clachan_003"),
    (DOMAIN, {"uid": 0}, "domain home.lab.m1: user 0, expected user clachan_003"),
    (DOMAIN, {"uid": None}, "domain home.lab.m1: user None, expected user clachan_003"),
    (DOMAIN, {"taps": ["cv4"]}, "domain home.lab.m1: link cv4, expected link cv3"),
    ((), {"missing": [DISK]}, "volume %s: nothing, expected the disk of domain home.lab.m1" % DISK),
    ((), {"missing": [IMAGE]}, "image %s: nothing, expected the image of domain home.lab.m1" % IMAGE),
    (("files", 0), {"uid": 0}, "volume %s: user 0, expected user clachan_003" % DISK),
    (("files", 1), {"uid": 904}, "volume %s: user clachan_004, expected user clachan_003" % DATA),
    (
        ("members", "cv3"),
        {"cluster": "home.web"},
        "tap cv3: a member of cluster home.web, expected of cluster home.lab",
    ),
    (("members", "cv3"), {"user": "clachan_004"}, "tap cv3: user clachan_004, expected user clachan_003"),
    (
        (),
        {"steps": ["address fe80::1/64 of cv3"]},
        "tap cv3: another link than declared, expected this step: address fe80::1/64 of cv3",
    ),
    (
        (),
        {"steps": ["setting net.ipv4.ip_forward 1"]},
        "rule machine: not as declared, expected this step: setting net.ipv4.ip_forward 1",
    ),
    ((), {"table": ("not there", "the rules")}, "rule table inet clachan: not there, expected the rules"),
    (
        (),
        {"elements": {"internet": {"lacks": {("cv3",)}, "has": set()}}},
        "rule set internet: an element is not there, expected cv3",
    ),
    (
        (),
        {"elements": {"internet": {"lacks": set(), "has": {("cv9",)}}}},
        "rule set internet: cv9, expected no such element",
    ),
    (
        (),
        {"unreached": ["192.0.2.7: no route"]},
        "rule way to members elsewhere: 192.0.2.7: no route, expected a node on a network of this machine",
    ),
    ((), {"broken_links": "file x: not to be read"}, "rule : file x: not to be read, expected "),
    (
        ("processes", 0),
        {"uuid": OTHER},
        "user clachan_003: process 7 runs domain %s, which libvirt does not run, expected none" % OTHER,
    ),
    (
        ("processes", 0),
        {"uid": 904},
        "user clachan_004: process 7 qemu-system-x86, expected none: its slot is free",
    ),
    (("slots", 4), {"uid": None}, "user clachan_004: no such user, expected a user of this machine, as it is a slot's"),
]


@pytest.mark.parametrize(("where", "to", "said"), DIFFERENCES, ids=[said for _where, _to, said in DIFFERENCES])
def test_what_differs(where, to, said):
    assert wrong(changed(WHOLE, *where, **to)) == [said]


def test_a_tap_that_is_gone_is_one_finding():
    steps = ["tap cv3", "setting net.ipv4.conf.cv3.rp_filter 1", "route 10.0.0.1 of cv3"]
    assert wrong(dict(WHOLE, steps=steps, taps=[])) == ["tap cv3: no tap, expected a tap of user clachan_003"]


def test_a_link_of_another_slot_is_not_taken_for_it():
    assert wrong(dict(WHOLE, steps=["route 10.0.0.1 of cv30"])) == [
        "rule machine: not as declared, expected this step: route 10.0.0.1 of cv30"
    ]


def test_what_comes_or_goes_may_be_there_or_not():
    for state in ("waiting", "absent"):
        instances = [dict(WHOLE["instances"][0], state=state)]
        assert wrong(dict(WHOLE, instances=instances)) == []
        assert wrong(dict(EMPTY, instances=instances)) == []


def test_what_is_stopped_has_a_domain_and_no_process():
    instances = [dict(WHOLE["instances"][0], state="stopped")]
    stopped = changed(dict(WHOLE, instances=instances), *DOMAIN, state="stopped")
    assert wrong(dict(stopped, processes=[])) == []
    assert wrong(stopped) == [
        "user clachan_003: process 7 runs domain %s, which libvirt does not run, expected none" % ID
    ]
    assert wrong(dict(stopped, domains={}, processes=[]))[0] == (
        "domain home.lab.m1: no domain, expected a domain that is stopped"
    )


def test_a_domain_of_another_id_or_name():
    assert wrong(changed(WHOLE, *DOMAIN, uuid=OTHER))[0] == "domain home.lab.m1: id %s, expected id %s" % (OTHER, ID)
    renamed = {"home.lab.m9": WHOLE["domains"]["home.lab.m1"]}
    assert wrong(dict(WHOLE, domains=renamed)) == [
        "domain home.lab.m9: the id of home.lab.m1, expected the name home.lab.m1"
    ]


def test_what_no_instance_has():
    assert wrong(dict(WHOLE, instances=[])) == [
        "domain home.lab.m1: started, %s, expected none: no instance has this name or id" % ID,
        "volume %s: a file in a free slot, expected none" % DISK,
        "tap cv3: a member of cluster home.lab, expected none: no machine is in this slot",
        "user clachan_003: process 7 qemu-system-x86, expected none: its slot is free",
    ]
    kept = [one for one in examine(dict(WHOLE, instances=[])) if one["name"] == DATA]
    assert [(one["ok"], one["found"]) for one in kept] == [(True, "data kept: instance home.lab.m1 is no more")]


def test_domains_of_the_operator_are_no_fault():
    own = {"uuid": OTHER, "state": "started", "uid": None, "disks": [], "backing": [], "taps": [None]}
    seen = dict(EMPTY, domains={"win10": own})
    assert [one for one in examine(seen) if one["kind"] == "domain"] == [
        {"kind": "domain", "name": "win10", "ok": True, "found": "started, not of this platform", "expected": ""}
    ]
    for more in ({"uid": 904}, {"taps": ["cv9"]}):
        assert len(wrong(dict(EMPTY, domains={"win10": dict(own, **more)}))) == 1


def test_a_service_in_a_slot_is_no_machine():
    page = {"path": "home.page", "id": OTHER, "index": 4, "state": "started", "machine": False}
    file = {"path": "/c/slots/s004/var/seed.iso", "uid": 0, "slot": 4, "instance": None}
    process = {"pid": 9, "name": "python3", "uid": 904, "uuid": None}
    seen = dict(EMPTY, instances=[page], files=[file], processes=[process])
    assert wrong(seen) == []
    member = {"cv4": {"user": "clachan_004", "cluster": "home.page"}}
    assert wrong(dict(seen, members=member, taps=["cv4"])) == [
        "tap cv4: a member of cluster home.page, expected none: no machine is in this slot"
    ]


def test_work_on_images():
    unfinished = [{"path": "/c/images/.partial-a", "busy": True}, {"path": "/c/images/.partial-b", "busy": False}]
    assert wrong(dict(EMPTY, unfinished=unfinished)) == [
        "image /c/images/.partial-b: work that was cut off, expected none: the next work on the store removes it"
    ]


def test_files_half_made():
    half = [
        {"path": "/c/slots/s003/var/.seed.iso.new", "uid": 903, "slot": 3, "instance": None},
        {"path": "/c/volumes/home.gone/.data.raw.new", "uid": 0, "slot": None, "instance": "home.gone"},
    ]
    assert wrong(dict(WHOLE, files=half)) == [
        "volume /c/slots/s003/var/.seed.iso.new: a file half made, expected none: the next run of home.lab.m1 ends it",
        "volume /c/volumes/home.gone/.data.raw.new: a file half made, expected none: the next run of home.gone ends it",
    ]


def test_backups():
    """Also those whose instance or whose declaration is no more."""
    names = {"one.qcow2": False, ".two.qcow2.new": True, ".three.qcow2.new": False}
    folder = "/c/backups/home.gone/data/"
    files = [
        {"path": folder + name, "uid": 0, "slot": None, "instance": "home.gone", "busy": busy}
        for name, busy in names.items()
    ]
    said = "a backup half made, expected none: vm_delete_backups of home.gone removes it"
    assert wrong(dict(WHOLE, files=files)) == ["volume %s.three.qcow2.new: %s" % (folder, said)]


def test_a_table_that_somebody_emptied_is_not_listed_whole():
    lacks = {("cv%d" % number,) for number in range(100)}
    assert len(wrong(dict(WHOLE, elements={"internet": {"lacks": lacks, "has": set()}}))) == 20
