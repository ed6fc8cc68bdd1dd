"""What the verbs share: how a lake is named and opened, and how results are printed."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clachan_lake.interface import Lake

Target = Annotated[str, typer.Argument(envvar="CLACHAN_LAKE", help="folder, socket or URL of the lake")]
Name = Annotated[str, typer.Argument(help="name of the stream or array")]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", envvar="CLACHAN_LAKE_TOKEN_FILE", help="file with the lake's token")
]
CaFile = Annotated[
    Path | None,
    typer.Option("--ca-file", envvar="CLACHAN_LAKE_CA_FILE", help="certificate of an https URL, or of its authority"),
]
Blobs = Annotated[Path | None, typer.Option(help="the lake's blob folder, for a socket that does not stand beside it")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
POSTGRESQL = ("postgresql://", "postgres://")
URLS = ("http://", "https://", *POSTGRESQL)


def open_target(
    target: str, token_file: Path | None, blobs: Path | None, ca_file: Path | None = None, *, read_only: bool = False
) -> Any:
    """The lake; raises ValueError when it is not there. A folder is opened alone, or with `read_only` beside the
    process that has it open."""
    from clachan_lake.opening import open_lake
    from clachan_lake.settings import read_token

    if not target.startswith(URLS) and not Path(target).exists():
        raise ValueError(f"lake {target}: not there, expected a folder, a socket or a URL")
    token = read_token(token_file) if token_file else None
    return open_lake(target, read_only=read_only, token=token, blobs=blobs, ca=ca_file)


def on_lake(*, read_only: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For verbs that work on one lake: what they take as their first parameter, `lake`, is opened for them, and who
    types the verb says which one by the argument and the options that all verbs share."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        def run(
            target: Target, token_file: TokenFile = None, blobs: Blobs = None, ca_file: CaFile = None, **given: Any
        ) -> None:
            with open_target(target, token_file, blobs, ca_file, read_only=read_only) as lake:
                verb(lake, **given)

        own = list(signature(verb, eval_str=True).parameters.values())[1:]
        target, *options = list(signature(run).parameters.values())[:-1]
        # the framework reads them: the lake first, what all share behind the verb's own
        shown = [target, *own, *options]
        run.__signature__ = Signature([one.replace(kind=Parameter.KEYWORD_ONLY) for one in shown])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in shown}
        run.__name__, run.__doc__ = verb.__name__, verb.__doc__
        return run

    return decorate


def is_remote(lake: "Lake") -> bool:
    from clachan_lake.remote import RemoteLake

    return isinstance(lake, RemoteLake)


@contextmanager
def writing(lake: "Lake") -> Iterator[None]:
    """One transaction; at a URL each call is one."""
    if is_remote(lake):
        yield
        return
    with lake.transaction():
        yield


def print_table(
    items: list[dict[str, Any]], as_json: bool, columns: Mapping[str, Callable[[dict[str, Any]], Any]]
) -> None:
    """JSON as it is; for people a table, in which names are text, never markup."""
    if as_json:
        print(json.dumps(items))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for item in items:
        table.add_row(*(Text("" if (cell := make(item)) is None else str(cell)) for make in columns.values()))
    Console().print(table)


def moment(milliseconds: int | None) -> str:
    """For people: a time in UTC."""
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def print_items(items: list[dict[str, Any]], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    if as_json:
        print(json.dumps(items))
        return
    for item in items:
        print(line(item))
