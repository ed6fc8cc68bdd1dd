"""What the roles of VMs and clusters let through of a tenant's text: the rest is refused with the request.

Where text does get through, a node's filters and modules judge it: `tests/project/test_vm_faults.py` orders those.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from clachan.contract.software import SoftwareMeta
from clachan.server.decisions.argument_spec import compile_role
from clachan.server.decisions.parameters import ParameterSchema

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests" / "plugins"))
from payloads import payloads  # noqa: E402

Place = tuple[str, ...]
TEXTS = payloads(Path("/nowhere/canary")) | {"xml": "</name><devices/>&xxe;<!DOCTYPE x>", "escape": "../../../etc/x"}
FREE = {
    "vm": {
        "vm_authorized_keys *",
        "vm_backups * name",
        "vm_backups * volume",
        "vm_destinations * cidr",
        "vm_restore backup",
        "vm_restore volume",
        "vm_restore word",
        "vm_volumes * name",
    },
    "cluster": {
        "cluster_authorized_keys *",
        "cluster_backups * name",
        "cluster_backups * volume",
        "cluster_restore backup",
        "cluster_restore volume",
        "cluster_restore word",
        "cluster_volumes * name",
        "cluster_destinations * cidr",
        "cluster_software * name",
        "cluster_software * software",
        "cluster_software * type",
        "cluster_software * parameters",
    },
}
"""Options that any text gets through."""
HARMLESS = {"number", "boolean", "null"}
"""Words that a pattern may let through."""


def schema_of(role: str) -> Any:
    meta = ROOT / "roles" / role / "meta"
    specs = yaml.safe_load((meta / "argument_specs.yml").read_text())["argument_specs"]
    about = SoftwareMeta.model_validate(yaml.safe_load((meta / "clachan.yml").read_text()))
    return compile_role(f"clachan.platform.{role}", specs, about)["main"]


def own(schema: Any) -> Any:
    """Without the reference to another instance's value, which may stand for any."""
    return schema["anyOf"][0] if "anyOf" in schema else schema


def places(schema: Any, place: Place = ()) -> Iterator[Place]:
    """Every option that takes a single value, also in lists and below others."""
    schema = own(schema)
    if schema.get("properties"):
        for name, inner in schema["properties"].items():
            yield from places(inner, (*place, name))
    elif "items" in schema:
        yield from places(schema["items"], (*place, "*"))
    else:
        yield place


def sample(schema: Any) -> Any:
    """A value that is accepted."""
    schema = own(schema)
    if "enum" in schema:
        return schema["enum"][0]
    if "pattern" in schema:
        return "0" * 64
    kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][0]
    if kind == "object":
        return {name: sample(schema["properties"][name]) for name in schema.get("required", [])}
    return {"integer": schema.get("minimum", 1), "boolean": True, "array": [], "string": "a", "number": 1}[kind]


def put(schema: Any, place: Place, value: Any) -> Any:
    """A document that is accepted but for the value at that place."""
    schema = own(schema)
    if not place:
        return value
    if place[0] == "*":
        return [put(schema["items"], place[1:], value)]
    return sample(schema) | {place[0]: put(schema["properties"][place[0]], place[1:], value)}


@pytest.mark.parametrize("role", sorted(FREE))
def test_texts_that_would_run_something_are_refused_but_where_any_text_is_meant(role: str) -> None:
    schema = schema_of(role)
    judge = ParameterSchema(schema)
    assert not list(judge.problems(sample(schema)))
    free, refused = set(), 0
    for place in places(schema):
        accepted = [name for name, text in TEXTS.items() if not list(judge.problems(put(schema, place, text)))]
        refused += len(TEXTS) - len(accepted)
        if not list(judge.problems(put(schema, place, {"key": "text"}))):  # a dictionary of the tenant's own
            accepted = list(TEXTS)
        if not HARMLESS.issuperset(accepted):
            free.add(" ".join(place))
            assert accepted == list(TEXTS), f"{place}: {accepted} only"
    assert free == FREE[role]
    assert refused >= len(TEXTS)


@pytest.mark.parametrize("role", sorted(FREE))
def test_names_that_would_run_something_are_no_parameters(role: str) -> None:
    schema = schema_of(role)
    judge = ParameterSchema(schema)
    for text in TEXTS.values():
        assert list(judge.problems(sample(schema) | {text: 1})), text


def test_whose_home_is_brought_back_is_said_to_a_hub_only() -> None:
    judge = ParameterSchema(schema_of("lab"))
    for given in ({}, {"backup": "friday"}, {"backup": "friday", "word": "again"}):
        assert not list(judge.problems({"lab_restore": given}))
    refused = list(judge.problems({"lab_restore": {"backup": "friday", "user": "alice"}}))
    text = "parameter lab_restore.user: unknown, expected one of backup, word"
    assert [(problem.field, problem.message) for problem in refused] == [("parameters.lab_restore.user", text)]
