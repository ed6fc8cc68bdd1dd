"""VMs as nodes of their tenant: the token that their host asks for, what they are trusted with, their end."""

from pathlib import Path
from typing import Any

import pytest
from clachan.client import Client
from clachan.contract.api import VmToken, VmTokenDeclaration
from clachan.server.db.models import Certificate, Instance, JoinToken, Supply, Usage
from clachan.server.db.models import Node as NodeRow
from clachan.server.services.refusals import Unauthenticated
from live import Caller, Live, Node, artifact, key_and_csr, node_fact, role, usage_fact
from sqlalchemy import select
from vm_hosts import META, OPTIONS, VM, WEB, WEB_META, WEB_OPTIONS, ask, instance_of, join, observed, running

pytestmark = pytest.mark.slow


def refusal(caller: Caller, path: str = "home.vm", generation: str = "g1") -> tuple[int, str]:
    response = caller.call("POST", "/nodes/self/join-tokens", {"instance": path, "generation": generation})
    return response.status_code, response.json()["error"]["message"]


def kinds(live: Live, path: str | None = None) -> list[str]:
    query = f"&path={path}" if path else ""
    return [one["kind"] for one in live.ok("GET", f"/events?limit=500{query}")["items"]]


def test_a_vm_is_started_when_its_agent_has_reported(live: Live, host: Node) -> None:
    instance = live.request("home.vm", VM)["id"]
    token = ask(host)
    assert token["node"] == f"vm_{instance.replace('-', '')[:12]}"
    assert token["token"].startswith(live.controller.authority.fingerprint[:32])
    host.started("home.vm")
    assert observed(live, "home.vm") == ("converging", "waiting for the VM's agent to report")
    silent = join(live, token, slots=0)
    assert observed(live, "home.vm")[0] == "converging"
    silent.accepted(node_fact(4))
    assert observed(live, "home.vm") == ("started", "")
    shown = live.ok("GET", "/instances/home.vm")["observed"]
    assert shown["revision"] == 1
    states = [one["message"] for one in live.ok("GET", "/events?kind=instance_state")["items"]]
    waits = "home.vm is converging: waiting for the VM's agent to report"
    assert states == [waits, "home.vm is started"]
    node = live.ok("GET", f"/nodes/{token['node']}")
    assert (node["owner"], node["vm"], node["state"], node["labels"]) == ("home", "home.vm", "active", {})


def test_the_sdk_asks_as_the_host(live: Live, host: Node) -> None:
    live.request("home.vm", VM)
    wanted = VmTokenDeclaration(instance="home.vm", generation="g1")
    with Client(live.url, ca_file=live.ca_file, cert=host.cert) as client:
        assert client.vm_token(wanted, dry_run=True).token is None
        token = client.vm_token(wanted)
        assert token.joined is False
        join(live, token.model_dump())
        assert client.vm_token(wanted) == VmToken(node=token.node, joined=True)


def test_the_token_is_nowhere_else(live: Live, host: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    live.request("home.vm", VM)
    secret = ask(host)["token"].partition(".")[2]
    places = ["/events?limit=500", "/join-tokens", "/inventory", "/instances/home.vm"]
    assert not [place for place in places if secret in live.call("GET", place).text]
    assert secret not in str(host.slice())
    assert secret not in caplog.text


def test_only_the_host_of_a_started_vm_gets_its_token(live: Live, host: Node) -> None:
    live.supply("here", WEB)
    live.request("home.vm", VM)
    live.request("home.web", WEB)
    other = live.join("other")
    not_there = "instance home.vm: not on node other, expected one that it hosts"
    assert refusal(other) == (404, not_there)
    assert refusal(other, "home.no") == (404, not_there.replace("home.vm", "home.no"))
    no_vm = "instance home.web: acme.virtual.web makes no node, expected a VM"
    assert refusal(host, "home.web") == (409, no_vm)
    assert refusal(host, generation="a b")[0] == 422
    live.request("home.vm", VM, state="stopped")
    assert refusal(host) == (409, "instance home.vm: wanted stopped, expected started")


def test_a_token_asked_for_again_replaces_the_former(live: Live, host: Node) -> None:
    live.request("home.vm", VM)
    assert ask(host, dry=True) == {"node": ask(host)["node"], "joined": False, "token": None, "expires": None}
    first, second = ask(host), ask(host)
    response = Caller(live.url, live.ca_file).call(
        "POST", "/join", {"token": first["token"], "node": first["node"], "csr": key_and_csr("x")[1]}
    )
    assert response.json()["error"]["message"] == "join token: unknown, expected one that is valid"
    node = join(live, second)
    assert ask(host) == {"node": node.name, "joined": True, "token": None, "expires": None}
    node.slice()


def test_another_generation_ends_the_former_identity(live: Live, host: Node) -> None:
    former = running(live, host)
    live.request("home.web", WEB, placement={"inside": "home.vm"})
    former.started("home.web")
    assert ask(host, "g2", dry=True)["joined"] is False
    former.slice()
    token = ask(host, "g2")
    response = former.call("GET", "/nodes/self/inventory")
    assert response.json()["error"]["message"] == "certificate: unknown or revoked, expected that of a node"
    assert observed(live, "home.vm") == ("converging", "waiting for the VM's agent to report")
    assert observed(live, "home.web")[0] == "allocated"
    assert "node_rebuilt" in kinds(live, "home.vm")
    again = join(live, token)
    assert again.id == former.id
    assert observed(live, "home.vm")[0] == "started"
    # its new spool counts from the start
    again.started("home.web")
    assert observed(live, "home.web")[0] == "started"
    assert ask(host, "g2")["joined"] is True
    assert ask(host, "g1")["joined"] is False


def test_what_an_operator_revoked_joins_only_when_built_anew(live: Live, host: Node) -> None:
    node = running(live, host)
    live.ok("DELETE", f"/nodes/{node.name}")
    assert refusal(host) == (409, f"node {node.name}: revoked, expected another generation of its VM")
    join(live, ask(host, "g2")).slice()


def test_a_token_is_of_no_use_when_its_vm_is_no_longer_wanted(live: Live, host: Node) -> None:
    live.request("home.vm", VM)
    token = ask(host)
    live.request("home.vm", VM, state="stopped")
    body = {"token": token["token"], "node": token["node"], "csr": key_and_csr("x")[1]}
    response = Caller(live.url, live.ca_file).call("POST", "/join", body)
    expected = "join token: its VM home.vm is wanted stopped, expected started"
    assert (response.status_code, response.json()["error"]["message"]) == (403, expected)


def test_no_other_token_is_for_the_node_of_a_vm(live: Live, host: Node) -> None:
    node = running(live, host)
    token = live.join_token(node.name, owner="home")
    body = {"token": token, "node": node.name, "csr": key_and_csr("x")[1]}
    response = Caller(live.url, live.ca_file).call("POST", "/join", body)
    expected = f"node {node.name}: is a VM, expected the token that its host asks for"
    assert (response.status_code, response.json()["error"]["message"]) == (409, expected)


def test_a_vm_has_a_routable_address_and_its_slots_share_it(live: Live, host: Node) -> None:
    node = running(live, host)
    own = live.ok("GET", "/instances/home.vm")["slot"]["addresses"]
    assert own["ipv4"].startswith("10.")
    assert own["ipv6"].startswith("fd")
    live.supply("here", WEB)
    live.request("home.out", WEB)
    assert live.ok("GET", "/instances/home.out")["slot"]["addresses"]["ipv4"].startswith("127.")
    for name in ("one", "two"):
        live.request(f"home.{name}", WEB, placement={"inside": "home.vm"})
    slots = [live.ok("GET", f"/instances/home.{name}")["slot"] for name in ("one", "two")]
    assert [slot["addresses"] for slot in slots] == [own, own]
    assert [slot["ports"]["first"] for slot in slots] == [20000, 20020]
    shown = node.slice()["records"][node.name]["clachan_node"]
    assert shown["addresses"] == {"ipv4": f"{own['ipv4']}/32", "ipv6": f"{own['ipv6']}/128", "reach": None, "links": []}
    # it took no number of the machines'
    with live.controller.read() as session:
        numbers = {row.name: row.number for row in session.scalars(select(NodeRow)).unique()}
    assert (numbers["here"], numbers[node.name]) == (0, 4095)


def test_capacity_comes_from_the_parameters(live: Live, host: Node) -> None:
    live.request("home.vm", VM, parameters={"vm_memory_mib": 3000, "vm_cpus": 2})
    limits = live.ok("GET", "/instances/home.vm")["slot"]["limits"]
    assert limits == {"memory_mib": 3000, "tasks": 8, "cpu_milli": 2000}
    live.request("home.two", VM, parameters={"vm_memory_mib": 2000})
    need = "acme.virtual.vm needs 2000 MiB of memory and 1000 milli-CPU"
    free = "here (1096 MiB and 6000 milli-CPU free): remove an instance or add a node"
    assert observed(live, "home.two") == ("waiting", f"{need}: {free}")
    response = live.call("PUT", "/instances/home.vm", {"software": VM, "parameters": {"vm_memory_mib": 5000}})
    expected = "memory (MiB) of home.vm: 5000, expected at most 4096, which here has"
    assert (response.status_code, response.json()["error"]["message"]) == (409, expected)
    assert live.ok("GET", "/instances/home.vm")["revision"] == 1
    live.request("home.vm", VM, parameters={"vm_memory_mib": 1000})
    assert observed(live, "home.two")[0] == "allocated"
    reference = {"vm_cpus": {"from": "home.two", "key": "cpus"}}
    response = live.call("PUT", "/instances/home.ref", {"software": VM, "parameters": reference})
    expected = "parameter vm_cpus: a reference, expected a number: it says what is taken"
    assert (response.status_code, response.json()["error"]["message"]) == (422, expected)


def test_a_vm_has_what_it_was_given_whatever_it_reports(live: Live, host: Node) -> None:
    live.request("home.vm", VM)
    node = join(live, ask(host), memory_mib=10**6, cpu_milli=10**6)
    shown = live.ok("GET", f"/nodes/{node.name}")
    assert (shown["memory_mib"], shown["cpu_milli"]) == (512, 1000)


def test_only_what_asks_for_it_is_placed_inside_and_its_supply_is_implied(live: Live, host: Node) -> None:
    live.tenant("foreign")
    live.request("home.web", WEB, placement={"inside": "home.vm"})
    waits = ("waiting", "waiting for the VM home.vm to join as a node")
    assert observed(live, "home.web") == waits
    node = running(live, host)
    assert live.ok("GET", "/instances/home.web")["node"] == node.name
    (line,) = node.slice()["supplies"]
    assert (line["software"], line["state"]) == (WEB, "present")
    assert node.slice()["software"][line["digest"]]["artifact_sha256"] is not None
    supplied = {"kind": "supply", "supply": line["id"], "digest": line["digest"], "state": "present"}
    node.accepted(supplied)
    assert live.ok("GET", f"/supplies/{node.name}/{WEB}")["observed"] == "present"
    live.request("home.out", WEB)
    assert observed(live, "home.out")[0] == "waiting"
    live.request("foreign.web", WEB, placement={"inside": "home.vm"})
    assert observed(live, "foreign.web") == waits


def test_another_build_inside_brings_its_supply(tmp_path: Path, live: Live, host: Node) -> None:
    node = running(live, host)
    live.request("home.web", WEB, placement={"inside": "home.vm"})
    roles = {"vm": role(OPTIONS, META), "web": role(WEB_OPTIONS, WEB_META, tasks="# new\n[]\n")}
    newer = live.register(artifact(tmp_path, "acme.virtual", roles, "2.0.0"))[0]["digest"]
    assert node.slice()["supplies"][0]["digest"] != newer
    live.request("home.web", WEB, placement={"inside": "home.vm"}, digest=newer)
    assert [line["digest"] for line in node.slice()["supplies"]] == [newer]
    live.request("home.more", WEB, placement={"inside": "home.vm"})
    assert live.ok("GET", "/instances/home.more")["node"] == node.name


def test_what_a_tenants_own_node_counts_is_not_billable(live: Live, host: Node) -> None:
    node = running(live, host)
    web = live.request("home.web", WEB, placement={"inside": "home.vm"})["id"]
    vm = live.ok("GET", "/instances/home.vm")["id"]
    node.accepted(usage_fact(web, quantity=10**9))
    host.accepted(usage_fact(vm))
    found = {row["path"]: row["billable"] for row in live.ok("GET", "/usage")["items"]}
    assert found == {"home.web": False, "home.vm": True}
    (verdict,) = node.report(usage_fact(vm, 1))
    assert verdict["verdict"] == "refused"
    assert "expected from a node that hosts it" in verdict["message"]


def test_an_instance_does_not_move_into_a_vm_or_out_of_it(live: Live, host: Node) -> None:
    live.supply("here", WEB)
    node = running(live, host)
    live.request("home.web", WEB, placement={"inside": "home.vm"})
    live.request("home.out", WEB, placement={"node": "here"})
    for path, placement, wrong, here in [
        ("home.web", {"inside": "home.other"}, "home.other", "home.vm"),
        ("home.web", {}, "none", "home.vm"),
        ("home.out", {"inside": "home.vm"}, "home.vm", "none"),
    ]:
        response = live.call("PUT", f"/instances/{path}", {"software": WEB, "placement": placement})
        message = f"placement of {path}: inside {wrong}, expected {here}, where it is"
        assert (response.status_code, response.json()["error"]["message"]) == (409, message)
    live.request("home.web", WEB, placement={"node": node.name})
    live.request("home.out", WEB)


def gone(host: Node, path: str = "home.vm") -> None:
    """The host has removed what is wanted absent."""
    assert host.slice()["records"][path]["clachan_instance"]["state"] == "absent"
    host.accepted({"kind": "instance", **instance_of(host, path), "state": "absent"})


def assert_no_rows(live: Live, node: Node) -> None:
    with live.controller.read() as session:
        assert session.get(NodeRow, node.id) is None
        for table in (Certificate, Supply):
            assert session.scalars(select(table).where(table.node_id == node.id)).unique().all() == []
        assert session.scalars(select(JoinToken).where(JoinToken.node == node.name)).unique().all() == []
        assert session.scalars(select(Instance).where(Instance.node_id == node.id)).unique().all() == []


def test_a_removed_vm_takes_its_node_with_it(live: Live, host: Node) -> None:
    node = running(live, host)
    web = live.request("home.web", WEB, placement={"inside": "home.vm"})["id"]
    live.request("home.bye", WEB, placement={"inside": "home.vm"})
    live.supply("here", WEB)
    live.request("home.user", WEB, parameters={"web_url": {"from": "home.web", "key": "url"}})
    node.started("home.web", published={"url": "http://10.1.1.1"})
    host.started("home.user")
    node.accepted(usage_fact(web), {"kind": "promises", "instance": web, "results": {"up": {"ok": True}}})
    live.ok("DELETE", "/instances/home.bye")
    live.ok("DELETE", "/instances/home.vm")
    gone(host)
    assert live.call("GET", "/instances/home.vm").status_code == 404
    assert live.call("GET", "/instances/home.bye").status_code == 404
    assert node.call("GET", "/nodes/self/inventory").status_code == 401
    assert live.call("GET", f"/nodes/{node.name}").status_code == 404
    assert_no_rows(live, node)
    # a poll that was admitted just before finds no slice, and is nobody's
    with pytest.raises(Unauthenticated, match="certificate: unknown or revoked, expected that of a node"):
        live.controller.slices.get(node.id)
    assert node.id not in live.controller.slices._slices
    view = live.ok("GET", "/instances/home.web")
    assert observed(live, "home.web") == ("waiting", "waiting for the VM home.vm to join as a node")
    assert (view["node"], view["slot"], view["published"], view["observed"]["promises"]) == (None, None, {}, {})
    assert host.slice()["records"]["home.user"]["clachan_instance"]["state"] == "waiting"
    with live.controller.read() as session:
        assert [row.instance for row in session.scalars(select(Usage))] == [web]
    # another VM of that name takes it in
    again = running(live, host)
    assert again.id != node.id
    assert live.ok("GET", "/instances/home.web")["node"] == again.name
    again.started("home.web")
    live.ok("DELETE", "/instances/home.web")
    gone(again, "home.web")


def test_late_facts_of_a_removed_vm_are_known(live: Live, host: Node) -> None:
    running(live, host)
    vm = instance_of(host, "home.vm")
    live.ok("DELETE", "/instances/home.vm")
    gone(host)
    host.accepted(usage_fact(vm["instance"]), {"kind": "instance", **vm, "state": "started"})
    assert live.call("GET", "/instances/home.vm").status_code == 404


def children(node: Node, parent: str, **wanted: dict[str, Any]) -> None:
    node.accepted({"kind": "requests", **instance_of(node, parent), "children": wanted})


def test_a_vm_does_not_wait_for_its_children_inside_and_waits_for_those_outside(live: Live, host: Node) -> None:
    live.supply("here", WEB)
    node = running(live, host)
    inside, outside = {"inside": "home.vm"}, {"node": "here"}
    children(host, "home.vm", app={"software": WEB, "placement": inside})
    children(
        node, "home.vm.app", part={"software": WEB, "placement": inside}, far={"software": WEB, "placement": outside}
    )
    paths = ["home.vm.app", "home.vm.app.part", "home.vm.app.far"]
    assert [live.ok("GET", f"/instances/{path}")["node"] for path in paths] == [node.name, node.name, "here"]
    live.ok("DELETE", "/instances/home.vm")
    # the VM is dead: nobody in it removes anything
    shown = host.slice()["records"]["home.vm"]["clachan_instance"]["state"]
    assert shown == "waiting"
    assert observed(live, "home.vm") == ("waiting", "waiting for its children to be removed: app.far")
    gone(host, "home.vm.app.far")
    gone(host)
    assert [live.call("GET", f"/instances/{path}").status_code for path in ["home.vm", *paths]] == [404] * 4
    assert_no_rows(live, node)


def test_a_vm_inside_a_vm_is_refused_a_place(live: Live, host: Node) -> None:
    node = running(live, host)
    live.request("home.nested", VM, placement={"inside": "home.vm"})
    reason = f"acme.virtual.vm makes a VM and {node.name} is one: place it on a machine"
    assert observed(live, "home.nested") == ("waiting", reason)


def test_a_vm_whose_host_was_revoked_goes_when_it_is_wanted_absent(live: Live, host: Node) -> None:
    node = running(live, host)
    live.request("home.web", WEB, placement={"inside": "home.vm"})
    live.ok("DELETE", "/instances/home.vm")
    live.ok("DELETE", "/nodes/here")
    assert live.call("GET", "/instances/home.vm").status_code == 404
    assert_no_rows(live, node)
    assert observed(live, "home.web")[0] == "waiting"


def test_the_certificate_has_the_name_that_vms_know(live: Live) -> None:
    import ssl

    from cryptography import x509

    port = int(live.url.rpartition(":")[2])
    certificate = x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "controller.clachan.internal"]
