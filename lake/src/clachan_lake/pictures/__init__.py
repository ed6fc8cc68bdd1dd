"""Waveform and spectrogram of recordings in the lake: `signal` computes, block by block, `drawing` makes a PNG, `page`
an HTML page that carries everything in itself. Needs the extra `pictures` (matplotlib), which is imported on use."""

from clachan_lake.pictures.drawing import draw
from clachan_lake.pictures.page import page
from clachan_lake.pictures.signal import envelope, peak_hz, spectrogram

__all__ = ["draw", "envelope", "page", "peak_hz", "spectrogram"]
