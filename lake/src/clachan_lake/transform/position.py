"""How far a transformation is with a source: the document at a key of "positions".

position     bytes of the stream, rows of the array, that are done
state        what the function left
status       waiting (for more), running (more is there), retrying, failed, done (the stream has ended)
failures     calls in a row that failed; next_try when the next one may be, in ms since 1970
careful      up to there chunks are given one at a time, to find the one that fails
gap          whether what came right before the position was given up
message      of the last failure, or what was done; warnings of the function, the last ones
output       name of what is made; outputs all of them, each [kind, name]
revision     of the transformation that ran last; dead how many chunks were given up
replays      numbers of dead letters that are to be tried again
serial       of an array's state when it was caught up; seen when its rows were read last; both hex
updated      in ms since 1970
"""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from clachan_lake.documents import LocalDocuments, Session
from clachan_lake.following import Key

KIND = "positions"
WARNINGS = 20
MESSAGE = 1000
LONGEST_SECONDS = 300


@dataclass
class Position:
    """See the module's description."""

    position: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    status: str = "waiting"
    failures: int = 0
    next_try: int | None = None
    careful: int = 0
    gap: bool = False
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    output: str | None = None
    outputs: list[list[str]] = field(default_factory=list)
    revision: int = 0
    dead: int = 0
    replays: list[int] = field(default_factory=list)
    serial: str | None = None
    seen: str | None = None
    updated: int = 0

    def failed(self, message: str) -> None:
        """One more failure: the next try is later each time."""
        self.failures += 1
        self.status = "retrying"
        self.message = message[:MESSAGE]
        self.next_try = now() + 1000 * min(LONGEST_SECONDS, 2 ** min(self.failures - 1, 20))

    def ran(self, message: str = "") -> None:
        self.failures, self.next_try, self.gap, self.message = 0, None, False, message

    def warn(self, text: str) -> None:
        self.warnings = [*self.warnings, text[:MESSAGE]][-WARNINGS:]


def get(lake: Session, key: Key) -> Position | None:
    documents = LocalDocuments(lake, KIND)
    return read(documents[key]) if key in documents else None


def read(document: dict[str, Any]) -> Position:
    known = Position.__dataclass_fields__
    return Position(**{name: value for name, value in document.items() if name in known})


def put(lake: Session, key: Key, position: Position) -> None:
    position.updated = now()
    LocalDocuments(lake, KIND).put(key, asdict(position))


def now() -> int:
    return time.time_ns() // 10**6
