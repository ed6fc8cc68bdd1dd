"""The whole way once: join, supply, request, slice, report, published values that flow to another instance."""

from live import Live, Node


def test_request_reaches_the_slice_and_comes_back(live: Live, node: Node, hello: str) -> None:
    view = live.request("home.one", hello, parameters={"hello_port": 80, "hello_password": "geheim"})
    assert view["observed"]["state"] == "allocated"
    assert view["node"] == "here"
    assert view["slot"]["name"] == "s000"
    assert view["parameters"] == {"hello_port": 80, "hello_password": "<secret>"}

    host = node.slice()["records"]["home.one"]
    assert host["hello_password"] == "geheim"
    assert len(host["hello_key"]) == 43
    assert host["clachan_instance"]["sealed"] == ["hello_key", "hello_password"]

    node.started("home.one", published={"url": "http://127.0.0.1:1", "password": "pw"})
    seen = live.ok("GET", "/instances/home.one")
    assert (seen["observed"]["state"], seen["observed"]["revision"]) == ("started", 1)
    assert seen["published"] == {"url": "http://127.0.0.1:1", "password": "<secret>"}
    assert live.ok("GET", "/instances/home.one?reveal=true")["published"]["password"] == "pw"


def test_a_reference_waits_and_flows(live: Live, node: Node, hello: str) -> None:
    wanted = {"hello_url": {"from": "home.source", "key": "url"}}
    wanted["hello_text"] = {"from": "home.source", "key": "password"}
    view = live.request("home.user", hello, parameters=wanted)
    assert view["observed"]["state"] == "waiting"
    assert view["observed"]["message"].startswith("waiting for home.source to publish url")
    assert node.slice()["records"]["home.user"]["clachan_instance"]["state"] == "waiting"

    live.request("home.source", hello)
    node.started("home.source", published={"url": "http://x", "password": "pw"})
    host = node.slice()["records"]["home.user"]
    assert (host["hello_url"], host["hello_text"], host["clachan_instance"]["state"]) == ("http://x", "pw", "started")
    assert host["clachan_instance"]["sealed"] == ["hello_key", "hello_text"]
    shown = live.ok("GET", "/inventory")["clachan_inventory"]["records"]["home.user"]
    assert (shown["hello_url"], shown["hello_text"], shown["hello_key"]) == ("http://x", "<secret>", "<secret>")
    assert live.ok("GET", "/instances/home.user")["observed"]["state"] == "allocated"
    revealed = live.ok("POST", "/inventory/reveal", {"hosts": ["home.user"]})["variables"]["home.user"]
    assert revealed["hello_text"] == "pw"


def test_removal_frees_the_slot(live: Live, node: Node, hello: str) -> None:
    live.request("home.one", hello)
    live.ok("DELETE", "/instances/home.one")
    assert node.slice()["records"]["home.one"]["clachan_instance"]["state"] == "absent"
    node.started("home.one")
    assert live.call("GET", "/instances/home.one").status_code == 404
    assert "home.one" not in node.slice()["records"]
    assert live.request("home.two", hello)["slot"]["index"] == 0
