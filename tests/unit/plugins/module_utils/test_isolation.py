# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Members become elements of sets, and nothing but members, networks and numbers becomes text for nft."""

from __future__ import annotations

import re

import pytest
from ansible_collections.clachan.platform.plugins.module_utils import isolation, isolation_rules
from ansible_collections.clachan.platform.plugins.module_utils.isolation import IsolationError, elements, member

GIVEN = {
    "tap": "cv0",
    "cluster": "acme.web",
    "user": "clachan_000",
    "mac": "52:54:00:12:34:56",
    "ipv4": "10.77.16.16",
    "ipv6": "fd42:7:77:1::10",
    "relay_port": 20000,
    "policy": "internal",
    "remote": [],
}
FAR = {"address": "10.66.0.17", "via": "192.0.2.7"}
FAR6 = {"address": "fd42::2", "via": "2001:db8::7"}


def made(index=0, **more):
    own = {
        "tap": "cv%d" % index,
        "mac": "52:54:00:00:00:%02x" % index,
        "ipv4": "10.77.16.%d" % (16 + index),
        "ipv6": "fd42:7:77:1::%x" % (16 + index),
        "relay_port": 20000 + 20 * index,
    }
    return member(dict(GIVEN, **dict(own, **more)))


def test_a_record_is_a_member_again():
    one = made(policy=[{"cidr": "192.0.2.0/24", "protocol": "tcp", "port": 443}], remote=[FAR])
    assert member(one) == one
    assert sorted(one) == sorted([*GIVEN, "format"])


def test_one_spelling_of_addresses():
    one = made(mac="52:54:00:AB:CD:EF", ipv6="FD42:0007:0:0:0:0:0:1", remote=[dict(FAR6, address="FD42::0:2"), FAR])
    assert (one["mac"], one["ipv6"]) == ("52:54:00:ab:cd:ef", "fd42:7::1")
    assert one["remote"] == [FAR, FAR6]


ONE = "; accept"
WRONG = [
    ("tap", "eth0", "tap: 'eth0', expected cv<index of the slot>"),
    ("tap", "cv0\n", "tap: 'cv0\\n', expected cv<index of the slot>"),
    ("tap", 'cv0" accept', "tap: 'cv0\" accept', expected cv<index of the slot>"),
    ("tap", "cv007", "tap: 'cv007', expected cv<index of the slot>"),
    ("cluster", "acme", "cluster: 'acme', expected <tenant>.<root instance>"),
    ("cluster", "acme.web.db", "cluster: 'acme.web.db', expected <tenant>.<root instance>"),
    ("cluster", None, "cluster: None, expected <tenant>.<root instance>"),
    ("user", "root;", "user of tap cv0: 'root;', expected the name of a unix user"),
    ("mac", "52:54:00:12:34", "mac of tap cv0: '52:54:00:12:34', expected one host's, as 52:54:00:12:34:56"),
    ("mac", "ff:ff:ff:ff:ff:ff", "mac of tap cv0: 'ff:ff:ff:ff:ff:ff', expected one host's, as 52:54:00:12:34:56"),
    ("ipv4", "fd42::1", "ipv4 of tap cv0: 'fd42::1', expected the address of a host"),
    ("ipv4", "127.0.0.1", "ipv4 of tap cv0: '127.0.0.1', expected the address of a host"),
    ("ipv4", "169.254.1.1", "ipv4 of tap cv0: '169.254.1.1', expected the address of a host"),
    (
        "ipv4",
        "10.0.0.1 }; flush ruleset",
        "ipv4 of tap cv0: '10.0.0.1 }; flush ruleset', expected the address of a host",
    ),
    ("ipv4", 16843009, "ipv4 of tap cv0: 16843009, expected the address of a host"),
    ("ipv6", "fe80::1%eth0", "ipv6 of tap cv0: 'fe80::1%eth0', expected the address of a host"),
    ("ipv6", "::ffff:10.0.0.1", "ipv6 of tap cv0: '::ffff:10.0.0.1', expected the address of a host"),
    ("remote", ["10.66.0.17"], "remote of tap cv0: '10.66.0.17', expected address and via"),
    (
        "remote",
        [dict(FAR, address="10.0.0.0/8")],
        "address of a remote of tap cv0: '10.0.0.0/8', expected the address of a host",
    ),
    (
        "remote",
        [dict(FAR, via="oak" + ONE)],
        "via of a remote of tap cv0: 'oak; accept', expected the address of a host",
    ),
    ("remote", [dict(FAR, via="127.0.0.1")], "via of a remote of tap cv0: '127.0.0.1', expected the address of a host"),
    (
        "remote",
        [dict(FAR, via="2001:db8::7")],
        "remote of tap cv0: 10.66.0.17 via 2001:db8::7, expected each address once and both of one family",
    ),
    (
        "remote",
        [FAR, dict(FAR, via="192.0.2.8")],
        "remote of tap cv0: 10.66.0.17 via 192.0.2.8, expected each address once and both of one family",
    ),
    ("relay_port", 80, "relay_port of tap cv0: 80, expected 1024 to 65535"),
    ("relay_port", True, "relay_port of tap cv0: True, expected 1024 to 65535"),
    ("relay_port", "20000", "relay_port of tap cv0: '20000', expected 1024 to 65535"),
    ("policy", "any", "policy of tap cv0: 'any', expected internal, internet or a list"),
    ("policy", None, "policy of tap cv0: None, expected internal, internet or a list"),
    (
        "policy",
        ["192.0.2.0/24"],
        "destination of tap cv0: '192.0.2.0/24', expected cidr and, when limited, protocol and port",
    ),
    (
        "policy",
        [{"cidr": "::/0", "ports": [1]}],
        "destination of tap cv0: {'cidr': '::/0', 'ports': [1]}, expected cidr and, when limited, protocol and port",
    ),
    (
        "policy",
        [{"cidr": "192.0.2.1/24"}],
        "cidr of a destination of tap cv0: '192.0.2.1/24', expected a network as 192.0.2.0/24",
    ),
    ("policy", [{}], "cidr of a destination of tap cv0: None, expected a network as 192.0.2.0/24"),
    (
        "policy",
        [{"cidr": "192.0.2.0/24", "protocol": "tcp" + ONE}],
        "protocol of a destination of tap cv0: 'tcp; accept', expected tcp, udp or icmp",
    ),
    (
        "policy",
        [{"cidr": "192.0.2.0/24", "protocol": "tcp", "port": "80"}],
        "port of a destination of tap cv0: '80', expected 1 to 65535",
    ),
    (
        "policy",
        [{"cidr": "192.0.2.0/24", "port": 80}],
        "port of a destination of tap cv0: 80 with protocol None, expected tcp or udp",
    ),
    (
        "policy",
        [{"cidr": "192.0.2.0/24", "protocol": "icmp", "port": 80}],
        "port of a destination of tap cv0: 80 with protocol icmp, expected tcp or udp",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_what_is_no_member_is_told(key, value, message):
    with pytest.raises(IsolationError) as told:
        member(dict(GIVEN, **{key: value}))
    assert str(told.value) == message


@pytest.mark.parametrize("key", ["mac", "ipv4", "ipv6", "relay_port"])
def test_two_members_are_apart(key):
    one, other = made(0), made(1)
    isolation.check_apart(one, [one, other])
    with pytest.raises(IsolationError) as told:
        isolation.check_apart(dict(other, **{key: one[key]}), [one, other])
    assert str(told.value) == "%s of tap cv1: %s, expected another than tap cv0 has" % (key, one[key])


def test_members_of_a_cluster_are_peers_and_of_others_not():
    found = elements([made(0), made(1), made(2, cluster="acme.db"), made(3, cluster="zeta.web")], [])
    assert found["peers"] == {("cv0", "cv1"), ("cv1", "cv0")}


def test_sources_are_the_members_own():
    found = elements([made(0)], [])
    mac = "52:54:00:00:00:00"
    assert found["source4"] == {("cv0", mac, "10.77.16.16")}
    assert found["sender"] == {("cv0", mac, "10.77.16.16"), ("cv0", mac, "0.0.0.0")}
    own = {"fd42:7:77:1::10", "fe80::5054:ff:fe00:0", "::"}
    assert found["source6"] == {("cv0", mac, address) for address in own}
    assert elements([made(0, ipv6=None)], [])["source6"] == set()


def test_the_link_local_address_is_the_one_of_a_guests_kernel():
    assert isolation.link_local("52:54:00:12:34:56") == "fe80::5054:ff:fe12:3456"
    assert isolation.link_local("02:00:00:00:00:01") == "fe80::ff:fe00:1"


def test_a_policy_of_destinations():
    policy = [
        {"cidr": "192.0.2.0/24"},
        {"cidr": "198.51.100.7/32", "protocol": "tcp", "port": 443},
        {"cidr": "2001:db8::/32", "protocol": "udp"},
        {"cidr": "0.0.0.0/0", "protocol": "icmp"},
        {"cidr": "::/0", "protocol": "icmp"},
    ]
    found = elements([made(0, policy=policy)], [])
    assert found["networks4"] == {("cv0", "192.0.2.0/24")}
    assert found["ports4"] == {("cv0", "198.51.100.7", "6", "443")}
    assert found["protocols6"] == {("cv0", "2001:db8::/32", "17"), ("cv0", "::/0", "58")}
    assert found["protocols4"] == {("cv0", "0.0.0.0/0", "1")}
    assert found["internet"] == set()


def test_destinations_never_overlap_in_one_set():
    policy = [{"cidr": one} for one in ("10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "10.0.0.1/32")]
    assert elements([made(0, policy=policy)], [])["networks4"] == {("cv0", "10.0.0.0/7")}


def test_equal_policies_are_equal_in_any_order():
    one = [{"cidr": "192.0.2.0/24"}, {"cidr": "192.0.2.0/24", "protocol": "tcp", "port": 1}, {"cidr": "192.0.2.0/24"}]
    assert made(0, policy=one)["policy"] == made(0, policy=one[::-1])["policy"]
    assert len(made(0, policy=one)["policy"]) == 2


def test_reserved_networks_are_never_reached():
    found = elements([], ["10.0.0.0/8", "fd00::/8", "203.0.113.0/24"])
    assert {("10.0.0.0/8",), ("203.0.113.0/24",), ("169.254.0.0/16",), ("168.63.129.16",)} <= found["never4"]
    assert {("fd00::/8",), ("fe80::/9",)} <= found["never6"]


def test_the_text_has_a_difference_and_nothing_else():
    before, after = elements([made(0)], []), elements([made(0), made(1)], [])
    assert isolation_rules.change(before, before) == ""
    added = isolation_rules.change(before, after)
    assert 'add element inet clachan peers { "cv0" . "cv1", "cv1" . "cv0" }\n' in added
    assert "delete" not in added
    removed = isolation_rules.change(after, before)
    assert removed.count("delete element") == added.count("add element")


def test_every_element_is_of_its_sets_type():
    remote = [FAR, FAR6]
    policies = ["internal", "internet", [{"cidr": "192.0.2.0/24", "protocol": "udp", "port": 53}, {"cidr": "::/0"}]]
    found = elements([made(i, policy=one, remote=remote) for i, one in enumerate(policies)], isolation.RESERVED)
    assert set(found) == set(isolation_rules.SETS)
    for name, values in found.items():
        assert all(len(one) == len(isolation_rules.SETS[name][1]) for one in values)
        assert all(re.fullmatch(r"[a-z0-9.:/]+", field) for one in values for field in one)


def test_rules_are_for_our_taps_alone():
    """Each base chain first lets pass, or does not name, what is no tap of ours."""
    for chain, (hook, rules) in isolation_rules.CHAINS.items():
        if "forward" in hook or "nat" in hook:
            assert all("cv*" in rule or "@remote" in rule or "@ways" in rule for rule in rules), chain
        elif hook:
            assert rules[0].endswith('ifname != "cv*" accept'), chain


def test_homes_have_tables_of_their_own_mark():
    one, other = isolation_rules.tables("/var/lib/clachan"), isolation_rules.tables("/srv/clachan")
    assert one != other
    assert isolation_rules.home_chain("/srv/clachan") in other
