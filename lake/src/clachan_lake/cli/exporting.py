"""Writing streams and arrays to files, block by block; the file appears when it is whole."""

import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clachan_lake.interface import Array, Lake, Stream

WIDTHS = {"u8": 1, "s16": 2, "s24": 3, "s32": 4}


def export(lake: Lake, name: str, file: Path) -> int:
    """Bytes written. `.npy` and `.wav` need an array of the name, anything else a stream."""
    with _whole(file) as out:
        if file.suffix == ".npy":
            _npy(lake.arrays[name], out)
        elif file.suffix == ".wav" and name in lake.arrays:
            _wav(lake.arrays[name], out)
        else:
            _bytes(lake.streams[name], out)
        return out.tell()


@contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    draft = file.with_name(f".{file.name}.part")
    try:
        with draft.open("wb") as out:
            yield out
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _npy(array: Array, out: BinaryIO) -> None:
    descr = np.lib.format.dtype_to_descr(array.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_2_0(out, header)
    if not array.shape:
        out.write(array[()].tobytes())
        return
    for _first, rows in array.blocks():
        out.write(rows.tobytes())


def _wav(array: Array, out: BinaryIO) -> None:
    kind = str(array.attrs.get("sample_format"))
    if kind not in WIDTHS:
        raise ValueError(f"array {array.name}, sample format: {kind}, expected one of {', '.join(WIDTHS)}; use .npy")
    with wave.open(out, "wb") as sound:
        sound.setnchannels(array.shape[1])
        sound.setsampwidth(WIDTHS[kind])
        sound.setframerate(array.attrs["rate"])
        sound.setnframes(len(array))
        for _first, rows in array.blocks():
            data = rows.reshape(-1)
            if kind == "s24":
                data = data.view(np.uint8).reshape(-1, 4)[:, :3]
            sound.writeframesraw(data.tobytes())


def _bytes(stream: Stream, out: BinaryIO) -> None:
    for data in stream.blocks():
        out.write(data)
