"""The verbs `policy ...`: ingestion policies."""

import json
from typing import Annotated, Any

import typer

from clachan_lake.cli.creating import read_attrs
from clachan_lake.cli.keeping import duration
from clachan_lake.cli.options import (
    Json,
    is_remote,
    on_lake,
    print_items,
    print_table,
    writing,
)

app = typer.Typer(no_args_is_help=True, help="Ingestion policies: what becomes of the data of a tag.")
Policy = Annotated[str, typer.Argument(help="name of the policy")]
Duration = Annotated[float | None, typer.Option(parser=duration, metavar="DURATION")]


@app.command(name="list")
@on_lake(read_only=True)
def list_(lake: Any, as_json: Json = False) -> None:
    """All policies."""
    items = list(lake.items("/policies")) if is_remote(lake) else [*map(lake.policies.describe, lake.policies)]
    columns = {
        "policy": lambda one: one["policy"],
        "pattern": lambda one: one["pattern"],
        "into": lambda one: f"{one['into']} {one['name']}",
        "keeps": _kept,
        "title": lambda one: one["title"],
    }
    print_table(items, as_json, columns)


def _kept(one: dict[str, Any]) -> str:
    said = [f"{one['keep_seconds']} s"] if one["keep_seconds"] else []
    said += [f"{one['keep_bytes']} bytes"] if one["keep_bytes"] else []
    return ", ".join(said) or "all"


@app.command()
@on_lake(read_only=True)
def show(
    lake: Any,
    name: Policy,
    *,
    as_json: Json = False,
) -> None:
    """All about one."""
    found = lake.policies[name]
    print(json.dumps(found, indent=None if as_json else 2, ensure_ascii=as_json))


@app.command(name="set")
@on_lake(read_only=False)
def set_(
    lake: Any,
    name: Policy,
    *,
    title: Annotated[str | None, typer.Option(help="text for people")] = None,
    pattern: Annotated[str | None, typer.Option(help="regular expression (RE2) of a whole tag")] = None,
    into: Annotated[str | None, typer.Option(help="stream or array")] = None,
    into_name: Annotated[
        str | None, typer.Option("--name", help="of it; {tag} and {group} stand for the tag's parts")
    ] = None,
    attr: Annotated[list[str] | None, typer.Option(help="attribute of it, NAME=JSON; may be repeated")] = None,
    dtype: Annotated[str | None, typer.Option(help="of an array: numpy's name, or fields as JSON")] = None,
    row_shape: Annotated[str | None, typer.Option(help="of an array, like 3,2")] = None,
    keep: Duration = None,
    keep_bytes: Annotated[int | None, typer.Option(help="so many of the latest bytes stay")] = None,
    quota_bytes: Annotated[int | None, typer.Option(help="what all that it made may hold")] = None,
    ids: Duration = None,
    unmatched: Annotated[str | None, typer.Option(help="refuse or dead: what becomes of other tags")] = None,
    as_json: Json = False,
) -> None:
    """Make a policy, or give one that is there these values, and the others their defaults. What it has made stays."""
    keys: dict[str, Any] = {
        "title": title,
        "pattern": pattern,
        "into": into,
        "name": into_name,
        "attrs": read_attrs(attr) if attr else None,
        "dtype": read_json_or_text(dtype) if dtype else None,
        "row_shape": _shape(row_shape) if row_shape else None,
        "keep_seconds": None if keep is None else round(keep),
        "keep_bytes": keep_bytes,
        "quota_bytes": quota_bytes,
        "ids_seconds": None if ids is None else round(ids),
        "unmatched": unmatched,
    }
    with writing(lake):
        changed = lake.policies.declare(name, **{key: value for key, value in keys.items() if value is not None})
    print_items([{"policy": name, "changed": changed, **lake.policies[name]}], as_json, said)


def said(item: dict[str, Any]) -> str:
    name = item.get("policy") or item.get("transformation")
    return f"{name}: {'set' if item['changed'] else 'is so already'}"


def read_json_or_text(text: str) -> Any:
    """Of an option: what begins as a list or an object is JSON. Raises ValueError."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{text!r:.80}, expected JSON ({error})") from None


def _shape(text: str) -> list[int]:
    from clachan_lake.cli.creating import read_shape

    return list(read_shape(text))


@app.command()
@on_lake(read_only=False)
def remove(lake: Any, name: Policy) -> None:
    """Remove a policy; what it has made stays."""
    with writing(lake):
        lake.policies.delete(name)
    print(f"{name}: removed")
