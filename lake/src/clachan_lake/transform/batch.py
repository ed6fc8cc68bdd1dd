"""What a transformation's function works with: `transform(batch, output, state)`.

It is called with what is new, in order, and adds to the output what it makes of it. What it leaves in `state`, a JSON
object, it finds there next time. Position, output and state are one commit: when the function raises, or its process
dies, nothing of the call is kept and it is called again with the same.

    def transform(batch, output, state):
        text = state.get("rest", "").encode() + batch.data
        *lines, rest = text.split(b"\\n")
        output.append(np.array([float(line) for line in lines]))
        state["rest"] = rest.decode()
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from clachan_lake.interface import AnyArray, Array

Kind = Literal["stream", "array"]
State = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """`start` and `stop` are positions in the source: bytes of a stream, rows of an array."""

    source: str
    kind: Kind
    start: int
    stop: int
    chunks: Sequence[bytes] = ()
    """Of a stream: the chunks as they came; one over 32 MiB comes in parts."""
    rows: AnyArray | None = None
    """Of an array: the new rows, to be read only."""
    final: bool = False
    """The stream ends here, as far as is known: a chunk after its end opens it again."""
    gap: bool = False
    """What came right before was given up, or is no longer kept: what the state holds of it has no end."""
    preceding: bytes = b""
    """Of a stream after a gap: the last bytes before the batch."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """The source's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The transformation's."""
    reader: Callable[[int, int], Any] | None = None

    @property
    def data(self) -> bytes:
        """All chunks as one."""
        return b"".join(self.chunks)

    def read(self, start: int, stop: int) -> Any:
        """Bytes or rows of the source from `start` to `stop`, also before the batch; not on a cluster."""
        if self.reader is None:
            raise ValueError(f"{self.kind} {self.source}: read on a cluster, expected only the batch's own content")
        return self.reader(start, stop)


class Output(ABC):
    """Where a call's results go: streams and arrays that this transformation made, or makes now."""

    @abstractmethod
    def append(self, what: Any, name: str | None = None, attrs: Mapping[str, Any] | None = None) -> None:
        """Bytes to the end of a stream, or rows (anything numpy takes) to the end of an array, by default of the
        transformation's output name. It is made on first use, an array with the rows' dtype and shape. `attrs` are
        set. Raises ValueError for rows of another dtype or shape, and for a name that is not of this
        transformation."""

    @abstractmethod
    def warn(self, text: str) -> None:
        """Something that the source's owner should know; the last ones are kept."""

    @abstractmethod
    def array(self, name: str) -> Array | None:
        """One that this transformation made, None when there is none; not on a cluster."""


Function = Callable[[Batch, Output, State], None]


class Recorded(Output):
    """Keeps what a function appends, to be done where the lake is: of a cluster."""

    def __init__(self) -> None:
        self.appended: list[tuple[Any, str | None, Mapping[str, Any] | None]] = []
        self.warnings: list[str] = []

    def append(self, what: Any, name: str | None = None, attrs: Mapping[str, Any] | None = None) -> None:
        self.appended.append((what, name, attrs))

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def array(self, name: str) -> Array | None:
        raise ValueError(f"array {name}: read on a cluster, expected only appending there")

    def replay(self, output: Output) -> None:
        for what, name, attrs in self.appended:
            output.append(what, name, attrs)
        for text in self.warnings:
            output.warn(text)


class ContentError(ValueError):
    """What was read is wrong, and would be so the next time as well: it is not tried again."""
