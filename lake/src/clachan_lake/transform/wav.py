"""The transformation `wav`: an ended stream that is a WAV file becomes an array of samples x channels of its name.

The samples are as in the file: uint8 (128 is silence), int16, int32 (24 bits keep their value), float32, float64.
Attributes: rate (Hz), channels (names), sample_format, valid_bits, full_scale (the value of full deflection) and
silence, source (the stream), source_bytes, warnings.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from clachan_lake.format import CHUNK_BYTES
from clachan_lake.interface import AnyArray
from clachan_lake.transform import riff
from clachan_lake.transform.batch import Batch, Output, State

BLOCK_BYTES = 2 * CHUNK_BYTES
DTYPES = {"u8": "|u1", "s16": "<i2", "s24": "<i4", "s32": "<i4", "f32": "<f4", "f64": "<f8"}
FULL_SCALE = {"u8": 128, "s16": 1 << 15, "s24": 1 << 23, "s32": 1 << 31, "f32": 1, "f64": 1}


def transform(batch: Batch, output: Output, state: State) -> None:
    """Add the frames of the whole stream. Raises riff.WavError."""

    def read(offset: int, count: int) -> bytes:
        found: bytes = batch.read(offset, max(offset, min(offset + count, batch.stop)))
        return found

    wav = riff.parse(read, batch.stop)
    dtype = np.dtype(DTYPES[wav.format.sample])
    output.append(np.empty((0, wav.format.channels), dtype), attrs=_attributes(batch, wav))
    for rows in decode(read, wav):
        output.append(rows)
    for text in wav.warnings:
        output.warn(text)


def decode(read: riff.Reader, wav: riff.Wav) -> Iterator[AnyArray]:
    """The frames in order, as blocks of samples x channels."""
    form = wav.format
    width = form.frame_bytes // form.channels
    step = max(1, BLOCK_BYTES // (form.channels * np.dtype(DTYPES[form.sample]).itemsize))
    for first in range(0, wav.frames, step):
        count = min(step, wav.frames - first)
        data = read(wav.offset + first * form.frame_bytes, count * form.frame_bytes)
        flat = _from_24_bits(data) if width == 3 else np.frombuffer(data, DTYPES[form.sample])
        yield flat.reshape(count, form.channels)


def _from_24_bits(data: bytes) -> AnyArray:
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    out: AnyArray = wide.view("<i4").reshape(-1) >> 8
    return out


def _attributes(batch: Batch, wav: riff.Wav) -> dict[str, Any]:
    form = wav.format
    return {
        "rate": form.rate,
        "channels": riff.channel_names(form),
        "sample_format": form.sample,
        "valid_bits": form.valid_bits,
        "full_scale": FULL_SCALE[form.sample],
        "silence": 128 if form.sample == "u8" else 0,
        "source": batch.source,
        "source_bytes": batch.stop,
        "warnings": list(wav.warnings),
    }
