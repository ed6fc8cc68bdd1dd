"""Recordings as WAV files, for what made one: an array that the transformation `wav` wrote."""

import wave
from typing import BinaryIO

import numpy as np

from clachan_lake.exchange.blocks import Tell, check, rows_of, silent
from clachan_lake.interface import Array, memory

WIDTHS = {"u8": 1, "s16": 2, "s24": 3, "s32": 4}


def to_wav(array: Array, out: BinaryIO, tell: Tell = silent) -> int:
    """Write samples x channels with the rate and sample format of its attributes. Returns the bytes written; raises
    ValueError for what is no sound with whole numbers."""
    kind = str(array.attrs.get("sample_format"))
    if kind not in WIDTHS:
        raise ValueError(f"array {array.name}, sample format: {kind}, expected one of {', '.join(WIDTHS)}; use .npy")
    check(array)
    with wave.open(out, "wb") as sound:
        sound.setnchannels(array.shape[1])
        sound.setsampwidth(WIDTHS[kind])
        sound.setframerate(array.attrs["rate"])
        sound.setnframes(len(array))
        for first, rows in rows_of(array):
            data = np.ascontiguousarray(rows).reshape(-1)
            if kind == "s24":
                data = np.ascontiguousarray(data.view(np.uint8).reshape(-1, 4)[:, :3])
            sound.writeframesraw(memory(data))
            tell((first + len(rows)) * array.row_bytes, array.nbytes)
    return out.tell()
