"""What the verbs that read a lake show."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clachan_lake.errors import MissingError
from clachan_lake.interface import Array, Lake


def everything(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    """`streams` and `arrays`, each described."""
    return {
        "streams": [stream.describe() for stream in lake.streams.values()],
        "arrays": [_array(array) for array in lake.arrays.values()],
    }


def one(lake: Lake, name: str) -> dict[str, Any]:
    """The stream and the array of a name; raises MissingError when there is neither."""
    found: dict[str, Any] = {}
    if name in lake.streams:
        found["stream"] = lake.streams[name].describe()
    if name in lake.arrays:
        found["array"] = _array(lake.arrays[name])
    if not found:
        raise MissingError(f"name {name!r}: neither a stream nor an array")
    return found


def _array(array: Array) -> dict[str, Any]:
    return {
        "name": array.name,
        "shape": list(array.shape),
        "dtype": np.lib.format.dtype_to_descr(array.dtype),
        "bytes": array.nbytes,
        "attrs": dict(array.attrs),
    }


def table(items: dict[str, list[dict[str, Any]]]) -> None:
    """For people; names are text, never markup."""
    console = Console()
    streams = Table("stream", "bytes", "chunks", "state", "what", title="Streams", title_justify="left")
    for item in items["streams"]:
        made = item["transformations"]
        state = ", ".join(one["state"] for one in made) or ("final" if item["final"] else "open")
        remarks = "; ".join(text for one in made for text in (one["message"], *one["warnings"]) if text)
        streams.add_row(*(Text(str(cell)) for cell in (item["name"], item["size"], item["chunks"], state, remarks)))
    arrays = Table("array", "shape", "dtype", "bytes", "rate", title="Arrays", title_justify="left")
    for item in items["arrays"]:
        shape = " x ".join(map(str, item["shape"]))
        cells = (item["name"], shape, item["dtype"], item["bytes"], item["attrs"].get("rate", ""))
        arrays.add_row(*(Text(str(cell)) for cell in cells))
    console.print(streams)
    console.print(arrays)


def draw(lake: Lake, names: list[str] | None, png: Path | None, html: Path | None, title: str) -> list[dict[str, Any]]:
    """Write the picture and the page; numbers of each recording."""
    from clachan_lake import pictures

    recordings = [lake.arrays[name] for name in names] if names else _recordings(lake)
    if not recordings:
        raise ValueError("recordings: none in the lake, expected at least one array with a rate")
    if png:
        png.write_bytes(pictures.draw(recordings))
    if html:
        streams = [stream.describe() for stream in lake.streams.values()]
        html.write_text(pictures.page(title, recordings, streams))
    return [
        {
            "name": recording.name,
            "samples": len(recording),
            "channels": recording.shape[1],
            "rate": recording.attrs["rate"],
            "peak_hz": pictures.peak_hz(recording),
        }
        for recording in recordings
    ]


def _recordings(lake: Lake) -> list[Array]:
    return [array for array in lake.arrays.values() if "rate" in array.attrs and array.ndim == 2]
