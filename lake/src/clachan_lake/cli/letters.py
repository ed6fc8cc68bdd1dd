"""The verbs `dead ...`: what no policy took, or no transformation could do."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clachan_lake.cli.options import (
    CaFile,
    Json,
    Target,
    TokenFile,
    is_remote,
    moment,
    on_lake,
    open_target,
    print_table,
    writing,
)

app = typer.Typer(no_args_is_help=True, help="Dead letters: what no policy took, or no transformation could do.")
Number = Annotated[int, typer.Argument(help="of the letter, as the list says it")]
Numbers = Annotated[list[int], typer.Argument(help="of letters, as the list says them")]


@app.command(name="list")
@on_lake(read_only=True)
def list_(lake: Any, as_json: Json = False) -> None:
    """All of them, the oldest first."""
    if is_remote(lake):
        items = list(lake.items("/dead"))
    else:
        items = [{"number": number, **lake.dead[number]} for number in lake.dead]
    columns = {
        "number": lambda one: one["number"],
        "came": lambda one: moment(one.get("created")),
        "of": lambda one: one.get("policy") or one.get("transformation"),
        "what": lambda one: one.get("tag") or one.get("source"),
        "bytes": lambda one: one["length"],
        "reason": lambda one: one["reason"],
    }
    print_table(items, as_json, columns)


@app.command()
@on_lake(read_only=True)
def show(
    lake: Any,
    number: Number,
    *,
    out: Annotated[Path | None, typer.Option(help="new file for its bytes")] = None,
    as_json: Json = False,
) -> None:
    """All about one; its bytes into a file."""
    found = {"number": number, **lake.dead[number]}
    if out:
        with out.open("xb") as file:
            file.write(lake.dead.read(number))
    print(json.dumps(found, indent=None if as_json else 2, ensure_ascii=as_json))


@app.command()
def replay(
    target: Target, numbers: Numbers, *, token_file: TokenFile = None, ca_file: CaFile = None, as_json: Json = False
) -> None:
    """Send them to their policy again, as it is now. What it refuses stays a dead letter."""
    with open_target(target, token_file, None, ca_file) as lake:
        if not is_remote(lake):
            raise ValueError(f"lake {target}: cannot replay, expected the URL of its server, which has the policies")
        for number in numbers:
            done = {"number": number, **lake.dead.replay(number)}
            print(json.dumps(done) if as_json else f"{number}: taken")


@app.command()
@on_lake(read_only=False)
def remove(lake: Any, numbers: Numbers) -> None:
    """Delete them with their bytes."""
    for number in numbers:
        with writing(lake):
            lake.dead.delete(number)
        print(f"{number}: removed")
