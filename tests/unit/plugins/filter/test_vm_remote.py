# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each address of a member elsewhere gets the way of its family, and what has none is told once for each node."""

from __future__ import annotations

from ansible_collections.clachan.platform.plugins.filter.vm_remote import vm_remote


def there(index, node="elm", links=("192.0.2.2", "2001:db8::2")):
    own = {"ipv4": "10.77.32.%d" % index, "ipv6": "fd42::%x" % index}
    return dict(own, path="lab.web.m%d" % index, node=node, links=list(links))


def test_each_family_has_its_way():
    assert vm_remote([there(1)], "oak") == {
        "members": [
            {"address": "10.77.32.1", "via": "192.0.2.2"},
            {"address": "fd42::1", "via": "2001:db8::2"},
        ],
        "missing": [],
    }
    assert vm_remote([], "oak") == {"members": [], "missing": []}


def test_what_has_no_way_is_told_by_node():
    remote = [there(1, links=["192.0.2.2"]), there(2, links=["192.0.2.2"]), there(3, node="ash", links=[])]
    found = vm_remote(remote, "oak")
    assert [one["address"] for one in found["members"]] == ["10.77.32.1", "10.77.32.2"]
    assert found["missing"] == [
        "no IPv4 and IPv6 to the members on ash: oak or ash has no such link address",
        "no IPv6 to the members on elm: oak or elm has no such link address",
    ]
