"""Tiles of a recording's spectrogram. At zoom z a column of pixels is 2**z samples, a tile has `WIDTH` of them and
`HEIGHT` frequencies, the lowest at the bottom.

A column shows the mean power of at most `WINDOWS` Hann windows, spread over its samples: so a tile costs the same at
every zoom, and a far view is a sample. A sine of full scale is 0 dB, the brightest; `FLOOR_DB` and below is dark.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clachan_lake.interface import AnyArray, Array
from clachan_lake.plots import png
from clachan_lake.plots.series import Series, SeriesError, rate

WIDTH = HEIGHT = 256
WINDOWS = 4
GROUP = 32
FLOOR_DB = -90.0
MAXIMUM_ZOOM = 40
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sound:
    """A series of a recording: `window` samples are transformed at once, about a 25th of a second."""

    array: Array
    series: Series
    window: int
    scale: float
    silence: float


def sound(array: Array, series: Series) -> Sound:
    """Raises SeriesError for what is no recording: samples, or samples x channels, at a whole `rate`."""
    found = rate(array)
    if found is None or found != int(found) or array.ndim > 2 or array.dtype.kind not in "iuf":
        raise SeriesError(f"array {array.name!r}: shape {array.shape}, rate {found}, expected samples at a rate: sound")
    window = 1 << max(6, min(13, round(np.log2(max(found, 1) / 25))))
    scale, silence = (_number(array, key, default) for key, default in (("full_scale", _full(array)), ("silence", 0.0)))
    return Sound(array, series, window, scale or 1.0, silence)


def is_sound(array: Array) -> bool:
    """Whether it says that it is one: a rate that can be heard, and how loud full scale is."""
    found = rate(array)
    if found is None or found < 4000 or "full_scale" not in array.attrs:
        return False
    return array.ndim <= 2 and array.dtype.kind in "iuf"


def tile(of: Sound, zoom: int, number: int) -> bytes:
    """A PNG; what is behind the recording's end is transparent."""
    step = 1 << zoom
    first = number * WIDTH * step
    columns = max(0, min(WIDTH, -(-(of.array.rows - first) // step)))
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    if columns:
        low = max(0, first - of.window)
        samples = of.series.of(
            of.array.read_rows(low, min(of.array.rows, first + columns * step + of.window)), of.array.axis
        )
        for begin in range(0, columns, GROUP):
            count = min(GROUP, columns - begin)
            power = _columns(of, samples, first + begin * step - low, step, count)
            pixels[:, begin : begin + count] = _entries(power)[::-1]
    return png.encode(pixels)


def _columns(of: Sound, samples: AnyArray, first: int, step: int, count: int) -> Floats:
    """Mean power of each column: HEIGHT x count."""
    each = max(1, min(WINDOWS, step * 2 // of.window))
    middles = first + (np.arange(count * each) + 0.5) * step / each
    starts = (middles - of.window / 2).astype(np.int64)
    windows = np.zeros((len(starts), of.window))
    for row, start in enumerate(starts.tolist()):
        part = samples[max(0, start) : max(0, start + of.window)]
        windows[row, max(0, -start) : max(0, -start) + len(part)] = (part - of.silence) / of.scale
    power = _power(np.nan_to_num(windows, posinf=0.0, neginf=0.0))
    return _as_high(power.reshape(count, each, -1).mean(axis=1).T)


def _power(windows: Floats) -> Floats:
    hann = np.hanning(windows.shape[1] + 1)[:-1]
    magnitude = np.abs(np.fft.rfft(windows * hann, axis=1))[:, 1:] * 2 / hann.sum()
    out: Floats = magnitude * magnitude
    return out


def _as_high(power: Floats) -> Floats:
    """HEIGHT rows: the strongest of several bins, or a bin several times."""
    bins = len(power)
    if bins >= HEIGHT:
        strongest: Floats = power.reshape(HEIGHT, bins // HEIGHT, -1).max(axis=1)
        return strongest
    return np.repeat(power, HEIGHT // bins, axis=0)


def _entries(power: Floats) -> npt.NDArray[np.uint8]:
    level = 10 * np.log10(np.maximum(power, 1e-20))
    bright = np.clip((level - FLOOR_DB) / -FLOOR_DB, 0, 1)
    return (1 + np.round(bright * (png.COLOURS - 1))).astype(np.uint8)


def _number(array: Array, key: str, default: float) -> float:
    found = array.attrs.get(key, default)
    return float(found) if isinstance(found, int | float) and np.isfinite(found) else default


def _full(array: Array) -> float:
    return float(np.iinfo(array.dtype).max) + 1 if array.dtype.kind in "iu" else 1.0
