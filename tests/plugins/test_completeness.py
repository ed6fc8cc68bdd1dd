"""The collection and the contract say the same: options of modules, documents of a slot, words of an inventory."""

import importlib
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from clachan.contract import api, inventory, names, slot
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(file.stem for file in (ROOT / "plugins" / "modules").glob("*.py"))
CONTROLLER = {"url", "token", "ca", "home"}
OURS = {
    "request": (api.Declaration, {"path", "wait", "wait_timeout", "reveal"}, {}),
    "supply": (api.SupplyDeclaration, {"node", "software", "wait", "wait_timeout"}, {}),
    "join_token": (api.JoinTokenDeclaration, {"dest"}, {}),
}
"""Module -> (what it declares, the module's own options, contract's name -> option's name)."""


def module(name: str) -> Any:
    return importlib.import_module(f"ansible_collections.clachan.platform.plugins.modules.{name}")


def util(name: str) -> Any:
    return importlib.import_module(f"ansible_collections.clachan.platform.plugins.module_utils.{name}")


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_field_of_a_declaration_is_an_option(name: str) -> None:
    model, own, _ = OURS[name]
    options = module(name).OPTIONS
    assert set(options) == set(model.model_fields) | own


@pytest.mark.parametrize("name", sorted(OURS))
def test_defaults_and_choices_are_the_contracts(name: str) -> None:
    model: type[BaseModel] = OURS[name][0]
    options = module(name).OPTIONS
    for key, field in model.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            assert options[key]["options"].keys() == type(default).model_fields.keys()
            default = {}
        assert options[key].get("default") == default, key
        if choices := [one for one in get_args(field.annotation) if isinstance(one, str)]:
            assert options[key]["choices"] == choices


@pytest.mark.parametrize("name", ["request", "supply", "join_token", "request_info", "node_info", "usage_facts"])
def test_documentation_has_every_option_and_attribute(name: str) -> None:
    documented = yaml.safe_load(module(name).DOCUMENTATION)
    assert set(documented["options"]) == set(module(name).OPTIONS)
    for key, option in module(name).OPTIONS.items():
        said = documented["options"][key]
        assert said["type"] == option["type"], key
        assert said.get("default") == option.get("default"), key
        assert said.get("choices") == option.get("choices"), key
        assert said.get("required", False) == option.get("required", False), key
    assert any("attributes" in fragment for fragment in documented["extends_documentation_fragment"])


def test_the_action_group_has_every_module_of_the_controller() -> None:
    group = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]["clachan"]
    with_controller = [
        name
        for name in MODULES
        if "clachan.platform.controller"
        in (yaml.safe_load(module(name).DOCUMENTATION).get("extends_documentation_fragment") or [])
    ]
    assert sorted(group) == with_controller


def test_words_of_the_inventory_are_the_contracts() -> None:
    plugin = importlib.import_module("ansible_collections.clachan.platform.plugins.inventory.inventory")
    assert (plugin.WRAPPER, plugin.FORMAT) == (inventory.WRAPPER, inventory.FORMAT)
    ours = util("names")
    assert (ours.NAME, ours.PATH, ours.FQCN, ours.SECRET) == (names.NAME, names.PATH, names.FQCN, inventory.SECRET)


def test_limits_of_documents_are_the_contracts() -> None:
    docs = util("slot_documents")
    assert (docs.DOCUMENT_BYTES, docs.DOCUMENTS) == (slot.DOCUMENT_BYTES, slot.DOCUMENTS)
    assert set(docs.SERVICE) == set(slot.Service.model_fields)
    assert set(docs.REQUEST) == set(api.Declaration.model_fields)
    assert set(docs.PLACEMENT) == set(api.Placement.model_fields)
    kinds = get_args(get_args(slot.Promise)[0])
    assert {get_args(kind.model_fields["kind"].annotation)[0] for kind in kinds} == set(docs.PROMISES)
    for kind in kinds:
        name = get_args(kind.model_fields["kind"].annotation)[0]
        fields, required = docs.PROMISES[name]
        assert set(fields) | set(docs.CHECK) == set(kind.model_fields)
        assert {*required, "kind"} == {key for key, field in kind.model_fields.items() if field.is_required()}


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70000),
    st.sampled_from([0.5, 1.0, 3600.0, 3600.5, 0.0]),
    st.sampled_from(
        [
            "",
            "x",
            "etc/x",
            "../x",
            "a//b",
            "a\nb",
            "a\0b",
            "http://x",
            "ftp://x",
            "a.b.c",
            "started",
            "0" * 64,
            "home.x",
        ]
    ),
    st.lists(st.sampled_from(["x", "etc/a", "../a", "", "a\0"]), max_size=3),
    st.lists(st.integers(), max_size=1),
    st.dictionaries(
        st.sampled_from(["A", "a_1", "1a", "labels", "spread", "node"]),
        st.sampled_from(["x", True, 1, None, "a.b"]),
        max_size=2,
    ),
)
GOOD = {
    "process": {"service": "web"},
    "tcp": {"address": "127.0.0.1", "port": 80},
    "http": {"url": "http://x"},
    "command": {"command": ["x"]},
    "file_age": {"path": "var/x", "max_seconds": 1.5},
    "disk_space": {"min_free_mib": 1},
}


def accepted(check: Any, document: dict[str, Any]) -> bool:
    try:
        check("x", document)
    except util("slot_files").SlotError:
        return False
    return True


def valid(parse: Any, document: dict[str, Any]) -> bool:
    try:
        parse(json.dumps(document))
    except ValidationError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from([*slot.Service.model_fields, "unknown"]), value=VALUES)
def test_a_service_is_right_here_when_it_is_right_in_the_contract(key: str, value: Any) -> None:
    document = {"command": ["x"], key: value}
    assert accepted(util("slot_documents").check_service, document) == valid(slot.Service.from_json, document)


@settings(max_examples=500, deadline=None)
@given(kind=st.sampled_from(sorted(GOOD)), data=st.data(), value=VALUES)
def test_a_promise_is_right_here_when_it_is_right_in_the_contract(kind: str, data: st.DataObject, value: Any) -> None:
    fields = [*GOOD[kind], "title", "every_seconds", "timeout_seconds", "status", "contains", "path", "unknown"]
    document = {"kind": kind} | GOOD[kind] | {data.draw(st.sampled_from(fields)): value}
    assert accepted(util("slot_documents").check_promise, document) == valid(slot.PROMISE.validate_json, document)


@settings(max_examples=500, deadline=None)
@given(key=st.sampled_from([*api.Declaration.model_fields, "unknown"]), value=VALUES)
def test_a_request_is_right_here_when_it_is_right_in_the_contract(key: str, value: Any) -> None:
    document = {"software": "a.b.c", key: value}
    assert accepted(util("slot_documents").check_request, document) == valid(api.Declaration.from_json, document)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(["a", "A", "", "a" * 31, "a" * 32]), value=VALUES)
def test_published_values_are_right_here_when_they_are_right_in_the_contract(key: str, value: Any) -> None:
    def check(_: str, values: dict[str, Any]) -> None:
        util("slot_documents").check_published(values)

    assert accepted(check, {key: value}) == valid(slot.PUBLISHED.validate_json, {key: value})
