"""The transformation `jsonl`: lines with one JSON object each become rows of a structured array (see `records`).

A line that is cut at the end of a chunk waits for the rest. Options: `columns`, `bad`, `line_bytes` (how long a line
may be, 1 MiB by default). A line that is no JSON is a record with an error; empty lines are passed over.
"""

from typing import Any

import msgspec

from clachan_lake.transform import lines
from clachan_lake.transform.batch import Batch, Output, State
from clachan_lake.transform.options import read_json, table
from clachan_lake.transform.records import RecordError, rows, without_collection

DECODER = msgspec.json.Decoder()


def transform(batch: Batch, output: Output, state: State) -> None:
    options = read_json(batch.options)
    data = lines.take(batch, state, options.line_bytes)
    with without_collection():
        output.append(rows(decode(data, options.bad, output), table(options), output))


def decode(data: bytes, skip: bool, output: Output) -> list[Any]:
    """The lines' values; raises RecordError that names the line."""
    try:
        found: list[Any] = DECODER.decode_lines(data)
        return found
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    values = []
    for number, line in enumerate(data.split(b"\n")):
        if not line.strip():
            continue
        try:
            values.append(DECODER.decode(line))
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            message = f"line {number}: {line[:60]!r}, expected JSON ({error!s:.100})"
            if not skip:
                raise RecordError(message) from None
            output.warn(f"record left out: {message}")
    return values
