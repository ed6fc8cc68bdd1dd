"""How the forwarder does, as a file for promises and people, and the check of it."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clachan_lake.forward.state import Shipped

OLD_SECONDS = 60.0
LOST_SECONDS = 3600.0


@dataclass
class Status:
    """Times are seconds since 1970. `files` counts by status, `lag_seconds`: the longest wait for a next chunk."""

    pid: int
    time: float = 0.0
    files: dict[str, int] = field(default_factory=dict)
    lag_seconds: float = 0.0
    sent_chunks: int = 0
    sent_bytes: int = 0
    failing_since: float | None = None
    last_error: str | None = None
    last_error_at: float | None = None
    refused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def count(self, shipped: Iterable[Shipped]) -> None:
        everything = list(shipped)
        counts = Counter(one.status for one in everything)
        self.files = {status: counts[status] for status in ("open", "done", "refused", "lost")}
        self.refused = [one.message for one in everything if one.status == "refused"][:10]
        recent = time.time() - LOST_SECONDS
        self.lost = [one.message for one in everything if one.status == "lost" and one.changed > recent][:10]


def write(path: Path, status: Status) -> None:
    """At once or not at all: a reader never sees half of it."""
    status.time = time.time()
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(json.dumps(asdict(status), indent=1))
    draft.replace(path)


def faults(path: Path, maximum_lag: float) -> list[str]:
    """What is wrong with the forwarder whose status stands there; none when all is well."""
    try:
        status: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return [f"status {path}: {error}, expected one that the forwarder wrote"]
    now = time.time()
    found = []
    if now - status["time"] > OLD_SECONDS:
        found.append(f"status: {now - status['time']:.0f} s old, expected at most {OLD_SECONDS:.0f}")
    if status["failing_since"] is not None and now - status["failing_since"] > maximum_lag:
        found.append(f"lake: not reached for {now - status['failing_since']:.0f} s: {status['last_error']}")
    if status["lag_seconds"] > maximum_lag:
        found.append(f"lag: {status['lag_seconds']} s, expected at most {maximum_lag:.0f}: {status['last_error']}")
    return [*found, *status["refused"], *status["lost"]]


def summary(path: Path) -> str:
    """One line for the promise that passes."""
    status = json.loads(path.read_bytes())
    files = ", ".join(f"{count} {name}" for name, count in status["files"].items() if count) or "none"
    return f"files: {files}; lag {status['lag_seconds']} s"
