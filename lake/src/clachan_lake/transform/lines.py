"""Whole lines of a stream whose chunks may end anywhere."""

from clachan_lake.transform.batch import Batch, State
from clachan_lake.transform.records import RecordError


def take(batch: Batch, state: State, limit: int, quote: bytes = b"") -> bytes:
    """The bytes up to the last line's end, with what was left before; what follows is left in the state. Behind the
    stream's end all of them. A line's end between `quote`s is none. Raises RecordError for a line over `limit`."""
    rest = str(state.pop("rest", "")).encode("latin-1")
    if batch.gap:
        rest = b""
    data = b"".join((rest, *batch.chunks))
    if batch.gap and batch.preceding and not batch.preceding.endswith(b"\n"):
        # the end of a line whose beginning is lost
        data = data.partition(b"\n")[2]
    if batch.final:
        return data
    end = _last_end(data, quote)
    if len(data) - end > limit:
        raise RecordError(f"line: {len(data) - end} bytes without an end, expected at most {limit}")
    if end < len(data):
        state["rest"] = data[end:].decode("latin-1")
    return data[:end]


def _last_end(data: bytes, quote: bytes) -> int:
    """Behind the last line's end that is outside of quotes; 0 without one."""
    end = data.rfind(b"\n") + 1
    if not quote or quote not in data:
        return end
    opened = data.count(quote, 0, end) % 2
    while end and opened:
        before = data.rfind(b"\n", 0, end - 1) + 1
        opened ^= data.count(quote, before, end) % 2
        end = before
    return end
