"""Writing streams and arrays to files and folders, block by block; they appear when they are whole."""

from pathlib import Path
from typing import BinaryIO

from clachan_lake.exchange import npy, wav, zarr
from clachan_lake.exchange.blocks import Tell
from clachan_lake.exchange.whole import whole_file
from clachan_lake.interface import Lake, Stream


def export(lake: Lake, name: str, path: Path, tell: Tell) -> int:
    """Bytes of the array or stream. `.npy`, `.zarr` and `.wav` need an array of the name, anything else a stream."""
    if path.suffix == ".zarr":
        zarr.to_zarr(lake.arrays[name], path, tell)
        return lake.arrays[name].nbytes
    with whole_file(path) as out:
        if path.suffix == ".npy":
            return npy.to_npy(lake.arrays[name], out, tell)
        if path.suffix == ".wav" and name in lake.arrays:
            return wav.to_wav(lake.arrays[name], out, tell)
        return _bytes(lake.streams[name], out, tell)


def _bytes(stream: Stream, out: BinaryIO, tell: Tell) -> int:
    for data in stream.blocks():
        out.write(data)
        tell(out.tell(), stream.size)
    return out.tell()
