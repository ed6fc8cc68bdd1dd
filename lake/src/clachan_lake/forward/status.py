"""How the forwarder does, as a file for promises and people, and the check of it."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clachan_lake.forward.state import Shipped
from clachan_lake.telling import tell

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
    dead_letters: int = 0
    """Chunks that came to the lake's dead letters, since the forwarder runs."""
    failing_since: float | None = None
    last_error: str | None = None
    last_error_at: float | None = None
    records: dict[str, Any] = field(default_factory=dict)
    """Of what stands in no file: lines and bytes that wait in the spool, lines lost (and when last), and since when and
    why recording fails."""
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
    tell(path, asdict(status))


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
    return [*found, *_record_faults(status.get("records") or {}, now, maximum_lag), *status["refused"], *status["lost"]]


def _record_faults(records: dict[str, Any], now: float, maximum_lag: float) -> list[str]:
    found = [
        f"{name}: failing for {now - since:.0f} s: {message}"
        for name, (since, message) in records.get("failing", {}).items()
        if now - since > maximum_lag
    ]
    if records.get("lag_seconds", 0) > maximum_lag:
        found.append(f"records: wait for {records['lag_seconds']:.0f} s, expected at most {maximum_lag:.0f}")
    if records.get("lost") and now - records["lost_at"] < LOST_SECONDS:
        found.append(
            f"records: {records['lost']} lost in all, the last {now - records['lost_at']:.0f} s ago: spool full"
        )
    return [*found, *records.get("refused", [])]


def summary(path: Path) -> str:
    """One line for the promise that passes."""
    status = json.loads(path.read_bytes())
    files = ", ".join(f"{count} {name}" for name, count in status["files"].items() if count) or "none"
    records = status.get("records")
    more = f"; records: {records['lines']} waiting, {records['sent']} sent" if records else ""
    more += f"; {status['dead_letters']} chunks are dead letters" if status.get("dead_letters") else ""
    return f"files: {files}; lag {status['lag_seconds']} s{more}"
