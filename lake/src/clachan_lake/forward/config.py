"""What the forwarder is told: one JSON file."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from clachan_lake import settings


@dataclass(frozen=True)
class Config:
    directory: Path
    """Every regular file below it is shipped; names that begin with a dot and links are left out."""
    url: str
    """The lake's, without the path of ingestion."""
    token_file: Path
    state: Path
    """SQLite: which file was shipped how far."""
    status: Path
    """JSON, written every few seconds: lag, last error, files done."""
    policy: str = "raw"
    chunk_bytes: int = 1 << 20
    stable_seconds: float = 5.0
    """A file that did not change for so long has ended."""
    flush_seconds: float = 5.0
    """What is shorter than a chunk waits at most so long in a file that goes on changing."""
    scan_seconds: float = 1.0
    timeout_seconds: float = 30.0
    ca_file: Path | None = None
    """For an https URL whose authority the system does not know."""


def load(path: Path) -> Config:
    """Raises ValueError that names the file and the key, OSError when the file cannot be read."""
    config = settings.load(path, Config)
    parts = urlsplit(config.url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
        raise ValueError(f"file {path}, key url: {config.url}, expected http(s)://host:port without credentials")
    if not 1 <= config.chunk_bytes <= 1 << 30:
        raise ValueError(f"file {path}, key chunk_bytes: {config.chunk_bytes}, expected 1 to {1 << 30}")
    return config
