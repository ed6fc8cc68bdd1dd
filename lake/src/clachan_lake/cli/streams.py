"""The verbs `stream ...`: make, describe, shorten and delete streams."""

from typing import Annotated, Any

import typer

from clachan_lake.cli.creating import read_attrs
from clachan_lake.cli.options import Json, on_lake, print_items, writing

app = typer.Typer(no_args_is_help=True, help="Streams: make, describe, shorten, delete.")
Name = Annotated[str, typer.Argument(help="name of the stream")]


@app.command(name="set")
@on_lake(read_only=False)
def set_(
    lake: Any,
    name: Name,
    *,
    policy: Annotated[str, typer.Option(help="whose data a new one takes")] = "raw",
    attr: Annotated[list[str] | None, typer.Option(help="attribute, NAME=JSON; may be repeated")] = None,
    remove_attr: Annotated[list[str] | None, typer.Option(help="attribute to remove; may be repeated")] = None,
    as_json: Json = False,
) -> None:
    """Make an empty stream, or set attributes of one that is there."""
    attrs = read_attrs(attr or [])
    with writing(lake):
        stream = lake.streams[name] if name in lake.streams else lake.streams.create(name, policy)
        stream.attrs.update(attrs)
        for key in remove_attr or []:
            stream.attrs.pop(key, None)
    described = lake.streams[name].describe()
    print_items([described], as_json, lambda one: f"{one['name']}: {one['size']} bytes, attributes {one['attrs']}")


@app.command()
@on_lake(read_only=False)
def truncate(
    lake: Any,
    name: Name,
    before: Annotated[int, typer.Argument(help="position; whole chunks in front of it are forgotten")],
) -> None:
    """Forget the beginning of a stream. Positions of what stays do not change."""
    forgotten = 0
    while True:
        with writing(lake):
            done = lake.streams[name].truncate(before)
        forgotten += done
        if not done:
            break
    start = lake.streams[name].start
    print(f"{name}: {forgotten} bytes forgotten, begins at {start}")


@app.command()
@on_lake(read_only=False)
def remove(lake: Any, name: Name) -> None:
    """Delete a stream with its data."""
    with writing(lake):
        del lake.streams[name]
    print(f"{name}: removed")
