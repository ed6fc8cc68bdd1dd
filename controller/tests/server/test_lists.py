"""Every list comes in pages, and costs the same number of queries however long it is."""

import pytest
from live import Live, Node, counted, usage_fact

LISTS = [
    "/accounts",
    "/tenants",
    "/users",
    "/tokens",
    "/join-tokens",
    "/nodes",
    "/software",
    "/images",
    "/supplies",
    "/instances",
    "/instances/home.i0/revisions",
    "/events",
    "/usage",
    "/inventory",
]


def fill(live: Live, node: Node, hello: str, begin: int, end: int) -> None:
    """One more of everything that can be listed."""
    for number in range(begin, end):
        live.tenant(f"t{number}")
        live.as_user(f"u{number}", "member", ["home", f"t{number}"])
        live.join(f"n{number}")
        live.supply(f"n{number}", hello)
        digest = f"{number:064x}"
        facts = {"name": "image", "sha256": digest, "size": 512, "virtual_size": 512, "disk_format": "raw"}
        made = {"builder": "import", "created": "2026-01-31T12:00:00Z", "recipe_digest": None}
        live.ok("PUT", f"/images/{digest}", {"format": 1, "recipe": None, "packages": {}, **facts, **made})
        parameters = {
            "hello_password": f"p{number}",
            "hello_url": {"from": f"home.i{max(number - 1, 0)}x", "key": "url"},
        }
        live.request(f"home.i{number}", hello, parameters=parameters, placement={"node": "here"})
        view = live.request(f"home.i{number}x", hello, placement={"node": "here"})
        live.request("home.i0", hello, parameters={"hello_port": number}, placement={"node": "here"})
        child = {"c": {"software": hello, "placement": {"node": "here"}}}
        node.accepted(
            {"kind": "requests", "instance": view["id"], "revision": 1, "children": child},
            {"kind": "promises", "instance": view["id"], "results": {"http": {"ok": True}, "tcp": {"ok": True}}},
            usage_fact(view["id"]),
        )
        node.started(f"home.i{number}x", published={"url": "x", "password": "y"})


def test_the_number_of_queries_does_not_grow(live: Live, hello: str) -> None:
    node = live.join("here", slots=100)
    live.supply("here", hello)
    fill(live, node, hello, 0, 2)

    def measure() -> dict[str, int]:
        found = {}
        for path in LISTS:
            with counted(live) as statements:
                live.ok("GET", path)
            found[path] = len(statements)
        return found

    live.ok("GET", "/principal")
    few = measure()
    fill(live, node, hello, 2, 8)
    live.ok("GET", "/principal")
    assert measure() == few
    assert max(few.values()) <= 8


def test_an_unchanged_poll_sends_no_statement_and_a_change_rebuilds_one_host(
    live: Live, hello: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clachan.server.decisions import inventory

    node = live.join("here", slots=100)
    live.supply("here", hello)
    for number in range(20):
        live.request(f"home.i{number}", hello)
    etag = node.call("GET", "/nodes/self/inventory").headers["etag"]
    with counted(live) as statements:
        for _ in range(5):
            unchanged = node.call("GET", "/nodes/self/inventory", headers={"if-none-match": etag})
            assert unchanged.status_code == 304
    assert statements == []

    built: list[str] = []
    build = inventory.instance_fragment

    def note(record: inventory.InstanceRecord, *, redacted: bool) -> inventory.Fragment:
        built.append(record.path)
        return build(record, redacted=redacted)

    monkeypatch.setattr(inventory, "instance_fragment", note)
    live.request("home.i7", hello, parameters={"hello_port": 7})
    assert node.call("GET", "/nodes/self/inventory", headers={"if-none-match": etag}).status_code == 200
    assert built == ["home.i7"]


def test_pages_follow_each_other(live: Live, hello: str) -> None:
    for number in range(7):
        live.request(f"home.i{number}", hello)
    seen: list[str] = []
    cursor, pages = "", 0
    while True:
        page = live.ok("GET", f"/instances?limit=3{cursor}")
        assert len(page["items"]) <= 3
        seen += [row["path"] for row in page["items"]]
        pages += 1
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert (seen, pages) == ([f"home.i{number}" for number in range(7)], 3)
    foreign = live.ok("GET", "/events?limit=1")["cursor"]
    assert live.call("GET", f"/instances?cursor={foreign}").status_code == 422


def test_instances_are_filtered(live: Live, node: Node, hello: str) -> None:
    live.tenant("other")
    live.request("home.a", hello)
    live.request("other.b", hello)
    node.started("home.a")

    def paths(query: str) -> list[str]:
        return [row["path"] for row in live.ok("GET", f"/instances?{query}")["items"]]

    assert paths("tenant=other") == ["other.b"]
    assert paths("state=started") == ["home.a"]
    assert paths(f"software={hello}") == ["home.a", "other.b"]
    assert paths("software=acme.web.none") == []
    assert live.call("GET", "/instances?state=nonsense").status_code == 422


def test_events_are_filtered_and_followed(live: Live, node: Node, hello: str) -> None:
    live.request("home.a", hello)
    events = live.ok("GET", "/events")["items"]
    assert [row["id"] for row in events] == sorted(row["id"] for row in events)
    last = events[-1]["id"]
    live.request("home.b", hello)
    fresh = live.ok("GET", f"/events?after={last}")["items"]
    assert {row["path"] for row in fresh} == {"home.b"}
    assert {row["kind"] for row in live.ok("GET", "/events?kind=node_joined")["items"]} == {"node_joined"}
    assert {row["node"] for row in live.ok("GET", "/events?node=here")["items"]} == {"here"}
