"""The verbs of `clachan-lake`. A lake is given as a folder, its server's socket or its URL, or by CLACHAN_LAKE."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from clachan_lake import __version__
from clachan_lake.errors import LakeError

app = typer.Typer(no_args_is_help=True, help="Streams and arrays: serve, ship, list, export, draw, verify.")

Target = Annotated[str, typer.Argument(envvar="CLACHAN_LAKE", help="folder, socket or URL of the lake")]
Name = Annotated[str, typer.Argument(help="name of the stream or array")]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", envvar="CLACHAN_LAKE_TOKEN_FILE", help="file with the lake's token")
]
Blobs = Annotated[Path | None, typer.Option(help="the lake's blob folder, for a socket that does not stand beside it")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def main() -> None:
    """Exit status: 0 done, 1 failed, 2 wrong use."""
    try:
        app()
    except (LakeError, OSError, ValueError, ImportError) as error:
        print(f"clachan-lake: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _wanted: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """Streams and arrays: serve, ship, list, export, draw, verify."""


@app.command()
def serve(config: Annotated[Path, typer.Argument(help="JSON: see docs/lake.md")]) -> None:
    """Own a lake: serve it over a unix socket and HTTP, ingest, transform. Ends at SIGTERM."""
    os.execv(sys.executable, [sys.executable, "-I", "-m", "clachan_lake.serve", str(config)])  # noqa: S606 - small process


@app.command()
def forward(config: Annotated[Path, typer.Argument(help="JSON: see docs/lake.md")]) -> None:
    """Ship the files of a directory to a lake, and go on with what changes. Ends at SIGTERM."""
    os.execv(sys.executable, [sys.executable, "-I", "-m", "clachan_lake.forward", str(config)])  # noqa: S606


@app.command()
def ingest(
    url: Annotated[str, typer.Argument(envvar="CLACHAN_LAKE", help="URL of the lake")],
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    policy: Annotated[str, typer.Option(help="ingestion policy")] = "raw",
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Send files once, each as a stream of its name. What the lake has already is not sent twice."""
    from clachan_lake.cli.sending import send_file

    sent = [send_file(url, token_file, policy, file) for file in files]
    _show(sent, as_json, lambda one: f"{one['name']}: {one['bytes']} bytes")


@app.command(name="list")
def list_(target: Target, token_file: TokenFile = None, blobs: Blobs = None, as_json: Json = False) -> None:
    """The streams with the state of their transformation, and the arrays."""
    from clachan_lake.cli import showing

    with _open(target, token_file, blobs) as lake:
        items = showing.everything(lake)
        if as_json:
            print(json.dumps(items))
        else:
            showing.table(items)


@app.command()
def show(target: Target, name: Name, token_file: TokenFile = None, blobs: Blobs = None, as_json: Json = False) -> None:
    """All about the stream and the array of a name."""
    from clachan_lake.cli import showing

    with _open(target, token_file, blobs) as lake:
        found = showing.one(lake, name)
        print(json.dumps(found, indent=None if as_json else 2, ensure_ascii=as_json))


@app.command()
def export(
    target: Target,
    name: Name,
    file: Annotated[Path, typer.Argument(help="ends in .npy: the array; in .wav: it as sound; else: the stream")],
    token_file: TokenFile = None,
    blobs: Blobs = None,
) -> None:
    """Write a stream or an array to a file, block by block."""
    from clachan_lake.cli.exporting import export as write

    with _open(target, token_file, blobs) as lake:
        print(f"{file}: {write(lake, name, file)} bytes")


@app.command()
def picture(
    target: Target,
    names: Annotated[list[str] | None, typer.Argument(help="recordings; by default all")] = None,
    *,
    png: Annotated[Path | None, typer.Option(help="write waveforms and spectrograms here")] = None,
    html: Annotated[Path | None, typer.Option(help="write a page with pictures and numbers here")] = None,
    title: Annotated[str, typer.Option(help="of the page")] = "Recordings",
    token_file: TokenFile = None,
    blobs: Blobs = None,
    as_json: Json = False,
) -> None:
    """Draw recordings: waveform and spectrogram. Needs the extra `pictures`."""
    from clachan_lake.cli.showing import draw

    with _open(target, token_file, blobs) as lake:
        written = draw(lake, names, png, html, title)
        _show(written, as_json, lambda one: f"{one['name']}: {one['samples']} samples, peak {one['peak_hz']:.1f} Hz")


@app.command()
def verify(target: Target, blobs: Blobs = None, as_json: Json = False) -> None:
    """Read every chunk and compare its checksum. Exits with 1 when one does not hold. Not over a URL."""
    from clachan_lake.cli.showing import verify as find

    with _open(target, None, blobs) as lake:
        faults = find(lake)
        _show([{"fault": fault} for fault in faults], as_json, lambda one: str(one["fault"]))
        if faults:
            raise typer.Exit(1)
        if not as_json:
            print("every checksum holds")


def _open(target: str, token_file: Path | None, blobs: Path | None) -> Any:
    from clachan_lake.opening import open_lake
    from clachan_lake.settings import read_token

    if not target.startswith(("http://", "https://")) and not Path(target).exists():
        raise ValueError(f"lake {target}: not there, expected a folder, a socket or a URL")
    return open_lake(target, token=read_token(token_file) if token_file else None, blobs=blobs)


def _show(items: list[dict[str, Any]], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    if as_json:
        print(json.dumps(items))
        return
    for item in items:
        print(line(item))
