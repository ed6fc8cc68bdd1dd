"""A node that hosts VMs, and VMs as nodes, for tests."""

import os
from typing import Any

from live import Caller, Live, Node, key_and_csr, node_fact

VM = "acme.virtual.vm"
WEB = "acme.virtual.web"
OPTIONS = {"vm_memory_mib": {"type": "int", "default": 512}, "vm_cpus": {"type": "int", "default": 1}}
META = {
    "needs_root": True,
    "makes_node": True,
    "capacity": {"memory_mib": 0, "cpu_milli": 0, "tasks": 8},
    "capacity_from": {"memory_mib": {"option": "vm_memory_mib"}, "cpu_milli": {"option": "vm_cpus", "factor": 1000}},
    "options": {"vm_memory_mib": {"minimum": 64}, "vm_cpus": {"minimum": 1}},
}
WEB_OPTIONS = {"web_url": {"type": "str"}}
WEB_META = {"published": {"url": {"title": "where"}}, "capacity": {"memory_mib": 1, "cpu_milli": 1, "tasks": 8}}


def ask(host: Node, generation: str = "g1", path: str = "home.vm", dry: bool = False) -> dict[str, Any]:
    body = {"instance": path, "generation": generation}
    found: dict[str, Any] = host.ok("POST", f"/nodes/self/join-tokens?dry_run={str(dry).lower()}", body)
    return found


def join(live: Live, token: dict[str, Any], **fact: Any) -> Node:
    """What the agent in a VM does with its token; with no slots it does not report."""
    key, csr = key_and_csr(token["node"])
    body = {"token": token["token"], "node": token["node"], "csr": csr}
    joined = Caller(live.url, live.ca_file).ok("POST", "/join", body)
    folder = live.home / f"joined-{os.urandom(4).hex()}"
    folder.mkdir()
    (folder / "key.pem").write_bytes(key)
    (folder / "cert.pem").write_text(joined["certificate"])
    cert = (str(folder / "cert.pem"), str(folder / "key.pem"))
    node = Node(live.url, live.ca_file, cert=cert, name=joined["node"], id=joined["id"], folder=folder)
    node.spool = os.urandom(8).hex()
    if fact.get("slots", 4):
        node.accepted(node_fact(**{"slots": 4, "memory_mib": 400, "cpu_milli": 1000, **fact}))
    return node


def running(live: Live, host: Node, path: str = "home.vm", **more: Any) -> Node:
    """A vm instance that is started, and the node that it is."""
    live.request(path, VM, **more)
    node = join(live, ask(host, path=path))
    host.started(path)
    assert observed(live, path)[0] == "started"
    return node


def observed(live: Live, path: str) -> tuple[str, str]:
    shown = live.ok("GET", f"/instances/{path}")["observed"]
    return shown["state"], shown["message"]


def instance_of(node: Node, path: str) -> dict[str, Any]:
    mine = node.slice()["records"][path]["clachan_instance"]
    return {"instance": mine["id"], "revision": mine["revision"]}
