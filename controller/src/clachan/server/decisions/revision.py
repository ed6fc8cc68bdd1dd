"""Revisions: the immutable content of a request, and whether another request is the same."""

import hashlib
from typing import Any

from pydantic import JsonValue

from clachan.contract.api import Placement
from clachan.contract.facts import canonical


def content(  # noqa: PLR0917 - the six parts that a revision has
    software: str, digest: str, type_: str, parameters: dict[str, JsonValue], placement: Placement, state: str
) -> dict[str, Any]:
    """What makes a revision: references as they were declared, title left out."""
    return {
        "software": software,
        "digest": digest,
        "type": type_,
        "parameters": parameters,
        "placement": placement.model_dump(mode="json", by_alias=True),
        "state": state,
    }


def content_digest(revision: dict[str, Any]) -> str:
    """Equal for two requests that declare the same; 64 hexadecimal digits."""
    return hashlib.sha256(canonical(revision)).hexdigest()
