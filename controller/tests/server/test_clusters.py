"""Clusters over several nodes: what a VM's slice says of its fellows elsewhere, and whose slice changes when."""

from pathlib import Path
from typing import Any

import pytest
from live import Live, Node, artifact, counted, node_fact, role

pytestmark = pytest.mark.slow

VM, WEB = "acme.virtual.vm", "acme.virtual.web"
META = {"needs_root": True, "makes_node": True, "capacity": {"memory_mib": 1, "cpu_milli": 1, "tasks": 8}}
SMALL = {"capacity": {"memory_mib": 1, "cpu_milli": 1, "tasks": 8}}
MEMBERS = "SELECT instance.id, instance.path, instance.slot_index"
"""How the question begins that asks for the members of clusters."""
LINKS = {"oak": ["192.0.2.1", "2001:db8::1"], "elm": ["192.0.2.2", "2001:db8::2"]}


@pytest.fixture
def nodes(tmp_path: Path, live: Live) -> dict[str, Node]:
    """Two machines that may run VMs; where they are reached came with their join tokens."""
    roles = {"vm": role({"vm_size": {"type": "int"}}, META), "web": role(meta=SMALL)}
    live.register(artifact(tmp_path, "acme.virtual", roles))
    found = {}
    for name, links in LINKS.items():
        found[name] = live.join(name, slots=0, links=links)
        found[name].accepted(node_fact(40))
        live.supply(name, VM)
        live.supply(name, WEB)
    return found


def vm(live: Live, path: str, node: str, software: str = VM, **more: Any) -> dict[str, Any]:
    """The instance, on that node; gives its addresses."""
    addresses: dict[str, Any] = live.request(path, software, placement={"node": node}, **more)["slot"]["addresses"]
    return addresses


def own(node: Node, path: str) -> dict[str, Any]:
    found: dict[str, Any] = node.slice()["records"][path]["clachan_instance"]
    return found


def remote(node: Node, path: str) -> list[str]:
    return [one["path"] for one in own(node, path).get("remote", [])]


def etag(node: Node) -> str:
    return str(node.call("GET", "/nodes/self/inventory").headers["etag"])


def children(live: Live, node: Node, **places: str) -> None:
    """The VMs that the root `home.big` on that node asks for: name -> node."""
    wanted = {name: {"software": VM, "placement": {"node": place}} for name, place in places.items()}
    root = live.ok("GET", "/instances/home.big")
    node.accepted({"kind": "requests", "instance": root["id"], "revision": root["revision"], "children": wanted})


def test_a_member_knows_its_fellows_on_other_nodes_alone(live: Live, nodes: dict[str, Node]) -> None:
    vm(live, "home.big", "oak", WEB)
    children(live, nodes["oak"], a="oak", b="oak", c="elm")
    vm(live, "home.bigger", "elm")
    shown = {name: live.ok("GET", f"/instances/home.big.{name}")["slot"]["addresses"] for name in "abc"}
    far = {"path": "home.big.c", "node": "elm", **shown["c"], "links": LINKS["elm"]}
    assert own(nodes["oak"], "home.big.a")["remote"] == own(nodes["oak"], "home.big.b")["remote"] == [far]
    back = [{"path": f"home.big.{one}", "node": "oak", **shown[one], "links": LINKS["oak"]} for one in "ab"]
    assert own(nodes["elm"], "home.big.c")["remote"] == back
    assert shown["c"]["ipv4"].startswith("10.")
    assert "remote" not in own(nodes["elm"], "home.bigger")
    assert "remote" not in own(nodes["oak"], "home.big")


@pytest.mark.parametrize(("links", "spread"), [(LINKS["elm"], True), (["192.0.2.2"], False), ([], False)])
def test_members_spread_over_nodes_that_reach_each_other(
    live: Live, nodes: dict[str, Node], links: list[str], spread: bool
) -> None:
    live.ok("PUT", "/nodes/elm", {"links": links})
    vm(live, "home.big", "oak", WEB)
    wanted = {name: {"software": VM, "placement": {"spread": True}} for name in "abc"}
    root = live.ok("GET", "/instances/home.big")
    nodes["oak"].accepted(
        {"kind": "requests", "instance": root["id"], "revision": root["revision"], "children": wanted}
    )
    places = [live.ok("GET", f"/instances/home.big.{name}")["node"] for name in "abc"]
    assert len(set(places)) == (2 if spread else 1), places


def test_only_who_has_fellows_elsewhere_hears_of_a_change(live: Live, nodes: dict[str, Node]) -> None:
    live.tenant("other")
    vm(live, "home.big", "oak", WEB)
    children(live, nodes["oak"], a="oak", c="elm")
    vm(live, "other.big", "elm")
    before = {path: own(nodes["elm"], path) for path in ("home.big.c", "other.big")}
    oak = own(nodes["oak"], "home.big.a")
    # one more on oak: its own fellow there is told nothing, the one on elm is
    children(live, nodes["oak"], a="oak", b="oak", c="elm")
    assert remote(nodes["elm"], "home.big.c") == ["home.big.a", "home.big.b"]
    assert own(nodes["oak"], "home.big.a") == oak
    assert own(nodes["elm"], "other.big") == before["other.big"]
    children(live, nodes["oak"], a="oak", c="elm")
    assert remote(nodes["elm"], "home.big.c") == ["home.big.a", "home.big.b"]
    nodes["oak"].started("home.big.b")
    assert own(nodes["elm"], "home.big.c") == before["home.big.c"]


def test_a_link_that_changes_is_told_to_the_other_ends(live: Live, nodes: dict[str, Node]) -> None:
    third = live.join("ash")
    vm(live, "home.big", "oak", WEB)
    children(live, nodes["oak"], a="oak", c="elm")
    still = etag(third)
    live.ok("PUT", "/nodes/elm", {"links": ["2001:db8::9", "192.0.2.9"]})
    assert live.ok("GET", "/nodes/elm")["addresses"]["links"] == ["192.0.2.9", "2001:db8::9"]
    assert own(nodes["oak"], "home.big.a")["remote"][0]["links"] == ["192.0.2.9", "2001:db8::9"]
    # a way leads there and back
    live.ok("PUT", "/nodes/oak", {"links": ["192.0.2.1"]})
    assert own(nodes["oak"], "home.big.a")["remote"][0]["links"] == ["192.0.2.9"]
    assert own(nodes["elm"], "home.big.c")["remote"][0]["links"] == ["192.0.2.1"]
    live.ok("PUT", "/nodes/oak", {"links": []})
    assert own(nodes["elm"], "home.big.c")["remote"][0]["links"] == []
    assert own(nodes["oak"], "home.big.a")["remote"][0]["links"] == []
    assert etag(third) == still
    mine = etag(nodes["oak"])
    live.ok("PUT", "/nodes/oak", {"links": []})
    live.ok("PUT", "/nodes/oak", {"reach": None})
    assert etag(nodes["oak"]) == mine


def test_members_on_a_revoked_node_are_none(live: Live, nodes: dict[str, Node]) -> None:
    vm(live, "home.big", "oak", WEB)
    children(live, nodes["oak"], a="oak", c="elm")
    live.ok("DELETE", "/nodes/elm")
    assert remote(nodes["oak"], "home.big.a") == []
    live.join("elm", slots=0)
    assert own(nodes["oak"], "home.big.a")["remote"][0]["links"] == LINKS["elm"]
    live.ok("DELETE", "/nodes/elm")
    live.join("elm", slots=0, links=["192.0.2.7"])
    assert own(nodes["oak"], "home.big.a")["remote"][0]["links"] == ["192.0.2.7"]


def test_another_software_is_no_member(live: Live, nodes: dict[str, Node]) -> None:
    vm(live, "home.big", "oak")
    root = live.ok("GET", "/instances/home.big")
    wanted = {"c": {"software": VM, "placement": {"node": "elm"}}}
    nodes["oak"].accepted({"kind": "requests", "instance": root["id"], "revision": 1, "children": wanted})
    assert remote(nodes["elm"], "home.big.c") == ["home.big"]
    live.request("home.big", WEB, placement={"node": "oak"})
    assert remote(nodes["elm"], "home.big.c") == []
    live.request("home.big", VM, placement={"node": "oak"})
    assert remote(nodes["elm"], "home.big.c") == ["home.big"]


def test_the_inventory_of_a_tenant_has_no_addresses_of_nodes(live: Live, nodes: dict[str, Node]) -> None:
    vm(live, "home.big", "oak", WEB)
    children(live, nodes["oak"], a="oak", c="elm")
    member = live.as_user("ann", "member", ["home"])
    records = member.ok("GET", "/inventory")["clachan_inventory"]["records"]
    assert "remote" not in records["home.big.a"]["clachan_instance"]
    assert "192.0.2." not in str(records)
    assert member.call("PUT", "/nodes/oak", {"links": []}).status_code == 403
    assert nodes["oak"].call("PUT", "/nodes/oak", {"links": []}).status_code == 403
    records = live.ok("GET", "/inventory")["clachan_inventory"]["records"]
    assert records["home.big.a"]["clachan_instance"]["remote"][0]["links"] == LINKS["elm"]


def test_where_a_node_cannot_be_reached(live: Live, nodes: dict[str, Node]) -> None:
    slots = vm(live, "home.big", "oak")
    form = "expected at most one IPv4 and one IPv6 address of a host, neither loopback nor link-local"
    for given in (
        ["127.0.0.1"], ["::1"], ["fe80::1"], ["169.254.1.1"], ["0.0.0.0"], ["224.0.0.1"], ["192.0.2.1", "192.0.2.2"],
        ["oak"], ["192.0.2.0/24"], ["2001:db8::1%eth0"], ["::ffff:192.0.2.1"], [""],
    ):  # fmt: skip
        for method, path, body in (
            ("PUT", "/nodes/oak", {"links": given}),
            ("POST", "/join-tokens", {"node": "oak", "links": given}),
        ):
            error = live.call(method, path, body).json()["error"]
            assert (error["message"], error["field"]) == (f"links: Value error, links {given}, {form}", "links"), given
    outside = "expected an address outside the platform that no other node has"
    for link in (slots["ipv4"], slots["ipv6"], LINKS["elm"][0]):
        expected = {"message": f"links of node oak: {link}, {outside}", "field": "links"}
        for method, path, body in (
            ("PUT", "/nodes/oak", {"links": [link]}),
            ("POST", "/join-tokens", {"node": "oak", "links": [link]}),
        ):
            response = live.call(method, path, body)
            assert response.status_code == 422
            assert response.json()["error"].items() >= expected.items()
    assert live.ok("GET", "/nodes/oak")["addresses"]["links"] == LINKS["oak"]


def test_machines_of_tenants_have_no_links(live: Live, nodes: dict[str, Node]) -> None:
    live.join("theirs", owner="home")
    for method, path, body in (
        ("PUT", "/nodes/theirs", {"links": ["192.0.2.5"]}),
        ("POST", "/join-tokens", {"node": "theirs", "owner": "home", "links": ["192.0.2.5"]}),
    ):
        error = live.call(method, path, body).json()["error"]
        assert error["message"] == "links of node theirs: belongs to a tenant, expected a machine of the operator"


def test_a_slice_without_vms_asks_for_no_members(live: Live, nodes: dict[str, Node]) -> None:
    vm(live, "home.web", "oak", WEB)
    nodes["oak"].slice()
    live.request("home.web", WEB, placement={"node": "oak"}, state="stopped")
    with counted(live) as statements:
        nodes["oak"].slice()
    assert statements
    assert not [one for one in statements if one.startswith(MEMBERS)]
    vm(live, "home.big", "oak")
    with counted(live) as statements:
        nodes["oak"].slice()
    assert len([one for one in statements if one.startswith(MEMBERS)]) == 1
