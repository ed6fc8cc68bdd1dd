"""Fixtures: a controller for each test (`live`), or one for all tests of a module that only add to it (`shared`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import vm_hosts
from live import Live, Node, artifact, node_fact, role, running_controller

HELLO = "acme.web.hello"
OPTIONS = {
    "hello_port": {"type": "int"},
    "hello_text": {"type": "str"},
    "hello_url": {"type": "str"},
    "hello_list": {"type": "list", "elements": "str"},
    "hello_any": {"type": "dict"},
    "hello_password": {"type": "str", "no_log": True},
    "hello_key": {"type": "str", "no_log": True},
}
META = {
    "published": {"url": {"title": "where"}, "password": {"secret": True}},
    "generate": ["hello_key"],
    "capacity": {"memory_mib": 1, "cpu_milli": 1, "tasks": 8},
}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with running_controller(tmp_path / "home") as running:
        yield running


@pytest.fixture
def hello(tmp_path: Path, live: Live) -> str:
    """The FQCN of a registered software."""
    live.register(artifact(tmp_path, "acme.web", {"hello": role(OPTIONS, META)}))
    return HELLO


@pytest.fixture
def node(live: Live, hello: str) -> Node:
    """A node `here` with ten slots and the software supplied."""
    joined = live.join("here")
    live.supply("here", hello)
    return joined


@pytest.fixture
def host(tmp_path: Path, live: Live) -> Node:
    """A node `here` that may run VMs, with 4 GiB and 8 CPUs."""
    roles = {"vm": role(vm_hosts.OPTIONS, vm_hosts.META), "web": role(vm_hosts.WEB_OPTIONS, vm_hosts.WEB_META)}
    live.register(artifact(tmp_path, "acme.virtual", roles))
    node = live.join("here", slots=0)
    node.accepted(node_fact(10, memory_mib=4096, cpu_milli=8000))
    live.supply("here", vm_hosts.VM)
    return node


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A controller with the software registered; tests of a module share it and must not disturb each other."""
    folder = tmp_path_factory.mktemp("shared")
    with running_controller(folder / "home") as running:
        running.register(artifact(folder, "acme.web", {"hello": role(OPTIONS, META)}))
        yield running
