"""The document of a job, whose key is its id; the call is its body: a pickle that only workers load.

    name             text for people
    submitter        who submitted it: a token's id, "owner" for the one of the token file, or a user of the machine
    state            queued, running; done, failed, cancelled, lost: ended
    attempt          number of the last that was begun; 0: none
    attempts         as many are begun when workers vanish, then it is lost
    worker, slot     who has or had it; a slot of a worker has one job at a time
    submitted, started, ended    milliseconds since 1970 in UTC, or null
    message          why it is how it is: the last line of the traceback
    cancel           whether it is to be ended
    into             array that the result goes to, or null: it stays beside the job
    timeout_seconds, memory_mib  what it may take; null: what the worker gives
    scheduler        address of a Dask cluster that calls the function, or null: the worker does
    environment      {"python", "packages": {name: version}} of who submitted it
    result           null, or {"kind", "bytes"}: kind as `value` has it, or "arrays" with "tree" of their names
    finished         [attempt, digest of what it ended with], by which a repeat is recognised

Beside the jobs, the tree has these keys, each of a document of its own:

    queue/<submitted>/<id>           {}: it waits for a worker
    running/<id>                     {"attempt", "slot", "worker"}
    result/<id>                      {"kind"}, the result is its body
    log/<id>/<attempt>/<position>    {"text", "end"}: what it printed
    part/<id>                        {}: what several calls have in common, an array in numpy's format, is its body
"""

import re
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from clachan_lake import settings
from clachan_lake.errors import TakenError
from clachan_lake.names import check_name

KIND = "jobs"
QUEUED, RUNNING, DONE, FAILED, CANCELLED, LOST = "queued", "running", "done", "failed", "cancelled", "lost"
ENDED = frozenset({DONE, FAILED, CANCELLED, LOST})
ATTEMPTS = 3
MESSAGE_CHARACTERS = 1000
NAME_CHARACTERS = 200
PACKAGES = 200
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
JOBS_BEFORE = "g"
"""Ids are hexadecimal; the other keys of the tree come behind."""


def new_id() -> str:
    """A UUID of version 7 (RFC 9562), with a fraction of the millisecond (6.2, method 3): so lists are in the order of
    submission."""
    milliseconds, rest = divmod(time.time_ns(), 10**6)
    fraction = (rest << 12) // 10**6
    number = milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=number))


@dataclass(frozen=True)
class Order:
    """What who submits a job says of it."""

    name: str
    into: str | None = None
    attempts: int = ATTEMPTS
    timeout_seconds: float | None = None
    memory_mib: int | None = None
    scheduler: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)


def read(document: Any) -> Order:
    """Raises ValueError that names the key."""
    return settings.read(document, Order, _READERS, "job")


def check_id(job: str) -> str:
    if not isinstance(job, str) or not ID.fullmatch(job):
        raise ValueError(f"job id: {job!r:.80}, expected a UUID in lower case")
    return job


def new(order: Order, submitter: str) -> dict[str, Any]:
    """Queued now."""
    return {
        "name": order.name,
        "submitter": submitter,
        "state": QUEUED,
        "attempt": 0,
        "attempts": order.attempts,
        "worker": None,
        "slot": None,
        "submitted": now(),
        "started": None,
        "ended": None,
        "message": "",
        "cancel": False,
        "into": order.into,
        "timeout_seconds": order.timeout_seconds,
        "memory_mib": order.memory_mib,
        "scheduler": order.scheduler,
        "environment": order.environment,
        "result": None,
        "finished": None,
    }


def queue_key(job: str, document: dict[str, Any]) -> str:
    return f"queue/{document['submitted']:015d}/{job}"


def running_key(job: str) -> str:
    return f"running/{job}"


def result_key(job: str) -> str:
    return f"result/{job}"


def log_key(job: str, attempt: int, position: int) -> str:
    return f"log/{job}/{attempt:03d}/{position:015d}"


def now() -> int:
    return time.time_ns() // 10**6


def message(text: str) -> str:
    """As much of it as a document keeps."""
    return text.strip()[:MESSAGE_CHARACTERS]


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARACTERS or not value.isprintable():
        raise ValueError(f"{value!r:.80}, expected 1-{NAME_CHARACTERS} printable characters")
    return value


def _into(value: Any) -> str | None:
    if value is None:
        return None
    try:
        name = check_name("array", value)
    except TakenError as error:
        raise ValueError(str(error)) from None
    if name.startswith("~"):
        raise ValueError(f"{value!r:.80}, expected a name that does not begin with ~")
    return name


def _attempts(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 100:
        raise ValueError(f"{value!r:.80}, expected 1-100")
    return value


def _positive(value: Any) -> Any:
    if value is not None and (type(value) not in {int, float} or not 0 < value < 1 << 31):
        raise ValueError(f"{value!r:.80}, expected a number above 0, or null")
    return value


def _memory(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 16 <= value < 1 << 31):
        raise ValueError(f"{value!r:.80}, expected a whole number of at least 16, or null")
    return value


def _scheduler(value: Any) -> str | None:
    if value is not None and (
        not isinstance(value, str) or len(value) > 300 or urlsplit(value).scheme not in {"tcp", "tls"}
    ):
        raise ValueError(f"{value!r:.80}, expected tcp://host:port or tls://host:port, or null")
    return value


def _environment(value: Any) -> dict[str, Any]:
    expected = 'expected {"python": version, "packages": {name: version}}'
    if not isinstance(value, dict) or not value.keys() <= {"python", "packages"}:
        raise ValueError(f"{value!r:.80}, {expected}")
    packages = value.get("packages", {})
    if not isinstance(packages, dict) or len(packages) > PACKAGES:
        raise ValueError(f"packages: {packages!r:.80}, {expected}, at most {PACKAGES}")
    if not all(isinstance(text, str) and len(text) <= 100 for text in (*packages.values(), value.get("python", ""))):
        raise ValueError(f"{value!r:.80}, {expected}")
    return value


_READERS: dict[str, settings.Reader] = {
    "name": _name,
    "into": _into,
    "attempts": _attempts,
    "timeout_seconds": _positive,
    "memory_mib": _memory,
    "scheduler": _scheduler,
    "environment": _environment,
}
