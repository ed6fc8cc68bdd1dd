"""Ansible's own parsers take nothing from an inventory document: they would execute what tenants wrote in it."""

import contextlib

import pytest

ansible = pytest.importorskip("ansible")

from ansible.errors import AnsibleError  # noqa: E402
from ansible.inventory.data import InventoryData  # noqa: E402
from ansible.inventory.manager import InventoryManager  # noqa: E402
from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.plugins.loader import inventory_loader  # noqa: E402
from clachan.contract.inventory import NodeAddresses, NodeVariables  # noqa: E402
from clachan.contract.software import Capacity  # noqa: E402
from clachan.server.decisions import addresses  # noqa: E402
from clachan.server.decisions.inventory import (  # noqa: E402
    ChildRecord,
    InstanceRecord,
    assemble,
    instance_fragment,
    node_fragment,
)

DEFAULT_PLUGINS = ["host_list", "script", "auto", "yaml", "ini", "toml"]
NAMES = ["slice", "slice.json", "slice.yml", "slice.yaml", "slice.ini", "slice.toml", "clachan.yml", "a,b.json"]
NETWORKS = NodeAddresses(ipv4="127.0.16.0/20", ipv6="fd00::/64")


def hostile(canary: str) -> dict[str, object]:
    template = "{{ lookup('pipe', 'touch " + canary + "') }}"
    return {
        "web_text": template,
        "web_tree": {
            "hosts": {"evil": {"ansible_connection": "local", "x": template}},
            "vars": {"x": template},
            "children": {"evil_group": {"hosts": {"evil2": None}}},
            "plugin": "ansible.builtin.generator",
            "_meta": {"hostvars": {"evil3": {"x": template}}},
        },
        "web_lines": f"\n[all]\nevil4 x='{template}'\n[all:vars]\ny={template}\n",
        "web_ends": f"\u2028evil5 x={template}\u2029evil6\x85evil7 a=b\r[web]\x0bevil8\x0c",
        "web_yaml": f"\n---\nall:\n  hosts:\n    evil9:\n      x: !unsafe {template}\n",
        "web_toml": "\n[all.hosts.evil10]\n",
        "web_blank": "evil11 x=1 y=2 # evil12",
        "web_dollar": "$HOME `touch " + canary + "` $(touch " + canary + ")",
    }


@pytest.fixture
def document(tmp_path):
    canary = tmp_path / "canary"
    slot = addresses.slot(NETWORKS, 0, user="u", slots_directory="/s", capacity=Capacity())
    parameters = hostile(str(canary))
    record = InstanceRecord(
        id="i1",
        revision=1,
        path="home.web",
        software="acme.tools.web",
        digest="a" * 64,
        type="main",
        state="started",
        node="here",
        slot=slot,
        parameters=parameters,
        redacted=parameters,
        children={"hosts": ChildRecord("started", {"x": parameters["web_text"]})},
    )
    names = ["hosts", "vars", "children"]
    others = [InstanceRecord(**{**vars(record), "path": f"home.{name}"}) for name in names]
    nodes = [
        NodeVariables(id=name, name=name, labels={"x": "{{ y }}"}, addresses=NETWORKS, owner=None, state="active")
        for name in names
    ]
    fragments = [*map(node_fragment, nodes), *(instance_fragment(each, redacted=False) for each in (record, *others))]
    yield assemble("p", "here", fragments, {}, [])
    assert not canary.exists()


def written(tmp_path, name, document, mode):
    path = tmp_path / name
    path.write_bytes(document)
    path.chmod(mode)
    return str(path)


def assert_nothing_taken(data):
    assert {name for name in data.hosts if name != "localhost"} == set()
    assert set(data.groups) <= {"all", "ungrouped", "clachan_inventory"}
    for group in data.groups.values():
        assert group.vars == {}
        assert group.hosts == []


@pytest.mark.parametrize("mode", [0o600, 0o700])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plugin", DEFAULT_PLUGINS)
def test_no_parser_takes_a_host_or_a_variable(tmp_path, document, plugin, name, mode):
    path = written(tmp_path, name, document, mode)
    parser, data = inventory_loader.get(plugin), InventoryData()
    if parser.verify_file(path):
        with contextlib.suppress(AnsibleError):
            parser.parse(data, DataLoader(), path, cache=False)
    assert_nothing_taken(data)


@pytest.mark.parametrize("plugin", ["ini", "yaml", "toml"])
def test_parsers_that_do_not_ask_for_the_name(tmp_path, document, plugin):
    parser, data = inventory_loader.get(plugin), InventoryData()
    with contextlib.suppress(AnsibleError):
        parser.parse(data, DataLoader(), written(tmp_path, "slice", document, 0o600), cache=False)
    assert_nothing_taken(data)


@pytest.mark.parametrize("name", NAMES)
def test_ansible_s_inventory_of_the_file_is_empty(tmp_path, document, name):
    inventory = InventoryManager(loader=DataLoader(), sources=[written(tmp_path, name, document, 0o600)])
    assert inventory.get_hosts() == []
    assert_nothing_taken(inventory._inventory)


def test_the_ini_parser_refuses_the_first_line(tmp_path, document):
    parser = inventory_loader.get("ini")
    with pytest.raises(AnsibleError, match="Invalid host pattern"):
        parser.parse(InventoryData(), DataLoader(), written(tmp_path, "slice", document, 0o600), cache=False)


def test_the_same_text_in_a_plain_yaml_inventory_would_be_taken(tmp_path):
    """The test above would see a host, if there was one."""
    path = tmp_path / "hosts.json"
    path.write_text('{"web": {"hosts": {"evil": {"x": 1}}}}')
    assert [host.name for host in InventoryManager(loader=DataLoader(), sources=[str(path)]).get_hosts()] == ["evil"]
