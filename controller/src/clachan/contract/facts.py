"""What a node reports: facts, each with an id; sent at least once, counted once, never rewritten.

The id of a usage fact is `usage_id(...)`; of any other fact `fact_id(...)` over the spool's own random id and the
fact's sequence number in it, so a reinstalled spool never collides with its predecessor.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from clachan.contract import Document
from clachan.contract.api import Declaration
from clachan.contract.inventory import ObservedState
from clachan.contract.names import Fqcn, Name, Path, Sha256

BATCH = 500
MESSAGE_CHARS = 4000


class NodeFact(Document):
    """The node itself: at start and when it changes."""

    kind: Literal["node"] = "node"
    version: str
    mode: Literal["root", "user"]
    slots: Annotated[int, Field(ge=0, le=4000)]
    slots_directory: str
    users: list[str]
    """The unix user of each slot, by index; one user for all in the unprivileged mode."""
    cpu_milli: int
    memory_mib: int
    disk_mib: int
    python: str
    system: str
    platform_digest: Sha256 | None
    """MANIFEST.json of the platform collection installed on the node."""


class InstanceFact(Document):
    """Where an instance stands."""

    kind: Literal["instance"] = "instance"
    instance: str
    revision: int
    state: ObservedState
    message: str = ""
    published: dict[Name, str | int | float | bool] | None = None


class PromiseResult(Document):
    ok: bool
    message: str = ""


class PromisesFact(Document):
    """The results of all promises of an instance, sent when one changes."""

    kind: Literal["promises"] = "promises"
    instance: str
    results: dict[Name, PromiseResult]


class OutageFact(Document):
    """An interval in which a converged instance had a failing promise; sent at its begin and at its end."""

    kind: Literal["outage"] = "outage"
    instance: str
    phase: Literal["began", "ended"]
    began: str
    ended: str | None = None
    promises: list[Name]
    message: str = ""


class RequestsFact(Document):
    """The complete set of children of an instance, after a converge that succeeded."""

    kind: Literal["requests"] = "requests"
    instance: str
    revision: int
    children: dict[Name, Declaration]


class SupplyFact(Document):
    kind: Literal["supply"] = "supply"
    supply: str
    digest: Sha256
    state: Literal["present", "absent", "failed"]
    message: str = ""


class RunFact(Document):
    """One run of Ansible by the agent."""

    kind: Literal["run"] = "run"
    run: str
    purpose: Literal["converge", "supply", "absent"]
    software: Fqcn
    hosts: list[Path]
    """The instances; none of a supply, which is of the node."""
    status: Literal["successful", "failed", "killed"]
    began: str
    ended: str
    changed: int
    failures: dict[Path, str] = {}


class UsageFact(Document):
    """An integer quantity of one meter, of one instance, in one UTC window."""

    kind: Literal["usage"] = "usage"
    instance: str
    meter: Name
    window_start: str
    window_end: str
    epoch: str
    """Identifies the counter that was read; a new one after it restarted from zero."""
    quantity: Annotated[int, Field(ge=0)]


Content = Annotated[
    NodeFact | InstanceFact | PromisesFact | OutageFact | RequestsFact | SupplyFact | RunFact | UsageFact,
    Field(discriminator="kind"),
]


class Fact(Document):
    id: Sha256
    sequence: Annotated[int, Field(ge=0)]
    """Order in the node's spool: a state fact older than the last applied one of its instance changes nothing."""
    at: str
    content: Content


class RawFact(Document):
    """A fact whose content is judged on its own, so that one bad fact does not hold up the rest of its batch."""

    id: Sha256
    sequence: Annotated[int, Field(ge=0)]
    at: str
    content: dict[str, JsonValue]


class Batch(Document):
    facts: Annotated[list[RawFact], Field(max_length=BATCH)]


class Verdict(Document):
    id: Sha256
    verdict: Literal["accepted", "known", "conflict", "refused"]
    """conflict: same id with other content, recorded as an event; refused: malformed or not this node's to say.
    The agent sets both aside; only an answer that never came is sent again."""
    message: str = ""


class Verdicts(Document):
    verdicts: list[Verdict]


def canonical(content: object) -> bytes:
    """JSON with sorted keys and no spaces: what digests are taken of."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def usage_id(node: str, instance: str, meter: str, window_start: str, epoch: str) -> str:
    return hashlib.sha256(canonical(["usage", node, instance, meter, window_start, epoch])).hexdigest()


def fact_id(node: str, spool: str, sequence: int) -> str:
    return hashlib.sha256(canonical(["fact", node, spool, sequence])).hexdigest()
