"""What the forwarder is told: one JSON file."""

import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from clachan_lake import settings


@dataclass(frozen=True)
class Config:
    url: str
    """The lake's, without the path of ingestion."""
    token_file: Path
    state: Path
    """SQLite: which file was shipped how far."""
    status: Path
    """JSON, written every few seconds: lag, last error, files done."""
    directory: Path | None = None
    """Every regular file below it is shipped; names that begin with a dot and links are left out."""
    policy: str = "raw"
    chunk_bytes: int = 1 << 20
    stable_seconds: float = 5.0
    """A file that did not change for so long has ended."""
    flush_seconds: float = 5.0
    """What is shorter than a chunk waits at most so long in a file that goes on changing."""
    scan_seconds: float = 1.0
    timeout_seconds: float = 30.0
    ca_file: Path | None = None
    """Certificate of an https URL whose authority the system does not know, or of that authority."""
    gzip: bool = False
    """Chunks go compressed."""
    node: str = field(default_factory=socket.gethostname)
    """This machine's name in its metrics."""
    metrics_seconds: float = 0.0
    """How often this machine's metrics are taken; 0: never. They go to the stream `metrics/<node>`."""
    usage_url: str | None = None
    """The controller, whose usage records go to the stream `usage`."""
    usage_token_file: Path | None = None
    usage_ca_file: Path | None = None
    usage_seconds: float = 60.0
    """How often it is asked."""
    records_policy: str = "raw"
    """Of metrics and usage records."""
    records_flush_seconds: float = 30.0
    """How long records wait for others that share their chunk."""
    spool: Path | None = None
    """SQLite: records that the lake does not have yet. By default beside `state`, with `.spool` behind its name."""
    spool_mib: int = 64
    """What the spool keeps at most; more metrics are lost, and said; usage records wait at the controller."""

    @property
    def records(self) -> bool:
        """Whether there is something to ship that stands in no file."""
        return bool(self.metrics_seconds or self.usage_url)

    @property
    def spool_file(self) -> Path:
        return self.spool or self.state.with_name(f"{self.state.name}.spool")


def load(path: Path) -> Config:
    """Raises ValueError that names the file and the key, OSError when the file cannot be read."""
    config = settings.load(path, Config)
    for key, url in (("url", config.url), ("usage_url", config.usage_url)):
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
                raise ValueError(f"file {path}, key {key}: {url}, expected http(s)://host:port without credentials")
    if config.usage_url and config.usage_token_file is None:
        raise ValueError(f"file {path}, key usage_token_file: missing, expected one for {config.usage_url}")
    if not (config.directory or config.records):
        raise ValueError(f"file {path}: nothing to ship, expected directory, metrics_seconds or usage_url")
    if not 1 <= config.chunk_bytes <= 1 << 30:
        raise ValueError(f"file {path}, key chunk_bytes: {config.chunk_bytes}, expected 1 to {1 << 30}")
    return config
