"""What an agent's settings and its identity say."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from clachan.agent.layout import AgentError
from clachan.contract import Document
from clachan.contract.names import Name

Mode = Literal["root", "user"]
D = TypeVar("D", bound=Document)


class NodeConfig(Document):
    """node/config.json, written by the role `clachan.platform.node`.

    That of an image has no `controller_url` and `node_name`: the agent adds them when it joins by node/join.json.
    """

    controller_url: str
    node_name: Name
    mode: Mode
    slots: Annotated[int, Field(ge=0, le=4000)]
    slots_directory: str
    users: list[str]
    """The unix user of each slot, by index; one user for all in the unprivileged mode."""
    supervisor_socket: str
    platform_path: str
    """The folder that has ansible_collections/clachan/platform."""
    of_image: bool = False
    """Whether this machine was made of an image: the platform's software is what the image has of it."""
    pass_seconds: Annotated[float, Field(gt=0, le=60, strict=False)] = 2
    patience_seconds: Annotated[float, Field(gt=0, le=3600, strict=False)] = 60
    """How long promises may fail after a converge before it counts as failed."""
    usage_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    runs_kept: Annotated[int, Field(ge=1)] = 50
    runs_days: Annotated[int, Field(ge=1)] = 14

    def user_of(self, index: int) -> str:
        """Raises AgentError when the node has no such slot."""
        if not 0 <= index < self.slots:
            raise AgentError(f"slot {index}: this node has {self.slots} slots, expected an index below that")
        return self.users[0 if self.mode == "user" else index]


class Identity(Document):
    """node/node.json: who this node is for the controller."""

    id: str
    name: Name


def load(path: Path, model: type[D], expected: str) -> D:
    """Read and validate; raises AgentError."""
    try:
        return model.from_json(path.read_bytes())
    except OSError as error:
        raise AgentError(f"file {path}: {error.strerror}, expected {expected}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise AgentError(f"file {path}: {at} {first['msg']}, expected {expected}") from error
