"""Who may call what, for every route; a member and an instance see only what is theirs."""

import re
from pathlib import Path

import pytest
from clachan.server.api.app import create_app
from clachan.server.api.permissions import MATRIX
from live import API, Caller, Live, artifact, role, running_controller


def concrete(template: str) -> str:
    """A path of the template that names nothing that exists."""
    return re.sub(r"\{[a-z0-9_]+\}", "nothing", template).removeprefix(API)


def test_every_route_has_a_line_and_every_line_a_route(shared: Live) -> None:
    routes = {
        (method, route.path)
        for route in create_app(shared.controller).routes
        for method in getattr(route, "methods", ())
        if method != "HEAD"
    }
    assert routes == set(MATRIX)


@pytest.fixture(scope="module")
def callers(shared: Live) -> dict[str, Caller]:
    shared.join("prober", slots=0)
    folder = shared.home / "joined-prober"
    cert = (str(folder / "cert.pem"), str(folder / "key.pem"))
    shared.request("home.probe", "acme.web.hello")
    token = shared.ok("POST", "/tokens", {"instance": "home.probe"})["token"]
    return {
        "admin": shared,
        "operator": shared.as_user("anoperator", "operator"),
        "member": shared.as_user("amember", "member", ["home"]),
        "node": Caller(shared.url, shared.ca_file, cert=cert),
        "instance": Caller(shared.url, shared.ca_file, token),
        "nobody": Caller(shared.url, shared.ca_file),
    }


@pytest.mark.parametrize(("method", "template"), sorted(MATRIX))
def test_a_route_admits_whom_the_matrix_says(
    shared: Live, callers: dict[str, Caller], method: str, template: str
) -> None:
    access = MATRIX[method, template]
    for kind, caller in callers.items():
        path = concrete(template)
        if (method, path) == ("GET", "/nodes/self/questions"):
            assert caller.call(method, path).status_code == (
                200 if kind == "node" else 401 if kind == "nobody" else 403
            )
            continue
        status = caller.call(method, path).status_code
        if access.anyone or (access.node and kind == "node") or (access.instance and kind == "instance"):
            assert status not in {401, 403}, kind
        elif kind == "nobody":
            assert status == 401, kind
        else:
            assert (status != 403) == (kind in access.roles), kind


def test_a_member_sees_only_its_tenants(tmp_path: Path, live: Live) -> None:
    live.register(artifact(tmp_path, "acme.web", {"hello": role()}))
    live.tenant("foreign")
    live.join("own", owner="foreign")
    member = live.as_user("mia", "member", ["home"])
    live.request("foreign.one", "acme.web.hello")
    live.request("home.one", "acme.web.hello")
    for method, path in [
        ("GET", "/instances/foreign.one"),
        ("PUT", "/instances/foreign.one"),
        ("PUT", "/instances/foreign.new"),
        ("DELETE", "/instances/foreign.one"),
        ("GET", "/instances/foreign.one/revisions"),
        ("GET", "/instances/foreign.one/logs"),
    ]:
        body = {"software": "acme.web.hello"} if method == "PUT" else None
        response = member.call(method, path, body)
        assert response.status_code == 404, (method, path)
        unknown = member.call(method, path.replace("foreign", "nosuch"), body)
        assert response.text.replace("foreign", "nosuch") == unknown.text
    assert [row["path"] for row in member.ok("GET", "/instances")["items"]] == ["home.one"]
    assert [row["name"] for row in member.ok("GET", "/tenants")["items"]] == ["home"]
    assert {row["tenant"] for row in member.ok("GET", "/events")["items"]} == {"home"}
    assert "foreign" not in member.call("GET", "/inventory").text
    assert member.call("POST", "/inventory/reveal", {"hosts": ["home.one"]}).status_code == 403
    assert member.call("GET", "/instances/home.one?reveal=true").status_code == 403


def test_a_member_sees_the_nodes_that_its_tenants_own(live: Live) -> None:
    live.tenant("foreign")
    for node, owner in (("ours", "home"), ("theirs", "foreign"), ("operators", None)):
        live.join(node, **({"owner": owner} if owner else {}))
    member = live.as_user("mia", "member", ["home"])
    seen = member.ok("GET", "/inventory")["clachan_inventory"]
    assert (list(seen["records"]), seen["groupings"]) == (["ours"], {"nodes": ["ours"]})
    assert seen["records"]["ours"]["clachan_node"]["vm"] is None


def test_a_member_examines_the_nodes_that_its_tenants_own(tmp_path: Path) -> None:
    with running_controller(tmp_path, answer_seconds=1) as live:
        live.tenant("foreign")
        for node, owner in (("ours", "home"), ("theirs", "foreign"), ("operators", None)):
            live.join(node, **({"owner": owner} if owner else {}))
        member = live.as_user("mia", "member", ["home"])
        assert member.call("GET", "/nodes/ours/doctor").status_code == 504
        unknown = member.call("GET", "/nodes/nosuch/doctor")
        assert unknown.status_code == 404
        for node in ("theirs", "operators"):
            assert member.call("GET", f"/nodes/{node}/doctor").text == unknown.text.replace("nosuch", node)
            assert live.call("GET", f"/nodes/{node}/doctor").status_code == 504


def test_an_instance_sees_only_itself(callers: dict[str, Caller], shared: Live) -> None:
    shared.request("home.other", "acme.web.hello")
    own = callers["instance"]
    assert own.ok("GET", "/instances/home.probe")["path"] == "home.probe"
    assert own.call("GET", "/instances/home.other").status_code == 404
    assert own.ok("GET", "/principal") == {
        "kind": "instance",
        "name": "home.probe",
        "role": "instance",
        "tenants": ["home"],
        "reveal": False,
    }


def test_tokens_are_shown_once_and_end_at_once(shared: Live) -> None:
    user = shared.as_user("tim", "operator")
    made = user.ok("POST", "/tokens", {"user": "tim", "title": "laptop"})
    listed = user.ok("GET", "/tokens")["items"]
    assert len(listed) == 2
    assert {row["user"] for row in listed} == {"tim"}
    assert [row["token"] for row in listed] == [None, None]
    laptop = Caller(shared.url, shared.ca_file, made["token"])
    assert laptop.ok("GET", "/principal")["name"] == "tim"
    assert user.call("POST", "/tokens", {"user": "operator"}).status_code == 403
    assert user.call("POST", "/tokens", {"instance": "home.x"}).status_code == 403
    user.ok("DELETE", f"/tokens/{made['id']}")
    assert laptop.call("GET", "/principal").status_code == 401
    assert user.call("DELETE", f"/tokens/{made['id']}").status_code == 404
    mine = shared.ok("GET", "/tokens?limit=500")["items"]
    foreign = next(row for row in mine if row["user"] == "operator")
    assert user.call("DELETE", f"/tokens/{foreign['id']}").status_code == 404


def test_declaring_users_again_changes_nothing(shared: Live) -> None:
    ada = {"name": "ada", "role": "member", "tenants": ["home"]}
    assert shared.call("POST", "/users", ada).status_code == 201
    assert shared.call("POST", "/users", ada).status_code == 200
    response = shared.call("POST", "/users", ada | {"role": "admin"})
    assert response.status_code == 409
    assert response.json()["error"]["message"] == "user ada: exists with another role, expected 'member'"
