"""The verb `find`: the catalogue."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clachan_lake.cli.options import (
    Json,
    is_remote,
    on_lake,
    print_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@on_lake(read_only=True)
def find(
    lake: Any,
    words: Annotated[
        list[str] | None, typer.Argument(help="in names, titles, descriptions, tags; all must be there")
    ] = None,
    *,
    kind: Annotated[str, typer.Option(help="stream or array")] = "",
    tag: Annotated[str, typer.Option(help="that it has")] = "",
    limit: Annotated[int, typer.Option(min=1, help="how many at most")] = 1000,
    as_json: Json = False,
) -> None:
    """The catalogue: streams and arrays by what is said of them."""
    items = list(islice(_found(lake, " ".join(words or []), kind, tag), limit))
    columns = {
        "name": lambda one: one["name"],
        "kind": lambda one: one["kind"],
        "title": lambda one: one.get("title"),
        "size": _size,
        "units": lambda one: one.get("units"),
        "tags": lambda one: ", ".join(one.get("tags") or []),
        "source": lambda one: (one.get("source") or {}).get("name"),
    }
    print_table(items, as_json, columns)


def _found(lake: Any, query: str, kind: str, tag: str) -> "Iterator[dict[str, Any]]":
    if is_remote(lake):
        found: Iterator[dict[str, Any]] = lake.items("/catalogue", query=query, kind=kind, tag=tag)
        return found
    from clachan_lake.catalogue.search import everything

    return everything(lake, query, kind, tag)


def _size(one: dict[str, Any]) -> str:
    from rich.filesize import decimal

    shape = " x ".join(map(str, one["shape"])) + f" of {one['dtype']}, " if one.get("shape") is not None else ""
    return f"{shape}{decimal(one.get('bytes', one.get('size', 0)))}"


def add_to(app: typer.Typer) -> None:
    app.command()(find)
    app.command(name="catalogue", hidden=True)(find)
