"""What an instance takes of its node: what its software says, or its parameters where the software says which."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from clachan.contract.software import Capacity, SoftwareMeta
from clachan.server.decisions import Problem
from clachan.server.decisions.parameters import is_reference


def capacity(meta: SoftwareMeta, schema: Mapping[str, Any], parameters: Mapping[str, JsonValue]) -> Capacity:
    """`schema`: of the instance's type; a parameter that is not given has its default."""
    taken: dict[str, int] = {
        part: int(parameters.get(source.option, schema["properties"][source.option].get("default"))) * source.factor
        for part, source in meta.capacity_from.items()
    }
    return meta.capacity.model_copy(update=taken)


def problems(meta: SoftwareMeta, parameters: Mapping[str, JsonValue]) -> list[Problem]:
    """A place is found before anything is published: these parameters cannot be references."""
    named = sorted({source.option for source in meta.capacity_from.values()})
    return [
        Problem(f"parameters.{name}", f"parameter {name}: a reference, expected a number: it says what is taken")
        for name in named
        if is_reference(parameters.get(name))
    ]
