"""The verbs `token ...`: tokens for the lake's server, which may do no more than their scopes."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from clachan_lake.cli.keeping import duration
from clachan_lake.cli.options import (
    Json,
    is_remote,
    moment,
    on_lake,
    print_items,
    print_table,
    writing,
)

app = typer.Typer(no_args_is_help=True, help="Tokens with scopes: who may read, write, send, look.")


@app.command()
@on_lake(read_only=False)
def create(
    lake: Any,
    scopes: Annotated[list[str], typer.Argument(help="read, write, compute, admin, ingest:POLICY, view:KIND/NAME")],
    *,
    out: Annotated[Path | None, typer.Option(help="new file for the token; else it is printed, this once")] = None,
    note: Annotated[str, typer.Option(help="what it is for")] = "",
    valid: Annotated[
        float | None, typer.Option(parser=duration, metavar="DURATION", help="how long; else until it is revoked")
    ] = None,
    same_content_seconds: Annotated[float, typer.Option(help="equal bytes within this time are a repeat")] = 0,
    as_json: Json = False,
) -> None:
    """Make a token. The lake keeps only its digest."""
    seconds = None if valid is None else max(1, round(valid))
    order = {"scopes": scopes, "seconds": seconds, "note": note, "same_content_seconds": same_content_seconds}
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600) if out else None
    try:
        with writing(lake):
            key, token = lake.tokens.create(**order)
    except BaseException:
        if out and file is not None:
            os.close(file)
            out.unlink()
        raise
    if file is not None:
        with os.fdopen(file, "w") as written:
            written.write(f"{token}\n")
        print_items([{"id": key, "file": str(out)}], as_json, lambda one: f"{one['id']}: in {one['file']}")
    else:
        print_items([{"id": key, "token": token}], as_json, lambda one: f"{one['id']}: {one['token']}")


@app.command(name="list")
@on_lake(read_only=True)
def list_(lake: Any, as_json: Json = False) -> None:
    """All tokens, also those that are revoked. None can be seen."""
    items = list(lake.items("/tokens")) if is_remote(lake) else [{"id": key, **lake.tokens[key]} for key in lake.tokens]
    columns = {
        "id": lambda one: one["id"],
        "scopes": lambda one: " ".join(one["scopes"]),
        "note": lambda one: one["note"],
        "expires": lambda one: moment(one["expires"]),
        "revoked": lambda one: moment(one["revoked"]),
    }
    print_table(items, as_json, columns)


@app.command()
@on_lake(read_only=False)
def revoke(
    lake: Any,
    key: Annotated[str, typer.Argument(metavar="ID", help="its id, as the list says it")],
) -> None:
    """Have a token refused from now on."""
    with writing(lake):
        lake.tokens.revoke(key)
    print(f"{key}: revoked")
