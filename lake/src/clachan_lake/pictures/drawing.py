"""The picture: for each recording its waveform over its spectrogram, as PNG."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from clachan_lake.interface import Array
from clachan_lake.pictures.signal import envelope, rate_of, spectrogram

INK, PAPER, FAINT, GRID = "#e8e6e3", "#101418", "#8b949e", "#262d34"
COLOURS = ("#5cc8ff", "#ffb454", "#9ee493", "#ff7b9c", "#c4a7ff", "#7fe3d4", "#f5e663", "#ff9e64")
RANGE_DB = 80
STYLE: dict[Any, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": GRID,
    "axes.axisbelow": True,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "savefig.facecolor": PAPER,
}


def draw(recordings: Sequence[Array], width: float = 12.0, dpi: int = 150) -> bytes:
    """A PNG of `width` inches: one recording large, several in two columns. Raises ValueError for an array that is no
    recording, ImportError without matplotlib."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = 1 if len(recordings) == 1 else 2
    rows = -(-len(recordings) // columns)
    with rc_context(STYLE):
        figure = Figure(
            figsize=(width, 6.4 if columns == 1 else 3.5 * rows),
            dpi=dpi,
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
        )
        FigureCanvasAgg(figure)
        parts = figure.subfigures(rows, columns, squeeze=False).reshape(-1)
        for part, recording in zip(parts, recordings, strict=False):
            _draw_one(part, recording)
        out = BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def describe(recording: Array) -> str:
    """Duration, rate, channels, format: for people."""
    rate = rate_of(recording)
    channels = recording.shape[1]
    kinds = {"u8": "8 bit", "s16": "16 bit", "s24": "24 bit", "s32": "32 bit", "f32": "float", "f64": "double"}
    kind = kinds.get(str(recording.attrs.get("sample_format")), str(recording.dtype))
    names = "mono" if channels == 1 else "stereo" if channels == 2 else f"{channels} channels"
    return f"{len(recording) / rate:.2f} s  ·  {rate / 1000:g} kHz  ·  {names}  ·  {kind}"


def _draw_one(figure: Any, recording: Array) -> None:
    wave, image = figure.subplots(2, 1, height_ratios=(1, 2.1), sharex=True)
    seconds = max(len(recording), 1) / rate_of(recording)
    wave.set_title(_shorten(recording.name), loc="left", fontsize=11, fontweight="bold", pad=8)
    wave.set_title(describe(recording), loc="right", fontsize=8.5, color=FAINT, pad=8)
    _draw_waveform(wave, recording, seconds)
    mesh = _draw_spectrogram(image, recording, seconds)
    bar = figure.colorbar(mesh, ax=image, pad=0.01, aspect=22)
    bar.set_label("level (dB, full scale = 0)", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    for axes in (wave, image):
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


def _draw_waveform(axes: Any, recording: Array, seconds: float) -> None:
    channels = recording.shape[1]
    shown = range(min(channels, len(COLOURS)))
    names = recording.attrs.get("channels") or [f"channel {n + 1}" for n in range(channels)]
    for number in shown:
        edges = envelope(recording, channel=number)
        if len(edges):
            time = np.linspace(0, seconds, len(edges))
            axes.fill_between(
                time, edges[:, 0], edges[:, 1], color=COLOURS[number], alpha=0.9 if channels == 1 else 0.6,
                linewidth=0.4, label=str(names[number])[:24],
            )  # fmt: skip
    if channels > 1:
        axes.legend(loc="upper right", fontsize=7, frameon=False, labelcolor=INK, ncols=4)
    axes.axhline(0, color=FAINT, linewidth=0.4, alpha=0.5)
    axes.set_ylim(-1.05, 1.05)
    axes.set_yticks([-1, 0, 1])
    axes.set_ylabel("amplitude\n(full scale = 1)", fontsize=8)
    axes.grid(axis="x", color=GRID, linewidth=0.6)


def _draw_spectrogram(axes: Any, recording: Array, seconds: float) -> Any:
    found = spectrogram(recording)
    top = float(np.ceil(found.level.max() / 10) * 10) if len(recording) else 0.0
    half = found.bin_hz / 2
    highest = (found.level.shape[0] - 1) * found.bin_hz
    image = axes.imshow(
        found.level,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, -half / 1000, (highest + half) / 1000),
        cmap="magma",
        vmin=max(top, -30.0) - RANGE_DB,
        vmax=max(top, -30.0),
        interpolation="bilinear",
    )
    axes.set_xlim(0, seconds)
    axes.set_ylim(0, highest / 1000)
    axes.set_xlabel("time (s)", fontsize=8)
    axes.set_ylabel("frequency (kHz)", fontsize=8)
    return image


def _shorten(name: str) -> str:
    return name if len(name) <= 60 else f"…{name[-59:]}"
