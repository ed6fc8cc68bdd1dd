"""References: a parameter's value that another instance of the tenant publishes, `{"from": path, "key": key}`.

An object with exactly these two keys is a reference wherever it stands in the parameters.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from clachan.contract.inventory import SECRET
from clachan.contract.names import is_name, is_path, tenant_of
from clachan.server.decisions import Problem
from clachan.server.decisions.parameters import Parameters, ParameterSchema, is_reference, place

_Give = Callable[["Reference"], JsonValue]


@dataclass(frozen=True)
class Reference:
    where: str
    """The place in the parameters: `hello_url`, `hello_hosts[0].url`."""
    source: JsonValue
    """The instance's path; anything, until `problems` has judged it."""
    key: JsonValue


@dataclass(frozen=True)
class Published:
    """What an instance publishes, and which of the keys its software declares secret."""

    values: Mapping[str, JsonValue]
    secret: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Resolved:
    parameters: dict[str, JsonValue]
    """For the slice of the consumer's node only."""
    redacted: dict[str, JsonValue]
    """For everywhere else: every secret reads <secret>."""
    sealed: tuple[str, ...]
    """Names of the parameters that are secret or have a secret inside, sorted."""


@dataclass(frozen=True)
class Unresolved:
    reason: str
    """`waiting for home.lake to publish url`."""


def find(parameters: Parameters) -> list[Reference]:
    """All references, in order of their place; those with a malformed path or key too."""
    return [reference for name, value in parameters.items() for reference in _find(name, value)]


def problems(parameters: Parameters, path: str) -> list[Problem]:
    """What is wrong with the references of the instance `path`: malformed, another tenant's, its own."""
    return [
        Problem(f"parameters.{reference.where}", message)
        for reference in find(parameters)
        if (message := _problem(reference, path)) is not None
    ]


def resolve(
    parameters: Parameters, published: Mapping[str, Published], schema: ParameterSchema
) -> Resolved | Unresolved:
    """Put in the published values; `published` has every instance that a reference names, where it exists.

    A value that the schema does not admit is waited for too: the reason names the parameter and what was expected.
    """
    found = find(parameters)
    for reference in found:
        if (reason := _missing(reference, published)) is not None:
            return Unresolved(reason)
    resolved = {name: _filled(name, value, lambda at: _value(at, published)) for name, value in parameters.items()}
    secret = {at.where for at in found if at.key in published[str(at.source)].secret}
    if wrong := schema.problems(resolved, secret=secret) if found else []:
        return Unresolved(f"waiting for another value: {wrong[0].message}")
    shown = {name: _filled(name, value, lambda at: _shown(at, published)) for name, value in parameters.items()}
    return Resolved(resolved, schema.redact(shown), tuple(sorted(_sealed(parameters, secret, schema))))


def _find(where: str, value: JsonValue) -> Iterator[Reference]:
    if is_reference(value):
        assert isinstance(value, dict)
        yield Reference(where, value["from"], value["key"])
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _find(place(where, key), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find(place(where, index), inner)


def _problem(reference: Reference, path: str) -> str | None:
    what = f"parameter {reference.where}"
    if not isinstance(reference.source, str) or not is_path(reference.source):
        return f"{what}: reference from {json.dumps(reference.source)}, expected the path of an instance"
    if tenant_of(reference.source) != tenant_of(path):
        return f"{what}: reference from {reference.source}, expected an instance of tenant {tenant_of(path)}"
    if reference.source == path:
        return f"{what}: reference from {reference.source}, expected another instance than itself"
    if not isinstance(reference.key, str) or not is_name(reference.key):
        return f"{what}: reference to key {json.dumps(reference.key)}, expected a name"
    return None


def _missing(reference: Reference, published: Mapping[str, Published]) -> str | None:
    source = published.get(str(reference.source))
    if source is not None and reference.key in source.values:
        return None
    hint = "" if source is not None else f": there is no instance {reference.source}"
    return f"waiting for {reference.source} to publish {reference.key}{hint}"


def _value(reference: Reference, published: Mapping[str, Published]) -> JsonValue:
    return published[str(reference.source)].values[str(reference.key)]


def _shown(reference: Reference, published: Mapping[str, Published]) -> JsonValue:
    return SECRET if reference.key in published[str(reference.source)].secret else _value(reference, published)


def _filled(where: str, value: JsonValue, give: _Give) -> JsonValue:
    if is_reference(value):
        assert isinstance(value, dict)
        return give(Reference(where, value["from"], value["key"]))
    if isinstance(value, dict):
        return {key: _filled(place(where, key), inner, give) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(place(where, index), inner, give) for index, inner in enumerate(value)]
    return value


def _sealed(parameters: Parameters, secret: set[str], schema: ParameterSchema) -> set[str]:
    by_reference = {name for name, value in parameters.items() if any(at.where in secret for at in _find(name, value))}
    return by_reference | (schema.sealed & parameters.keys())
