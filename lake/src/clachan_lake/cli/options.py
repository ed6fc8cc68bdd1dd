"""What the verbs share: how a lake is named and opened, and how results are printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Target = Annotated[str, typer.Argument(envvar="CLACHAN_LAKE", help="folder, socket or URL of the lake")]
Name = Annotated[str, typer.Argument(help="name of the stream or array")]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", envvar="CLACHAN_LAKE_TOKEN_FILE", help="file with the lake's token")
]
Blobs = Annotated[Path | None, typer.Option(help="the lake's blob folder, for a socket that does not stand beside it")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
POSTGRESQL = ("postgresql://", "postgres://")
URLS = ("http://", "https://", *POSTGRESQL)


def open_target(target: str, token_file: Path | None, blobs: Path | None, *, read_only: bool = False) -> Any:
    """The lake; raises ValueError when it is not there. A folder is opened alone, or with `read_only` beside the
    process that has it open."""
    from clachan_lake.opening import open_lake
    from clachan_lake.settings import read_token

    if not target.startswith(URLS) and not Path(target).exists():
        raise ValueError(f"lake {target}: not there, expected a folder, a socket or a URL")
    token = read_token(token_file) if token_file else None
    return open_lake(target, read_only=read_only, token=token, blobs=blobs)


def print_items(items: list[dict[str, Any]], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    if as_json:
        print(json.dumps(items))
        return
    for item in items:
        print(line(item))
