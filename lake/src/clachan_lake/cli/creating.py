"""The verbs that make arrays: create and import."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clachan_lake.cli.meter import Meter
from clachan_lake.cli.options import Json, on_lake, print_items, writing

if TYPE_CHECKING:
    import numpy as np

    from clachan_lake.exchange.blocks import Tell
    from clachan_lake.interface import Array, Lake

NewName = Annotated[str, typer.Argument(help="name of the new array")]


@on_lake(read_only=False)
def create(
    lake: Any,
    name: NewName,
    *,
    shape: Annotated[str, typer.Option(help="lengths of the axes, like 0,2")],
    dtype: Annotated[str, typer.Option(help="numpy's name, like int16, or fields as JSON")],
    order: Annotated[str, typer.Option(help="C, or F: the last axis grows")] = "C",
    attr: Annotated[list[str] | None, typer.Option(help="attribute, NAME=JSON; may be repeated")] = None,
    units: Annotated[str | None, typer.Option(help="of the values")] = None,
    as_json: Json = False,
) -> None:
    """Make an array of zeros."""
    sizes, attrs = read_shape(shape), read_attrs(attr or [])
    kind = read_dtype(dtype)
    with writing(lake):
        made = lake.arrays.create(name, sizes, kind, attrs, order=order, units=units)
    print_items([_described(made)], as_json, _line)


@on_lake(read_only=False)
def import_(
    lake: Any,
    name: NewName,
    path: Annotated[Path, typer.Argument(exists=True, help="a .npy file, or the folder of a Zarr array")],
    *,
    as_json: Json = False,
) -> None:
    """Make an array of a file or folder, block by block. Nothing of it is kept when that fails."""
    if not path.is_dir() and path.suffix != ".npy":
        raise ValueError(f"file {path}: expected a .npy file, or a folder with a Zarr array")
    with Meter() as meter:
        with writing(lake):
            made = _read(lake, name, path, lambda done, total: meter(name, done, total))
        print_items([_described(made)], as_json, _line)


def _read(lake: "Lake", name: str, path: Path, tell: "Tell") -> "Array":
    from clachan_lake.exchange import npy, zarr

    return (
        zarr.from_zarr(lake.arrays, name, path, tell) if path.is_dir() else npy.from_npy(lake.arrays, name, path, tell)
    )


def _described(array: "Array") -> dict[str, Any]:
    return {"name": array.name, "shape": list(array.shape), "dtype": str(array.dtype), "bytes": array.nbytes}


def _line(item: dict[str, Any]) -> str:
    return f"{item['name']}: {' x '.join(map(str, item['shape'])) or 'one'} of {item['dtype']}, {item['bytes']} bytes"


def read_shape(text: str) -> tuple[int, ...]:
    """Of `0,2`; `()` is an array without axes."""
    try:
        sizes = tuple(int(part) for part in text.split(",")) if text.strip() != "()" else ()
    except ValueError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape: {text!r:.80}, expected whole numbers of at least 0 with commas between, like 0,2")
    return sizes


def read_dtype(text: str) -> "np.dtype[Any]":
    """Of a name like `int16` or `<f4`, or JSON: a list of fields, each with its name and dtype."""
    from clachan_lake.exchange import dtypes

    try:
        value = json.loads(text) if text.startswith("[") else text
    except ValueError as error:
        raise ValueError(f"option --dtype: {text!r:.80}, expected JSON ({error})") from None
    return dtypes.from_json(value, "option --dtype")


def read_attrs(texts: Iterable[str]) -> dict[str, Any]:
    """Of `rate=48000`, `names=["left", "right"]`: JSON behind the name; what is no JSON is text."""
    attrs: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ValueError(f"option --attr: {text!r:.80}, expected NAME=JSON")
        try:
            attrs[key] = json.loads(value)
        except ValueError:
            attrs[key] = value
    return attrs


def add_to(app: typer.Typer) -> None:
    app.command()(create)
    app.command(name="import")(import_)
