"""Where an agent's files are, and how they are written. It stands on the standard library alone, as `invitation`."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clachan.agent.settings import Identity, NodeConfig


class AgentError(Exception):
    """Something the operator must know or mend; the text says what was expected."""


class Layout:
    """The paths below CLACHAN_HOME that the agent reads or writes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.node = node = home / "node"
        self.config = node / "config.json"
        self.invitation = node / "join.json"
        self.identity = node / "node.json"
        self.key, self.certificate, self.ca = (node / f"{name}.pem" for name in ("key", "cert", "ca"))
        self.slice = node / "slice.json"
        self.state, self.spool = node / "state.db", node / "spool.db"
        self.lock = node / "agent.lock"
        self.runs, self.software = node / "runs", node / "software"

    def load_config(self) -> "NodeConfig":
        from clachan.agent.settings import NodeConfig, load

        return load(self.config, NodeConfig, "the role clachan.platform.node to have written it")

    def complete_config(self, url: str, node: str) -> None:
        """Say which controller and which node this is, in node/config.json."""
        try:
            config = json.loads(self.config.read_bytes()) | {"controller_url": url, "node_name": node}
        except (OSError, ValueError, TypeError) as error:
            raise AgentError(f"file {self.config}: {error}, expected the settings of the image") from error
        write_whole(self.config, json.dumps(config, indent=1).encode() + b"\n")

    def load_identity(self) -> "Identity":
        from clachan.agent.settings import Identity, load

        return load(self.identity, Identity, "the node to have joined: clachan agent join")


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
