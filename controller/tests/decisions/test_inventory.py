import hashlib
import json
from dataclasses import replace

import pytest
from clachan.contract.inventory import (
    Inventory,
    NodeAddresses,
    NodeVariables,
    Slot,
    SoftwareArtifact,
    SupplyLine,
)
from clachan.contract.names import is_name
from clachan.contract.software import Capacity
from clachan.server.decisions import addresses
from clachan.server.decisions.inventory import (
    ChildRecord,
    Fragment,
    Groupings,
    InstanceRecord,
    assemble,
    etag,
    host_name_problem,
    instance_fragment,
    instance_groups,
    label_group,
    node_fragment,
)
from hypothesis import given
from hypothesis import strategies as st

NETWORKS = NodeAddresses(ipv4="127.0.16.0/20", ipv6="fd00::/64")
PLATFORM = "6c2b1c1e-0000-4000-8000-000000000001"
DIGEST = "a" * 64


def slot(index: int = 0) -> Slot:
    return addresses.slot(NETWORKS, index, user="clachan_000", slots_directory="/srv/slots", capacity=Capacity())


WEB = InstanceRecord(
    id="i1",
    revision=3,
    path="home.shop.web",
    software="acme.tools.web",
    digest=DIGEST,
    type="main",
    state="started",
    node="here",
    slot=slot(),
    parameters={"web_port": 80, "web_token": "s3cret"},
    redacted={"web_port": 80, "web_token": "<secret>"},
    sealed=("web_token",),
    children={"db": ChildRecord("started", {"host": "h", "password": "pa55"}, frozenset({"password"}))},
)
NODE = NodeVariables(id="n1", name="here", labels={"disk": "ssd"}, addresses=NETWORKS, owner=None, state="active")
SOFTWARE = {
    DIGEST: SoftwareArtifact(
        collection="acme.tools", version="1.0.0", artifact_sha256="b" * 64, size=100, platform=False
    )
}
SUPPLIES = [SupplyLine(id="s1", software="acme.tools.web", digest=DIGEST, state="present")]


def document(*fragments: Fragment) -> bytes:
    return assemble(PLATFORM, "here", fragments, SOFTWARE, SUPPLIES)


def variables(fragment: Fragment) -> dict:
    return json.loads(b"{%b}" % fragment.record)[fragment.name]


def parsed(data: bytes) -> Inventory:
    wrapped = json.loads(data)
    assert list(wrapped) == ["clachan_inventory"]
    return Inventory.from_json(json.dumps(wrapped["clachan_inventory"]))


def test_slice():
    inventory = parsed(document(node_fragment(NODE), instance_fragment(WEB, redacted=False)))
    assert (inventory.platform, inventory.node) == (PLATFORM, "here")
    assert inventory.groupings == {
        "nodes": ["here"],
        "label_disk_ssd": ["here"],
        "instances": ["home.shop.web"],
        "software_web": ["home.shop.web"],
        "tenant_home": ["home.shop.web"],
        "cluster_home_shop": ["home.shop.web"],
        "node_here": ["home.shop.web"],
    }
    assert inventory.records["here"] == {"clachan_node": NODE.model_dump()}
    web = inventory.records["home.shop.web"]
    assert (web["web_port"], web["web_token"]) == (80, "s3cret")
    assert web["clachan_instance"] == {
        "id": "i1",
        "revision": 3,
        "path": "home.shop.web",
        "tenant": "home",
        "software": "acme.tools.web",
        "digest": DIGEST,
        "type": "main",
        "state": "started",
        "node": "here",
        "slot": slot().model_dump(),
        "parent": "home.shop",
        "children": {"db": {"state": "started", "published": {"host": "h", "password": "pa55"}}},
        "sealed": ["web_token"],
    }
    assert inventory.software == SOFTWARE
    assert inventory.supplies == SUPPLIES


def test_variables_are_the_contract_s():
    from clachan.contract.inventory import InstanceVariables

    record = variables(instance_fragment(WEB, redacted=False))
    found = InstanceVariables.from_json(json.dumps(record["clachan_instance"]))
    assert (found.path, found.parent) == (record["clachan_instance"]["path"], "home.shop")


def test_redacted():
    fragment = instance_fragment(WEB, redacted=True)
    assert b"s3cret" not in fragment.record
    assert b"pa55" not in fragment.record
    record = variables(fragment)
    assert (record["web_port"], record["web_token"]) == (80, "<secret>")
    assert record["clachan_instance"]["sealed"] == ["web_token"]


def test_a_waiting_instance_has_no_parameters():
    record = variables(instance_fragment(replace(WEB, state="waiting"), redacted=False))
    assert set(record) == {"clachan_instance"}
    assert (record["clachan_instance"]["state"], record["clachan_instance"]["sealed"]) == ("waiting", [])


def test_parameters_never_hide_the_platform_s_variable():
    hostile = replace(WEB, parameters={"clachan_instance": {"id": "mine"}})
    record = variables(instance_fragment(hostile, redacted=False))
    assert record["clachan_instance"]["id"] == "i1"


def test_empty_documents():
    assert parsed(assemble(PLATFORM, None, [], {}, [])).records == {}


def test_etag_changes_with_the_document():
    first = document(instance_fragment(WEB, redacted=False))
    assert etag(first) == f'"{hashlib.sha256(first).hexdigest()}"'
    changed = replace(WEB, parameters={**WEB.parameters, "web_token": "other"})
    assert etag(document(instance_fragment(changed, redacted=False))) != etag(first)
    assert etag(document(instance_fragment(WEB, redacted=False))) == etag(first)


NAMES = st.text("ab_", min_size=1, max_size=5).filter(is_name)


def test_a_vm_is_a_member_of_its_cluster():
    assert not [group for group in node_fragment(NODE).groups if group.startswith("members_")]
    vm = NODE.model_copy(update={"vm": "big_lab.hadoop.m1", "owner": "big_lab"})
    assert "members_big__lab_hadoop" in node_fragment(vm).groups
    assert variables(node_fragment(vm))["clachan_node"]["vm"] == "big_lab.hadoop.m1"
    other = NODE.model_copy(update={"vm": "big.lab_hadoop.m1"})
    assert "members_big_lab_hadoop" in node_fragment(other).groups, "root lab_hadoop of tenant big is another cluster"
    assert host_name_problem("members_x") is not None


@given(left=st.tuples(NAMES, NAMES), right=st.tuples(NAMES, NAMES))
def test_groups_of_different_clusters_and_labels_never_meet(left, right):
    groups = [instance_groups(".".join(pair), "a.b.c", "here")[3] for pair in (left, right)]
    assert (groups[0] == groups[1]) == (left == right)
    labels = [label_group(*pair) for pair in (left, right)]
    assert (labels[0] == labels[1]) == (left == right)


@given(value=st.text(max_size=10))
def test_a_label_s_value_is_a_group_name(value):
    assert label_group("zone", value).replace("_", "").isalnum()
    assert label_group("zone", value).isidentifier()
    assert label_group("zone", value).isascii()


def test_labels_that_look_alike_differ():
    assert label_group("zone", "eu-west") == "label_zone_eu_west_50121d09"
    assert label_group("zone", "eu-west") != label_group("zone", "eu.west") != label_group("zone", "eu_west")


@pytest.mark.parametrize("name", ["nodes", "instances", "all", "localhost", "tenant_home", "clachan_inventory"])
def test_node_names_that_are_groups(name):
    assert host_name_problem(name) == f"node name: {name}, expected one that no group of the inventory has"
    assert host_name_problem("here") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(value=JSON)
def test_values_arrive_unchanged_in_one_line_of_ascii(value):
    fragment = instance_fragment(replace(WEB, parameters={"web_x": value}), redacted=False)
    data = document(fragment)
    assert data.isascii()
    assert len(data.decode().splitlines()) == 1
    assert json.loads(data)["clachan_inventory"]["records"]["home.shop.web"]["web_x"] == value


def test_groupings_are_made_again_when_a_host_changes():
    records = [replace(WEB, path=f"home.web{i}", slot=slot(i)) for i in range(3)]
    fragments = [instance_fragment(record, redacted=False) for record in records]
    kept = Groupings()
    moved = instance_fragment(replace(records[1], software="acme.other.kind"), redacted=False)
    for hosts in (fragments, fragments, fragments[:2], [fragments[0], moved, fragments[2]], [], fragments):
        fresh = assemble(PLATFORM, "here", hosts, SOFTWARE, SUPPLIES)
        assert assemble(PLATFORM, "here", hosts, SOFTWARE, SUPPLIES, groupings=kept) == fresh
