"""Where an agent's files are, and what its configuration says."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from clachan.contract import Document
from clachan.contract.names import Name

Mode = Literal["root", "user"]
D = TypeVar("D", bound=Document)


class AgentError(Exception):
    """Something the operator must know or mend; the text says what was expected."""


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


@dataclass(frozen=True)
class Layout:
    """The paths below CLACHAN_HOME that the agent reads or writes."""

    home: Path

    @property
    def node(self) -> Path:
        return self.home / "node"

    @property
    def config(self) -> Path:
        return self.node / "config.json"

    @property
    def invitation(self) -> Path:
        return self.node / "join.json"

    @property
    def identity(self) -> Path:
        return self.node / "node.json"

    @property
    def key(self) -> Path:
        return self.node / "key.pem"

    @property
    def certificate(self) -> Path:
        return self.node / "cert.pem"

    @property
    def ca(self) -> Path:
        return self.node / "ca.pem"

    @property
    def slice(self) -> Path:
        return self.node / "slice.json"

    @property
    def state(self) -> Path:
        return self.node / "state.db"

    @property
    def spool(self) -> Path:
        return self.node / "spool.db"

    @property
    def lock(self) -> Path:
        return self.node / "agent.lock"

    @property
    def runs(self) -> Path:
        return self.node / "runs"

    @property
    def software(self) -> Path:
        return self.node / "software"

    def load_config(self) -> NodeConfig:
        return load(self.config, NodeConfig, "the role clachan.platform.node to have written it")

    def complete_config(self, url: str, node: str) -> None:
        """Say which controller and which node this is, in node/config.json."""
        try:
            config = json.loads(self.config.read_bytes()) | {"controller_url": url, "node_name": node}
        except (OSError, ValueError, TypeError) as error:
            raise AgentError(f"file {self.config}: {error}, expected the settings of the image") from error
        write_whole(self.config, json.dumps(config, indent=1).encode() + b"\n")

    def load_identity(self) -> Identity:
        return load(self.identity, Identity, "the node to have joined: clachan agent join")


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


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step: whoever reads it gets the old bytes or the new ones, also after a power cut."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
