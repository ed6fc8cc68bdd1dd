"""The verbs `transformation ...`: functions that run on what comes in, how far they are, and what troubles them."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clachan_lake.cli.keeping import duration
from clachan_lake.cli.meter import Meter
from clachan_lake.cli.options import (
    Json,
    is_remote,
    on_lake,
    print_items,
    print_table,
    writing,
)
from clachan_lake.cli.policies import read_json_or_text, said

if TYPE_CHECKING:
    from clachan_lake.interface import Lake

app = typer.Typer(no_args_is_help=True, help="Transformations: functions that run on what comes in.")
Name = Annotated[str, typer.Argument(help="name of the transformation")]
Source = Annotated[str | None, typer.Option(help="only for this stream or array")]
Wait = Annotated[
    float | None,
    typer.Option(parser=duration, metavar="DURATION", help="wait until it has caught up, at most so long"),
]
LOOK_SECONDS, WAIT_SECONDS = 0.5, 60.0
SOURCES = 1000


@app.command(name="list")
@on_lake(read_only=True)
def list_(lake: Any, as_json: Json = False) -> None:
    """All transformations: how far they are behind, and what failed."""
    if is_remote(lake):
        items = list(lake.items("/transformations"))
    else:
        items = [lake.transformations.describe(name) for name in lake.transformations]
    columns = {
        "transformation": lambda one: one["transformation"],
        "function": lambda one: one["function"] or "code",
        "on": lambda one: one["on"],
        "output": lambda one: one["output"],
        "state": _state,
        "sources": lambda one: one["sources"],
        "lag": lambda one: f"{one['lag_bytes']} bytes, {one['lag_seconds']:.0f} s" if one["lag_bytes"] else "",
        "dead": lambda one: one["dead"] or "",
    }
    print_table(items, as_json, columns)


def _state(one: dict[str, Any]) -> str:
    if one["paused"]:
        return "paused"
    return f"{one['troubled']} in trouble" if one["troubled"] else "behind" if one["lag_bytes"] else "caught up"


@app.command()
@on_lake(read_only=True)
def show(
    lake: Any,
    name: Name,
    *,
    as_json: Json = False,
) -> None:
    """One of them, and how far it is with each source."""
    described = lake.transformations.describe(name)
    described["positions"] = _positions(lake, name)
    if as_json:
        print(json.dumps(described))
        return
    print(json.dumps({key: it for key, it in described.items() if key != "positions"}, indent=2, ensure_ascii=False))
    columns = {
        "source": lambda one: f"{one['kind']} {one['source']}",
        "state": lambda one: one["state"],
        "done": lambda one: f"{one['position']} of {one['size']}",
        "lag": lambda one: f"{one['lag_bytes']} bytes, {one['lag_seconds']:.0f} s" if one["lag_bytes"] else "",
        "output": lambda one: one["output"],
        "what": lambda one: "; ".join(filter(None, [one["message"], *one["warnings"]])),
    }
    print_table(described["positions"], False, columns)


def _positions(lake: "Lake", name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < SOURCES:
        after = f"{found[-1]['kind']}/{found[-1]['source']}" if found else ""
        page = lake.transformations.positions(name, after)
        if not page:
            break
        found += page
    return found


@app.command(name="set")
@on_lake(read_only=False)
def set_(
    lake: Any,
    name: Name,
    *,
    function: Annotated[
        str | None, typer.Option(help="wav, csv, jsonl, msgpack, minmax or package.module:name")
    ] = None,
    code: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Python file with `transform`")] = None,
    kind: Annotated[str, typer.Option(help="stream or array: what it reads")] = "stream",
    policy: Annotated[str | None, typer.Option(help="of the streams that it reads")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="regular expression (RE2) of the whole name of what it reads")
    ] = None,
    output: Annotated[str | None, typer.Option(help="name of what it makes; {name} is the source's")] = None,
    on: Annotated[str | None, typer.Option(help="chunk or end")] = None,
    options: Annotated[str | None, typer.Option(help="of the function, as JSON, or @FILE")] = None,
    begin: Annotated[str | None, typer.Option("--from", help="start or now")] = None,
    attempts: Annotated[int | None, typer.Option(help="before a chunk is a dead letter")] = None,
    timeout_seconds: Annotated[float | None, typer.Option(help="of one call")] = None,
    scheduler: Annotated[str | None, typer.Option(help="tcp://HOST:PORT of a Dask cluster")] = None,
    paused: Annotated[bool | None, typer.Option("--paused/--running")] = None,
    as_json: Json = False,
) -> None:
    """Make a transformation, or give one that is there these values, and the others their defaults."""
    keys: dict[str, Any] = {
        "function": function,
        "code": code.read_text() if code else None,
        "source": {"kind": kind, "policy": policy, "pattern": pattern},
        "output": output,
        "on": on,
        "options": _options(options) if options else None,
        "from": begin,
        "attempts": attempts,
        "timeout_seconds": timeout_seconds,
        "scheduler": scheduler,
        "paused": paused,
    }
    with writing(lake):
        changed = lake.transformations.declare(name, **{key: value for key, value in keys.items() if value is not None})
    print_items([{"transformation": name, "changed": changed, **lake.transformations[name]}], as_json, said)


def _options(text: str) -> Any:
    found = read_json_or_text(Path(text[1:]).read_text() if text.startswith("@") else text)
    if not isinstance(found, dict):
        raise ValueError(f"option --options: {text!r:.80}, expected a JSON object, or @FILE with one")
    return found


@app.command()
@on_lake(read_only=False)
def remove(lake: Any, name: Name) -> None:
    """Remove a transformation; what it has made stays."""
    with writing(lake):
        lake.transformations.delete(name)
    print(f"{name}: removed")


@app.command()
@on_lake(read_only=False)
def pause(lake: Any, name: Name) -> None:
    """Let it rest; what comes in waits."""
    with writing(lake):
        changed = lake.transformations.pause(name)
    print(f"{name}: {'paused' if changed else 'paused already'}")


@app.command()
@on_lake(read_only=False)
def resume(
    lake: Any,
    name: Name,
    *,
    wait: Wait = None,
) -> None:
    """Let it go on from where it was."""
    with writing(lake):
        changed = lake.transformations.resume(name)
    _caught_up(lake, name, wait)
    print(f"{name}: {'runs' if changed else 'ran already'}")


@app.command()
@on_lake(read_only=False)
def retry(
    lake: Any,
    name: Name,
    *,
    source: Source = None,
    wait: Wait = None,
) -> None:
    """Try at once what failed."""
    with writing(lake):
        count = lake.transformations.retry(name, source)
    _caught_up(lake, name, wait)
    print(f"{name}: {count} sources tried again")


@app.command()
@on_lake(read_only=False)
def backfill(
    lake: Any,
    name: Name,
    *,
    source: Source = None,
    wait: Wait = None,
) -> None:
    """Make what it has made anew, from the start of its sources."""
    with writing(lake):
        count = lake.transformations.backfill(name, source)
    _caught_up(lake, name, wait)
    print(f"{name}: {count} sources from their start")


@app.command()
@on_lake(read_only=True)
def wait(
    lake: Any,
    name: Name,
    *,
    timeout: Annotated[
        float | None, typer.Option(parser=duration, metavar="DURATION", help="at most so long; by default a minute")
    ] = None,
) -> None:
    """Return when it has caught up with all of its sources. Exit status 1: it has not in time, or does not go on."""
    _caught_up(lake, name, WAIT_SECONDS if timeout is None else timeout)
    print(f"{name}: caught up")


def _caught_up(lake: "Lake", name: str, wait: float | None) -> None:
    """Returns when nothing is left to do; raises TimeoutError, or ValueError for what does not go on by itself."""
    if wait is None:
        return
    end = time.monotonic() + wait
    with Meter() as meter:
        while left := _left(lake, name):
            done, size = sum(one["position"] for one in left), sum(one["size"] for one in left)
            meter(name, done, size)
            if failed := [one for one in left if one["state"] in {"failed", "paused"}]:
                first = failed[0]
                raise ValueError(
                    f"transformation {name}, {first['kind']} {first['source']}: {first['state']}, expected it to run: "
                    f"{first['message']}"
                )
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"transformation {name}: {len(left)} sources not done after {wait:.0f} s, expected them to be"
                )
            time.sleep(LOOK_SECONDS)
            lake.refresh()


def _left(lake: "Lake", name: str) -> list[dict[str, Any]]:
    return [one for one in _positions(lake, name) if one["lag_bytes"]]
