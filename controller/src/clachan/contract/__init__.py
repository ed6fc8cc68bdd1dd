"""The documents that cross a border, each once.

`names` are the words in paths and files; `slot` is what a role leaves for the agent; `inventory` is what the
controller sends to a node or an operator; `facts` is what a node sends back; `api` is the rest of the REST surface;
`software` is what a role says of itself. Everything refuses unknown keys, and nothing coerces a type. This package
imports nothing of the project.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A document of the contract: strict types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def json_bytes(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Parse and validate; raises pydantic.ValidationError, which names every wrong field."""
        return cls.model_validate_json(data)
