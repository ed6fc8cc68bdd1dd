"""What a software role says of itself: `meta/clachan.yml`, beside `meta/argument_specs.yml` (its parameters)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clachan.contract import Document
from clachan.contract.names import Fqcn, Name, Sha256


class Capacity(Document):
    """What an instance takes of its node when its request does not say otherwise."""

    memory_mib: Annotated[int, Field(ge=0)] = 64
    cpu_milli: Annotated[int, Field(ge=0)] = 50
    tasks: Annotated[int, Field(ge=1)] = 64


class CapacityFrom(Document):
    """A part of the capacity that a parameter says: the value of an int option, times `factor`."""

    option: str
    factor: Annotated[int, Field(ge=1)] = 1


class PublishedKey(Document):
    title: str = ""
    secret: bool = False


class Option(Document):
    """Limits of a parameter that Ansible's argument spec cannot say."""

    minimum: float | None = Field(default=None, strict=False)
    maximum: float | None = Field(default=None, strict=False)
    pattern: str | None = None
    """A regular expression that the whole text matches."""
    max_length: int | None = None


class SoftwareMeta(Document):
    """The whole of `meta/clachan.yml`."""

    title: str
    summary: str = ""
    capacity: Capacity = Capacity()
    capacity_from: dict[Literal["memory_mib", "cpu_milli"], CapacityFrom] = {}
    """Instead of the same part of `capacity`."""
    published: dict[Name, PublishedKey] = {}
    options: dict[str, Option] = {}
    generate: list[str] = []
    """Secret options (`no_log: true`) that the controller fills with 32 random bytes, url-safe, once per instance."""
    meters: list[Name] = []
    shared: bool = False
    needs_root: bool = False
    exclusive: bool = False
    makes_node: bool = False
    """An instance is a machine that joins as a node of its tenant; with `needs_root`."""


class SoftwareView(Document):
    """A registered software as `GET /api/v1/software` shows it."""

    software: Fqcn
    digest: Sha256
    """sha256 of the collection's MANIFEST.json."""
    collection: str
    version: str
    artifact_sha256: Sha256 | None
    """None for the platform's own collection, which every node has installed."""
    meta: SoftwareMeta
    types: dict[str, dict[str, object]]
    """Per type the JSON Schema of its parameters."""
    registered: str

    @model_validator(mode="after")
    def _main(self) -> "SoftwareView":
        if "main" not in self.types:
            raise ValueError(f"software {self.software}: no entry point main, expected one")
        return self
