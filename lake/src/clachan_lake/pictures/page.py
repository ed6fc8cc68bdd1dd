"""The page: one HTML file with everything in it, pictures too; no script, nothing fetched."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from clachan_lake.interface import Array
from clachan_lake.pictures.drawing import describe, draw
from clachan_lake.pictures.signal import peak_hz, rate_of

STYLE = """
:root { color-scheme: dark; }
body { margin: 0 auto; max-width: 1180px; padding: 2.5rem 1.25rem 4rem; background: #101418; color: #e8e6e3;
       font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.1rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
p.lead, .facts { color: #8b949e; } section { margin-top: 2.75rem; }
.totals { display: flex; flex-wrap: wrap; gap: .75rem 2.25rem; margin: 1.5rem 0; padding: 0; list-style: none; }
.totals b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; color: #5cc8ff; }
img { width: 100%; height: auto; display: block; border-radius: 8px; margin-top: .75rem; }
table { border-collapse: collapse; width: 100%; margin-top: 1rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid #262d34; overflow-wrap: anywhere; }
th { color: #8b949e; font-weight: 500; width: 11rem; overflow-wrap: normal; }
.warn { color: #ffb454; } code { font-size: .85em; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, recordings: Sequence[Array], streams: Iterable[Mapping[str, Any]] = ()) -> str:
    """HTML about the recordings, and, from the streams' descriptions, about files that became none. All text is
    escaped. Raises as `draw` does."""
    described = list(streams)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        '<p class="lead">Computed from the arrays in the lake.</p>',
        _totals(recordings, described),
        *(_section(recording, _of(described, recording.name)) for recording in recordings),
        _others([(stream["name"], one["message"]) for stream in described for one in _failed(stream)]),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _totals(recordings: Sequence[Array], streams: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(len(recording) / rate_of(recording) for recording in recordings)
    figures = [
        (f"{len(recordings):,}", "recordings"),
        (f"{sum(recording.shape[0] for recording in recordings):,}", "samples a channel"),
        (f"{seconds:,.1f} s", "of sound"),
    ]
    if streams:
        figures.insert(1, (f"{sum(stream['size'] for stream in streams):,}", "bytes received"))
    return '<ul class="totals">' + "".join(f"<li><b>{value}</b>{label}</li>" for value, label in figures) + "</ul>"


def _section(recording: Array, stream: Mapping[str, Any] | None) -> str:
    picture = b64encode(draw([recording])).decode()
    rows = [
        ("shape and dtype", f"{recording.shape[0]:,} samples × {_channels(recording)}, {recording.dtype}"),
        ("channels", ", ".join(str(name) for name in recording.attrs.get("channels", []))),
        ("strongest frequency", f"{peak_hz(recording):,.1f} Hz"),
    ]
    if stream:
        rows += [("received", f"{stream['size']:,} bytes in {stream['chunks']:,} chunks")]
        rows += [("sha256", str(stream["sha256"]))] if stream["sha256"] else []
    warnings = "".join(f'<p class="warn">{escape(str(text))}</p>' for text in recording.attrs.get("warnings", []))
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return (
        f'<section><h2>{escape(recording.name)}</h2><div class="facts">{escape(describe(recording))}</div>{warnings}'
        f'<img alt="waveform and spectrogram of {escape(recording.name, quote=True)}" '
        f'src="data:image/png;base64,{picture}"><table>{table}</table></section>'
    )


def _channels(recording: Array) -> str:
    return "1 channel" if recording.shape[1] == 1 else f"{recording.shape[1]} channels"


def _failed(stream: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [one for one in stream["transformations"] if one["state"] == "failed"]


def _others(failed: Sequence[tuple[str, str]]) -> str:
    """The names of streams, and why they became no recording."""
    if not failed:
        return ""
    rows = "".join(
        f'<tr><td>{escape(str(name))}</td><td class="warn">{escape(str(message))}</td></tr>' for name, message in failed
    )
    return f"<section><h2>Files that became no recording</h2><table>{rows}</table></section>"


def _of(streams: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((stream for stream in streams if stream["name"] == name), None)
