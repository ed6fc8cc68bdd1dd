"""What is seen of a recording: an array of samples x channels with the attributes that `transform.wav` gives.

Samples are scaled to -1..1 by `full_scale` and `silence`. `channel` is a channel's number, or None for the mean of all.
Memory is that of a block, whatever the length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clachan_lake.interface import Array

Floats = npt.NDArray[np.float64]
FLOOR_DB = -120.0
COLUMNS = 1200


def rate_of(array: Array) -> int:
    """Frames a second; raises ValueError for an array that is no recording."""
    rate = array.attrs.get("rate")
    if not isinstance(rate, int) or rate <= 0 or array.ndim != 2:
        raise ValueError(
            f"array {array.name}: shape {array.shape}, rate {rate!r}, expected samples x channels at a rate"
        )
    return rate


def blocks(array: Array, channel: int | None = None) -> Iterator[tuple[int, Floats]]:
    """(first frame, samples) in order."""
    scale, silence = float(array.attrs.get("full_scale", 1)), float(array.attrs.get("silence", 0))
    for first, rows in array.blocks():
        picked = rows[:, channel] if channel is not None else rows.mean(axis=1, dtype=np.float64)
        yield first, np.nan_to_num((picked.astype(np.float64) - silence) / scale)


def envelope(array: Array, columns: int = COLUMNS, channel: int | None = None) -> Floats:
    """Minimum and maximum of each of at most `columns` equal parts: shape (parts, 2); (0, 2) for no frames."""
    frames = len(array)
    parts = min(columns, frames)
    out = np.tile(np.array([np.inf, -np.inf]), (parts, 1))
    for first, samples in blocks(array, channel):
        index = (np.arange(first, first + len(samples)) * parts) // frames
        edges = np.flatnonzero(np.diff(index, prepend=-1))
        touched = index[edges]
        out[touched, 0] = np.minimum(out[touched, 0], np.minimum.reduceat(samples, edges))
        out[touched, 1] = np.maximum(out[touched, 1], np.maximum.reduceat(samples, edges))
    return out


@dataclass(frozen=True)
class Spectrogram:
    """`level[f, t]`: dB of the power in a bin, where a sine of full scale is 0 dB; at least FLOOR_DB."""

    level: Floats
    bin_hz: float
    column_seconds: float


def spectrogram(
    array: Array, columns: int = COLUMNS, channel: int | None = None, window: int | None = None
) -> Spectrogram:
    """Mean power of Hann windows that overlap by half at least, in at most `columns` columns. `window` is in frames; by
    default about 1/25 s."""
    rate, frames = rate_of(array), len(array)
    size = window or 1 << max(6, min(13, round(np.log2(rate / 25))))
    hop = max(1, min(size // 2, -(-max(0, frames - size) // columns) or 1))
    count = max(1, -(-max(0, frames - size) // hop) + 1)
    parts = min(columns, count)
    power, seen = np.zeros((parts, size // 2 + 1)), np.zeros(parts)
    for first, windows in _windows(array, channel, size, hop):
        index = ((np.arange(first, first + len(windows))) * parts) // count
        np.add.at(power, index, _power(windows))
        np.add.at(seen, index, 1)
    mean = power / np.maximum(seen, 1)[:, None]
    level = 10 * np.log10(np.maximum(mean.T, 10 ** (FLOOR_DB / 10)))
    return Spectrogram(level, rate / size, max(frames, size) / rate / parts)


def peak_hz(array: Array, channel: int | None = None) -> float:
    """The frequency (Hz) of the strongest bin of the mean spectrum, above 0; 0.0 for silence. Bins are 1 Hz wide where
    the recording lasts a second or longer, else as wide as its length allows."""
    rate, frames = rate_of(array), len(array)
    size = min(rate, frames)
    if size < 2:
        return 0.0
    total = np.zeros(size // 2 + 1)
    for _first, windows in _windows(array, channel, size, max(1, size // 2)):
        total += _power(windows).sum(axis=0)
    total[0] = 0
    return float(np.argmax(total) * rate / size) if total.any() else 0.0


def _power(windows: Floats) -> Floats:
    size = windows.shape[1]
    hann = np.hanning(size + 1)[:-1]
    spectrum = np.abs(np.fft.rfft(windows * hann, axis=1)) * 2 / max(hann.sum(), 1)
    out: Floats = spectrum * spectrum
    return out


def _windows(array: Array, channel: int | None, size: int, hop: int) -> Iterator[tuple[int, Floats]]:
    """(number of the first window, windows x size) in groups; the end is filled with zeros to a whole window."""
    at, kept, group = 0, np.zeros(0), max(1, (1 << 20) // size)
    for _first, samples in blocks(array, channel):
        kept = np.concatenate([kept, samples])
        while len(kept) >= size:
            number = min(group, (len(kept) - size) // hop + 1)
            yield at, np.lib.stride_tricks.sliding_window_view(kept, size)[: number * hop : hop]
            at, kept = at + number, kept[number * hop :]
    if len(kept) and (at == 0 or len(kept) > size - hop):
        yield at, np.pad(kept, (0, size - len(kept)))[None, :]
