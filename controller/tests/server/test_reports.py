"""Facts: sent at least once, counted once, never rewritten."""

import copy
from typing import Any

import pytest
from live import Live, Node, node_fact, usage_fact

pytestmark = pytest.mark.slow


def send(node: Node, *facts: dict[str, Any]) -> list[str]:
    answer = node.ok("POST", "/nodes/self/reports", {"facts": list(facts)})
    return [verdict["verdict"] for verdict in answer["verdicts"]]


def test_a_spool_replayed_three_times_counts_once(live: Live, node: Node, hello: str) -> None:
    one = live.request("home.one", hello)["id"]
    spool = [node.fact(usage_fact(one, minute)) for minute in range(40)]
    spool.append(node.fact({"kind": "instance", "instance": one, "revision": 1, "state": "started"}))
    assert send(node, *spool) == ["accepted"] * 41
    before = live.ok("GET", "/usage?limit=500")["items"]
    events = live.ok("GET", "/events?limit=500")["items"]
    for _ in range(3):
        assert send(node, *spool) == ["known"] * 41
    assert live.ok("GET", "/usage?limit=500")["items"] == before
    assert live.ok("GET", "/events?limit=500")["items"] == events
    assert sum(row["quantity"] for row in before) == 280
    assert {(row["tenant"], row["account"], row["path"], row["node"]) for row in before} == {
        ("home", "home", "home.one", "here")
    }


def test_a_conflict_does_not_hold_up_the_rest(live: Live, node: Node, hello: str) -> None:
    one = live.request("home.one", hello)["id"]
    first = node.fact(usage_fact(one))
    assert send(node, first) == ["accepted"]
    altered = copy.deepcopy(first)
    altered["content"]["quantity"] = 1000
    rest = node.fact(usage_fact(one, 1))
    assert send(node, altered, rest) == ["conflict", "accepted"]
    assert sum(row["quantity"] for row in live.ok("GET", "/usage")["items"]) == 14
    (event,) = live.ok("GET", "/events?kind=fact_conflict")["items"]
    assert event["data"] == {"id": first["id"], "kind": "usage"}
    # the same id twice in one batch is judged alike
    third = node.fact(usage_fact(one, 2))
    assert send(node, third, third) == ["accepted", "known"]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"kind": "nonsense"},
        {"kind": "instance"},
        {"kind": "instance", "instance": "unknown", "revision": 1, "state": "started"},
        {"kind": "promises", "instance": "unknown", "results": {}},
        {"kind": "instance", "instance": "ID", "revision": 2, "state": "started"},
        {"kind": "instance", "instance": "ID", "revision": 1, "state": "allocated"},
        {"kind": "instance", "instance": "ID", "revision": 1, "state": "started", "extra": 1},
        {"kind": "instance", "instance": "ID", "revision": 1, "state": "started", "published": {"Bad Key": 1}},
        usage_fact("unknown"),
        usage_fact("ID", quantity=-1),
        usage_fact("ID", quantity=2**63),
    ],
)
def test_a_bad_fact_is_refused_alone(live: Live, node: Node, hello: str, content: dict[str, Any]) -> None:
    one = live.request("home.one", hello)["id"]
    bad = copy.deepcopy(content)
    if bad.get("instance") == "ID":
        bad["instance"] = one
    good = {"kind": "instance", "instance": one, "revision": 1, "state": "started"}
    fact = node.fact({"kind": "node"}) | {"content": bad}
    if bad.get("kind") == "usage":
        fact = node.fact(bad)
    assert send(node, fact, node.fact(good)) == ["refused", "accepted"]
    assert live.ok("GET", "/instances/home.one")["observed"]["state"] == "started"


def test_a_node_speaks_only_of_itself(live: Live, node: Node, hello: str) -> None:
    one = live.request("home.one", hello)["id"]
    other = live.join("other")
    supply = live.ok("GET", "/supplies")["items"][0]["id"]
    facts: list[dict[str, Any]] = [
        {"kind": "instance", "instance": one, "revision": 1, "state": "failed"},
        usage_fact(one),
        {"kind": "requests", "instance": one, "revision": 1, "children": {}},
        {
            "kind": "supply",
            "supply": supply,
            "digest": "0" * 64,
            "state": "failed",
        },
    ]
    assert {verdict["verdict"] for verdict in other.report(*facts)} == {"refused"}
    assert live.ok("GET", "/instances/home.one")["observed"]["state"] == "allocated"


def test_an_older_fact_changes_nothing(live: Live, node: Node, hello: str) -> None:
    one = live.request("home.one", hello)["id"]
    state = {"kind": "instance", "instance": one, "revision": 1}
    old, new = node.fact({**state, "state": "failed", "message": "old"}), node.fact({**state, "state": "started"})
    old["at"] = "2026-01-01T00:00:00Z"
    assert send(node, new, old) == ["accepted", "accepted"]
    assert live.ok("GET", "/instances/home.one")["observed"]["state"] == "started"
    good = {"http": {"ok": True, "message": "fine"}}
    promises = {"kind": "promises", "instance": one, "results": good}
    late, soon = node.fact({**promises, "results": {}}), node.fact(promises)
    late["at"] = "2026-01-01T00:00:00Z"
    assert send(node, soon, late) == ["accepted", "accepted"]
    assert set(live.ok("GET", "/instances/home.one")["observed"]["promises"]) == {"http"}


def test_usage_of_a_removed_instance_is_still_its_owners(live: Live, node: Node, hello: str) -> None:
    one = live.request("home.one", hello)["id"]
    live.ok("DELETE", "/instances/home.one")
    node.started("home.one")
    assert [verdict["verdict"] for verdict in node.report(usage_fact(one))] == ["accepted"]
    (row,) = live.ok("GET", "/usage?path=home.one")["items"]
    assert (row["tenant"], row["quantity"]) == ("home", 7)
    late = {"kind": "instance", "instance": one, "revision": 2, "state": "absent"}
    assert [verdict["verdict"] for verdict in node.report(late)] == ["accepted"]


def test_usage_is_filtered(live: Live, node: Node, hello: str) -> None:
    one, two = live.request("home.one", hello)["id"], live.request("home.two", hello)["id"]
    node.accepted(usage_fact(one), usage_fact(one, meter="memory"), usage_fact(two, 5))
    begin = usage_fact(two, 5)["window_start"]

    def paths(query: str) -> list[str]:
        return [row["path"] for row in live.ok("GET", f"/usage?{query}")["items"]]

    assert paths("path=home.one") == ["home.one", "home.one"]
    assert paths("meter=memory") == ["home.one"]
    assert paths("tenant=nobody") == []
    assert paths(f"since={begin}") == ["home.two"]
    assert paths(f"until={begin}") == ["home.one", "home.one"]


def test_outages_and_runs_are_events(live: Live, node: Node, hello: str) -> None:
    one = live.request("home.one", hello)["id"]
    began, ended = "2026-11-22T10:00:00Z", "2026-11-22T10:00:09Z"
    outage = {"kind": "outage", "instance": one, "began": began, "promises": ["http"]}
    node.accepted(
        {**outage, "phase": "began", "message": "refused"},
        {**outage, "phase": "ended", "ended": ended},
        {
            "kind": "run",
            "run": "r1",
            "purpose": "converge",
            "software": hello,
            "hosts": ["home.one"],
            "status": "successful",
            "began": began,
            "ended": ended,
            "changed": 1,
        },
        {
            "kind": "run",
            "run": "r2",
            "purpose": "supply",
            "software": hello,
            "hosts": [],
            "status": "failed",
            "began": began,
            "ended": ended,
            "changed": 0,
        },
    )
    events = live.ok("GET", "/events?path=home.one&limit=500")["items"]
    by_kind = {row["kind"]: row for row in events}
    assert [row["kind"] for row in events].count("outage") == 1
    assert by_kind["outage"]["data"]["began"] == began
    assert by_kind["recovery"]["data"]["ended"] == ended
    assert by_kind["run"]["data"]["changed"] == 1
    said = [row["message"] for row in live.ok("GET", "/events?kind=run&limit=500")["items"]]
    assert said[-2:] == [
        f"run converge of home.one on node {node.name}: successful",
        f"run supply of {hello} on node {node.name}: failed",
    ]


def test_children_are_requested_by_their_parent(live: Live, node: Node, hello: str) -> None:
    parent = live.request("home.parent", hello)["id"]
    child = {"software": hello, "parameters": {"hello_port": 1}}
    fact = {"kind": "requests", "instance": parent, "revision": 1}
    bad = {"software": hello, "parameters": {"nonsense": 1}}
    node.accepted({**fact, "children": {"a": child, "b": child, "c": bad}})
    assert live.ok("GET", "/instances/home.parent")["children"] == ["home.parent.a", "home.parent.b"]
    (refused,) = live.ok("GET", "/events?kind=request_refused")["items"]
    assert "nonsense" in refused["message"]
    etag = node.call("GET", "/nodes/self/inventory").headers["etag"]
    node.started("home.parent.a", published={"url": "http://a", "password": "pw"})
    document = node.call("GET", "/nodes/self/inventory", headers={"if-none-match": etag})
    mine = document.json()["clachan_inventory"]["records"]["home.parent"]["clachan_instance"]
    assert mine["children"]["a"] == {"state": "started", "published": {"url": "http://a", "password": "pw"}}
    whole = live.ok("GET", "/inventory")["clachan_inventory"]["records"]["home.parent"]["clachan_instance"]
    assert whole["children"]["a"]["published"] == {"url": "http://a", "password": "<secret>"}

    node.accepted({**fact, "children": {"a": child}})
    assert live.ok("GET", "/instances/home.parent.b")["wanted"] == "absent"
    node.started("home.parent.b")
    assert live.ok("GET", "/instances/home.parent")["children"] == ["home.parent.a"]

    # a root goes after its children
    live.ok("DELETE", "/instances/home.parent")
    assert live.ok("GET", "/instances/home.parent.a")["wanted"] == "absent"
    state = node.slice()["records"]["home.parent"]["clachan_instance"]["state"]
    assert state == "waiting"
    node.accepted({**fact, "revision": 1, "children": {"a": child}})
    node.started("home.parent.a")
    assert node.slice()["records"]["home.parent"]["clachan_instance"]["state"] == "absent"
    node.started("home.parent")
    assert live.ok("GET", "/instances")["items"] == []


def test_a_nodes_facts_never_touch_its_labels(live: Live, node: Node) -> None:
    live.ok("PUT", "/nodes/here", {"labels": {"zone": "a"}, "reach": "10.0.0.9"})
    node.accepted(node_fact(12, system="Debian {{ 7 * 7 }}"))
    seen = live.ok("GET", "/nodes/here")
    assert (seen["labels"], seen["slots"], seen["system"]) == ({"zone": "a"}, 12, "Debian {{ 7 * 7 }}")
    assert seen["addresses"]["reach"] == "10.0.0.9"
    assert seen["online"] is True
    verdict = node.report({**node_fact(1), "labels": {"zone": "b"}})[0]
    assert verdict["verdict"] == "refused"
