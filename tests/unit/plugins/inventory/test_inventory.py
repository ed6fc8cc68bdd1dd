# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory plugin makes of a document, and what it leaves out of one that was tampered with."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible_collections.clachan.platform.plugins.inventory import inventory as plugin

NODE = {"id": "n1", "name": "here", "labels": {}, "addresses": {"reach": None}, "owner": None, "state": "active"}


def instance(path="home.one", **more):
    about = {"path": path, "software": "a.b.hello", "node": "here", "sealed": [], "state": "started"}
    return {"clachan_instance": dict(about, **more), "hello_text": "{{ 1 }}"}


def document(records, groupings=None, **more):
    return {"clachan_inventory": dict({"format": 1, "records": records, "groupings": groupings or {}}, **more)}


class Loaded(plugin.InventoryModule):
    """The plugin with its options given, instead of read from a file."""

    def __init__(self, options):
        super().__init__()
        self._given = options
        self.warnings = []
        self.display = self

    def warning(self, text):
        self.warnings.append(text)

    def get_option(self, option, hostvars=None):
        return self._given.get(option)

    def _read_config_data(self, path):
        return {}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "node.json").write_text('{"id": "n1", "name": "here"}')

    def loaded(content, **options):
        (tmp_path / "slice.json").write_text(json.dumps(content))
        module = Loaded(dict({"slice": "slice.json", "home": str(tmp_path)}, **options))
        data = InventoryData()
        module.parse(data, DataLoader(), str(tmp_path / "clachan.yml"))
        return data, module.warnings

    return loaded


def test_hosts_variables_and_groups(load):
    data, warnings = load(
        document(
            {"here": {"clachan_node": NODE}, "home.one": instance()},
            {"nodes": ["here"], "instances": ["home.one", "home.gone"], "label_site_A1": ["here"], "tenant_none": []},
        )
    )
    assert warnings == []
    assert sorted(data.hosts) == ["here", "home.one"]
    assert data.hosts["home.one"].get_vars()["hello_text"] == "{{ 1 }}"
    groups = {name: sorted(host.name for host in group.hosts) for name, group in data.groups.items() if group.hosts}
    assert groups == {"nodes": ["here"], "instances": ["home.one"], "label_site_A1": ["here"]}


@pytest.mark.parametrize("records", [{"here": {"clachan_node": NODE}}, {}])
def test_this_machines_hosts_are_local(load, records):
    data, _warnings = load(document(dict(records, **{"home.one": instance()})))
    variables = data.hosts["home.one"].get_vars()
    assert variables["ansible_connection"] == "local"
    assert variables["ansible_python_interpreter"] == sys.executable


@pytest.mark.parametrize(
    ("reach", "host"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("a-b.example", "a-b.example"),
        (None, "there-has-no-reach-assigned.invalid"),
    ],
)
def test_other_machines_are_reached_where_an_operator_said(load, reach, host):
    node = dict(NODE, name="there", id="n2", addresses={"reach": reach})
    data, _warnings = load(document({"there": {"clachan_node": node}, "home.one": instance(node="there")}))
    for name in ("there", "home.one"):
        variables = data.hosts[name].get_vars()
        assert (variables["ansible_connection"], variables["ansible_host"]) == ("ssh", host)
        assert "ansible_python_interpreter" not in variables


def options_of(variables):
    words = shlex.split(variables["ansible_ssh_common_args"])
    assert words[::2] == ["-o"] * (len(words) // 2)
    return dict(word.partition("=")[::2] for word in words[1::2])


def test_a_vm_is_reached_through_its_nodes_connection(load, monkeypatch):
    for name in ("CLACHAN_HOME", "CLACHAN_URL", "CLACHAN_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "executable", "/opt/a b/100%/python")
    monkeypatch.setattr("os.access", lambda path, mode: path == "/opt/a b/100%/clachan")
    node = dict(NODE, name="vm_1", id="n2", vm="lab.hadoop.m1")
    records = {"vm_1": {"clachan_node": node}, "home.one": instance(node="vm_1")}
    data, warnings = load(document(records), home="", url="https://c:1")
    assert warnings == []
    for name in records:
        variables = data.hosts[name].get_vars()
        assert (variables["ansible_connection"], variables["ansible_host"]) == ("ssh", "lab.hadoop.m1")
        words = "/usr/bin/env CLACHAN_URL=https://c:1 '/opt/a b/100%%/clachan' instance"
        assert options_of(variables) == {
            "ProxyCommand": words + " connect lab.hadoop.m1",
            "KnownHostsCommand": words + " host-key lab.hadoop.m1",
            "HostKeyAlias": "lab.hadoop.m1",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
        }


def test_a_vm_with_an_address_of_its_own_is_reached_there(load):
    node = dict(NODE, name="vm_1", id="n2", vm="lab.hadoop.m1", addresses={"reach": "10.0.0.1"})
    data, _warnings = load(document({"vm_1": {"clachan_node": node}}))
    variables = data.hosts["vm_1"].get_vars()
    assert (variables["ansible_host"], "ansible_ssh_common_args" in variables) == ("10.0.0.1", False)


@pytest.mark.parametrize("path", ["lab", "lab.x;touch canary", "-oProxyCommand=x", "lab.x\n", "{{ 1 }}", 5, ""])
def test_a_vm_of_another_form_is_left_out(load, path):
    node = dict(NODE, name="vm_1", id="n2", vm=path)
    data, warnings = load(document({"vm_1": {"clachan_node": node}, "home.one": instance(node="vm_1")}))
    assert list(data.hosts) == []
    assert warnings == ["inventory leaves out a host: vm %r: expected the path of an instance" % path] * 2


def test_a_node_with_this_machines_name_but_another_id_is_not_here(load):
    data, _warnings = load(document({"here": {"clachan_node": dict(NODE, id="n2")}, "home.one": instance()}))
    assert data.hosts["home.one"].get_vars()["ansible_connection"] == "ssh"


@pytest.mark.parametrize(
    ("name", "record", "why"),
    [
        (
            "localhost",
            {"clachan_node": dict(NODE, name="localhost")},
            "name 'localhost', expected a path or a node's name",
        ),
        ("all", instance("all"), "name 'all', expected a path or a node's name"),
        ("home.one", [], "name 'home.one', expected a path or a node's name"),
        ("home.one", instance("home.two"), "host 'home.one': expected a path, and the same in clachan_instance"),
        ("{{ 1 }}", instance("{{ 1 }}"), "host '{{ 1 }}': expected a path, and the same in clachan_instance"),
        ("home.one\n", instance("home.one\n"), "host 'home.one\\n': expected a path, and the same in clachan_instance"),
        ("home.one", instance(software="../x"), "host home.one: no software or no node, expected both"),
        (
            "home.one",
            dict(instance(), ansible_host="x"),
            "host home.one: variable 'ansible_host', expected one that begins with hello_",
        ),
        (
            "home.one",
            dict(instance(software="a.b.ansible"), ansible_host="x"),
            "host home.one: variable 'hello_text', expected one that begins with ansible_",
        ),
        (
            "here",
            {"clachan_node": NODE, "ansible_connection": "local"},
            "node here: variable 'ansible_connection', expected clachan_node",
        ),
        (
            "Here",
            {"clachan_node": dict(NODE, name="Here")},
            "node 'Here': expected a name, and the same in clachan_node",
        ),
    ],
)
def test_what_could_steer_ansible_is_left_out_and_the_rest_stays(load, name, record, why):
    data, warnings = load(document({name: record, "home.other": instance("home.other")}))
    assert list(data.hosts) == ["home.other"]
    assert warnings == ["inventory leaves out a host: %s" % why]


def test_a_role_named_ansible_sets_nothing_of_ansibles(load):
    record = {"clachan_instance": instance(software="a.b.ansible")["clachan_instance"], "ansible_host": "x"}
    data, warnings = load(document({"home.one": record}))
    assert list(data.hosts) == []
    assert warnings == [
        "inventory leaves out a host: host home.one: variable 'ansible_host', expected one that begins with ansible_"
    ]


@pytest.mark.parametrize("group", ["all", "ungrouped", "a b", "{{ 1 }}", "-x", ""])
def test_a_group_of_another_name_is_left_out(load, group):
    data, warnings = load(document({"home.one": instance()}, {group: ["home.one"]}))
    assert warnings == ["inventory leaves out a group: name %r, expected [a-z][A-Za-z0-9_]*" % group]
    assert [name for name, found in data.groups.items() if found.hosts] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "inventory: no clachan_inventory with records and groupings, expected the controller's"),
        ([], "inventory: no clachan_inventory with records and groupings, expected the controller's"),
        (document({}, format=2), "inventory's format: 2, expected 1 (is the collection older than the controller?)"),
    ],
)
def test_what_is_no_inventory_is_an_error(load, content, message):
    with pytest.raises(AnsibleParserError) as caught:
        load(content)
    assert str(caught.value) == message


def test_a_slice_that_is_not_there(load, tmp_path):
    with pytest.raises(AnsibleParserError) as caught:
        load({}, slice="none.json")
    assert str(caught.value).startswith("slice %s/none.json: [Errno 2] No such file or directory" % tmp_path)


def test_only_files_of_the_name_are_taken(tmp_path):
    for name, taken in (
        ("clachan.yml", True),
        ("lab.clachan.yaml", True),
        ("hosts.yml", False),
        ("clachan.json", False),
    ):
        (tmp_path / name).write_text("")
        assert plugin.InventoryModule().verify_file(str(tmp_path / name)) is taken
