"""A transformation's document: what is run on what. All keys but `source` and one of `function` and `code` may be left
out.

    function   a built-in (wav, csv, jsonl, msgpack, minmax), or `package.module:name`, installed where it runs
    code       instead: Python source that defines `transform(batch, output, state)` (see `transform.batch`)
    source     {"kind": "stream" or "array", "policy": the one that made the stream or null,
               "pattern": a regular expression that the source's whole name matches, or null}
    output     name of what it makes; {name} stands for the source's
    on         "chunk": run on what is new; "end": run on the whole stream when it has ended (wav: always)
    options    of the function
    from       "start": also what sources have when it is declared; "now": only what comes after
    attempts   so often a chunk is tried before it becomes a dead letter
    timeout_seconds   a call that takes longer is ended, and counts as an attempt
    paused     true: nothing is run; left out when it is declared again: as it is
    scheduler  "tcp://host:port" of a dask.distributed cluster that runs the function; null: the worker itself does
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from clachan_lake import settings
from clachan_lake.names import check_name
from clachan_lake.transform.options import READERS

CODE_BYTES = 256 << 10
ATTEMPTS = 100
TIMEOUT_SECONDS = 86_400
SYSTEM = "~"
STREAMS = frozenset({"wav", "csv", "jsonl", "msgpack"})
"""The built-ins that read streams; minmax reads arrays."""
_IMPORT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_SCHEDULER = re.compile(r"(tcp|tls)://(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")


@dataclass(frozen=True)
class Source:
    kind: Literal["stream", "array"]
    policy: str | None = None
    pattern: str | None = None


@dataclass(frozen=True)
class Transformation:
    """See the module's description."""

    source: Source
    function: str | None = None
    code: str | None = None
    output: str = "{name}"
    on: Literal["chunk", "end"] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    from_: Literal["start", "now"] = "start"
    attempts: int = 5
    timeout_seconds: float = 60
    paused: bool = False
    scheduler: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it is run on the whole stream."""
        return self.on == "end"

    @property
    def is_built_in(self) -> bool:
        return self.function in READERS

    @property
    def runs_code(self) -> bool:
        """Whether it is more than the lake's own functions, so that its declaration is the right to run anything."""
        return not self.is_built_in

    def output_name(self, source: str) -> str:
        return self.output.replace("{name}", source)

    def document(self) -> dict[str, Any]:
        """With every key."""
        found = asdict(self)
        found["from"] = found.pop("from_")
        return found


def read(name: str, document: Mapping[str, Any]) -> Transformation:
    """Raises ValueError that names the transformation and the key; TakenError for its name."""
    check_name("transformation", name)
    what = f"transformation {name}"
    if name.startswith(SYSTEM):
        raise ValueError(f"{what}: expected a name that does not begin with {SYSTEM}")
    if "from_" in document:
        raise ValueError(f"{what}, key from_: unknown, expected from")
    given = {"from_" if key == "from" else key: value for key, value in document.items()}
    try:
        found = settings.read(given, Transformation, _READERS, what)
    except ValueError as error:
        raise ValueError(str(error).replace("from_", "from")) from None
    return _checked(what, found)


def _checked(what: str, found: Transformation) -> Transformation:
    if (found.function is None) == (found.code is None):
        raise ValueError(f"{what}, key function: {found.function!r:.80}, expected either function or code")
    wanted = "end" if found.function == "wav" else "chunk"
    on = found.on or wanted
    if found.function in READERS and on != wanted:
        raise ValueError(f"{what}, key on: {on}, expected {wanted} for {found.function}")
    if found.source.kind == "array" and on == "end":
        raise ValueError(f"{what}, key on: end, expected chunk for arrays, which have no end")
    if found.source.kind == "array" and found.source.policy is not None:
        raise ValueError(f"{what}, key source: policy {found.source.policy!r:.80}, expected null for arrays")
    kind = "stream" if found.function in STREAMS else "array" if found.function == "minmax" else found.source.kind
    if found.source.kind != kind:
        raise ValueError(f"{what}, key source: kind {found.source.kind}, expected {kind} for {found.function}")
    if found.function == "minmax" and (found.scheduler or found.output != "{name}"):
        key = "scheduler" if found.scheduler else "output"
        raise ValueError(f"{what}, key {key}: expected none for minmax, which reads its source and names its arrays")
    if found.function is not None and found.function in READERS:
        try:
            READERS[found.function](found.options)
        except ValueError as error:
            raise ValueError(f"{what}, key options: {error}") from None
    return Transformation(**{**found.__dict__, "on": on})


def _read_function(value: Any) -> str | None:
    if value is None or value in READERS or (isinstance(value, str) and _IMPORT.fullmatch(value) and len(value) < 500):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"{value!r:.80}, expected one of {', '.join(READERS)}, or package.module:name")


def _read_code(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value.encode(errors="replace")) > CODE_BYTES:
        raise ValueError(f"{value!r:.80}, expected Python source of at most {CODE_BYTES} bytes")
    return value


def _read_source(value: Any) -> Source:
    readers = {"kind": settings.choice("stream", "array"), "pattern": _read_pattern}
    try:
        return settings.read(value, Source, readers, "source")
    except ValueError as error:
        raise ValueError(str(error)) from None


def _read_pattern(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.80}, expected text")
    from clachan_lake.policies.pattern import Pattern

    return Pattern(value).text


def _read_output(value: Any) -> str:
    if not isinstance(value, str) or value.startswith(SYSTEM) or not value.strip():
        raise ValueError(f"{value!r:.80}, expected a name that does not begin with {SYSTEM}")
    rest = value.replace("{name}", "")
    if "{" in rest or "}" in rest:
        raise ValueError(f"{value!r:.80}, expected no other braces than {{name}}")
    check_name("output", value)
    return value


def _read_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.80}, expected an object")
    return value


def _read_attempts(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= ATTEMPTS:
        raise ValueError(f"{value!r:.80}, expected a whole number from 1 to {ATTEMPTS}")
    return value


def _read_timeout(value: Any) -> float:
    if type(value) not in {int, float} or not 0 < value <= TIMEOUT_SECONDS:
        raise ValueError(f"{value!r:.80}, expected a number above 0 and up to {TIMEOUT_SECONDS}")
    return value  # type: ignore[no-any-return]


def _read_scheduler(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and _SCHEDULER.fullmatch(value)):
        raise ValueError(f"{value!r:.80}, expected tcp://host:port or tls://host:port")
    return value


_READERS: dict[str, settings.Reader] = {
    "source": _read_source,
    "function": _read_function,
    "code": _read_code,
    "output": _read_output,
    "on": lambda value: None if value is None else settings.choice("chunk", "end")(value),
    "options": _read_options,
    "from_": settings.choice("start", "now"),
    "attempts": _read_attempts,
    "timeout_seconds": _read_timeout,
    "scheduler": _read_scheduler,
}
