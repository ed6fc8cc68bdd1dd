"""The verbs `stream ...`: make, describe, shorten and delete streams."""

from typing import Annotated

import typer

from clachan_lake.cli.creating import read_attrs
from clachan_lake.cli.options import Blobs, CaFile, Json, Target, TokenFile, open_target, print_items, writing

app = typer.Typer(no_args_is_help=True, help="Streams: make, describe, shorten, delete.")
Name = Annotated[str, typer.Argument(help="name of the stream")]


@app.command(name="set")
def set_(
    target: Target,
    name: Name,
    *,
    policy: Annotated[str, typer.Option(help="whose data a new one takes")] = "raw",
    attr: Annotated[list[str] | None, typer.Option(help="attribute, NAME=JSON; may be repeated")] = None,
    remove_attr: Annotated[list[str] | None, typer.Option(help="attribute to remove; may be repeated")] = None,
    token_file: TokenFile = None,
    blobs: Blobs = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """Make an empty stream, or set attributes of one that is there."""
    attrs = read_attrs(attr or [])
    with open_target(target, token_file, blobs, ca_file) as lake:
        with writing(lake):
            stream = lake.streams[name] if name in lake.streams else lake.streams.create(name, policy)
            stream.attrs.update(attrs)
            for key in remove_attr or []:
                stream.attrs.pop(key, None)
        described = lake.streams[name].describe()
        print_items([described], as_json, lambda one: f"{one['name']}: {one['size']} bytes, attributes {one['attrs']}")


@app.command()
def truncate(
    target: Target,
    name: Name,
    before: Annotated[int, typer.Argument(help="position; whole chunks in front of it are forgotten")],
    *,
    token_file: TokenFile = None,
    blobs: Blobs = None,
    ca_file: CaFile = None,
) -> None:
    """Forget the beginning of a stream. Positions of what stays do not change."""
    forgotten = 0
    with open_target(target, token_file, blobs, ca_file) as lake:
        while True:
            with writing(lake):
                done = lake.streams[name].truncate(before)
            forgotten += done
            if not done:
                break
        start = lake.streams[name].start
    print(f"{name}: {forgotten} bytes forgotten, begins at {start}")


@app.command()
def remove(
    target: Target, name: Name, *, token_file: TokenFile = None, blobs: Blobs = None, ca_file: CaFile = None
) -> None:
    """Delete a stream with its data."""
    with open_target(target, token_file, blobs, ca_file) as lake, writing(lake):
        del lake.streams[name]
    print(f"{name}: removed")
