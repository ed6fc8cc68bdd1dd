"""What `clachan-lake serve` is told: one JSON file. Unknown keys, wrong types and values name the key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clachan_lake import settings

TRANSFORMATIONS = frozenset({"wav"})


@dataclass(frozen=True)
class Policy:
    """What is done with the data of one endpoint; `transformation` runs when a stream has ended."""

    transformation: str | None = None


def _policies() -> dict[str, Policy]:
    return {"raw": Policy(), "wav": Policy("wav")}


@dataclass(frozen=True)
class Config:
    folder: Path
    """The lake's own folder; the parent must exist."""
    socket: Path
    """The unix socket for processes of this machine, at most 107 bytes long."""
    token_file: Path
    """Its first line is the token of every request but /healthz."""
    host: str = "127.0.0.1"
    port: int = 8075
    """0: a free one, told in `address_file`."""
    address_file: Path | None = None
    """Where the service writes its URL once it listens."""
    policies: dict[str, Policy] = field(default_factory=_policies)
    maximum_body_mib: int = 64
    """A longer request is refused with 413."""
    minimum_free_mib: int = 64
    """With less free space on the disk, requests are refused with 507."""
    idle_seconds: int = 300
    """A stream that got nothing for so long has ended."""
    worker_seconds: int = 10
    """How long the worker of transformations stays after its last work."""

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def incoming(self) -> Path:
        return self.folder / "incoming"


def load(path: Path) -> Config:
    """Raises ValueError that names the file and the key, OSError when the file cannot be read."""
    return settings.load(path, Config, {"policies": _read_policies})


def _read_policies(value: Any) -> dict[str, Policy]:
    """A list of names, each with a transformation or none."""
    expected = f"expected a list of {{name, transformation: none or {' or '.join(sorted(TRANSFORMATIONS))}}}"
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.80}, {expected}")
    policies: dict[str, Policy] = {}
    for item in value:
        name = item.get("name") if isinstance(item, dict) else None
        made = item.get("transformation", "none") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name.isidentifier() or name in policies or len(item) > 2:
            raise ValueError(f"{item!r:.80}, {expected}, each name once, of letters, digits and _")
        if made not in {"none", *TRANSFORMATIONS}:
            raise ValueError(f"{item!r:.80}, {expected}")
        policies[name] = Policy(None if made == "none" else made)
    return policies
