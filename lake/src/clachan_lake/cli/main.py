"""The verbs of `clachan-lake`. A lake is given as a folder, its server's socket or its URL, or by CLACHAN_LAKE."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from clachan_lake import __version__
from clachan_lake.cli import creating, finding, keeping, letters, policies, streams, tokens, transformations, working
from clachan_lake.cli.meter import Meter
from clachan_lake.cli.options import CaFile, Json, Name, TokenFile, on_lake, print_items
from clachan_lake.errors import LakeError

app = typer.Typer(no_args_is_help=True, help="Streams and arrays: serve, ship, list, export, draw, keep.")


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
    """Streams and arrays: serve, ship, list, export, draw, keep."""


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
    *,
    policy: Annotated[str, typer.Option(help="ingestion policy")] = "raw",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """Send files once, each as a stream of its name. What the lake has already is not sent twice."""
    from clachan_lake.cli.sending import send_file

    sent = [send_file(url, token_file, policy, file, ca_file) for file in files]
    print_items(sent, as_json, lambda one: f"{one['name']}: {one['bytes']} bytes")


@app.command(name="list")
@on_lake(read_only=False)
def list_(lake: Any, as_json: Json = False) -> None:
    """The streams with the state of their transformation, and the arrays."""
    from clachan_lake.cli import showing

    items = showing.everything(lake)
    if as_json:
        print(json.dumps(items))
    else:
        showing.table(items)


@app.command()
@on_lake(read_only=False)
def show(
    lake: Any,
    name: Name,
    *,
    as_json: Json = False,
) -> None:
    """All about the stream and the array of a name."""
    from clachan_lake.cli import showing

    found = showing.one(lake, name)
    print(json.dumps(found, indent=None if as_json else 2, ensure_ascii=as_json))


@app.command()
@on_lake(read_only=True)
def export(
    lake: Any,
    name: Name,
    file: Annotated[Path, typer.Argument(help="*.npy, *.zarr: the array; *.wav: it as sound; else: the stream")],
) -> None:
    """Write a stream or an array to a file or folder, block by block."""
    from clachan_lake.cli.exporting import export as write

    with Meter() as meter:
        size = write(lake, name, file, lambda done, total: meter(name, done, total))
    print(f"{file}: {size} bytes")


@app.command()
@on_lake(read_only=False)
def picture(
    lake: Any,
    names: Annotated[list[str] | None, typer.Argument(help="recordings; by default all")] = None,
    *,
    png: Annotated[Path | None, typer.Option(help="write waveforms and spectrograms here")] = None,
    html: Annotated[Path | None, typer.Option(help="write a page with pictures and numbers here")] = None,
    title: Annotated[str, typer.Option(help="of the page")] = "Recordings",
    as_json: Json = False,
) -> None:
    """Draw recordings: waveform and spectrogram. Needs the extra `pictures`."""
    from clachan_lake.cli.showing import draw

    written = draw(lake, names, png, html, title)
    print_items(written, as_json, lambda one: f"{one['name']}: {one['samples']} samples, peak {one['peak_hz']:.1f} Hz")


finding.add_to(app)
creating.add_to(app)
keeping.add_to(app)
working.add_to(app)
for group, name in (
    (streams.app, "stream"),
    (policies.app, "policy"),
    (transformations.app, "transformation"),
    (letters.app, "dead"),
    (tokens.app, "token"),
):
    app.add_typer(group, name=name)
