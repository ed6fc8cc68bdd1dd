"""The verbs that keep a lake: history, pack, backup, restore, verify."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from clachan_lake.cli.meter import Meter
from clachan_lake.cli.options import (
    POSTGRESQL,
    Blobs,
    Json,
    Name,
    Target,
    on_lake,
    open_target,
    print_items,
    print_table,
)

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def duration(text: str) -> float:
    """Seconds of a text such as 90m, 12h or 7d; raises BadParameter."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])", text.strip())
    if not found:
        raise typer.BadParameter(f"{text!r:.40}, expected a number with s, m, h, d or w, as in 90m, 12h or 7d")
    return float(found[1]) * SECONDS[found[2]]


Keep = Annotated[
    float,
    typer.Option(parser=duration, metavar="DURATION", help="how much history stays: 90m, 12h, 7d; 0s for none"),
]
Folder = Annotated[Path, typer.Argument(file_okay=False)]


def pack(
    target: Target,
    keep: Keep,
    *,
    merge: Annotated[bool, typer.Option("--merge", help="write scattered chunks of arrays together first")] = False,
    blobs: Blobs = None,
    as_json: Json = False,
) -> None:
    """Forget old history, and give its space back. What an open session reads stays; readers and writers go on."""
    with _local(target, blobs, "packed", read_only=False) as lake, Meter() as meter:
        from clachan_lake.keeping.packing import pack as run

        for name in list(lake.arrays) if merge else []:
            meter(f"merge {name}", 0, None)
            lake.arrays[name].merge()
        packed = run(lake, keep, meter)
    item = {
        "before_bytes": packed.before_bytes,
        "after_bytes": packed.after_bytes,
        "history_from": packed.until.isoformat(),
    }
    print_items([item], as_json, _packed)


def _packed(item: dict[str, Any]) -> str:
    before, after = _size(item["before_bytes"]), _size(item["after_bytes"])
    return f"{before} before, {after} after; history from {item['history_from']}"


def backup(target: Target, folder: Folder, blobs: Blobs = None, as_json: Json = False) -> None:
    """Copy the lake as it is now into a new folder, or what is new into an earlier backup. Writers go on."""
    with _local(target, blobs, "backed up") as lake, Meter() as meter:
        from clachan_lake.keeping.backup import backup as run

        print_items([_described(run(lake, folder, meter))], as_json, _copied)


def restore(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="the backup")],
    target: Annotated[str, typer.Argument(help="new or empty folder, or URL of a new PostgreSQL database")],
    blobs: Annotated[Path | None, typer.Option(help="new folder for the blobs of a PostgreSQL database")] = None,
    as_json: Json = False,
) -> None:
    """Make a lake of a backup. Every checksum is compared on the way."""
    with Meter() as meter:
        if target.startswith(POSTGRESQL):
            from clachan_lake.keeping.databases import restore_into

            if blobs is None:
                raise typer.BadParameter("missing, expected the folder for the blobs", param_hint="--blobs")
            made = restore_into(folder, target, blobs, meter)
        else:
            from clachan_lake.keeping.backup import restore as run

            made = run(folder, Path(target), meter)
    print_items([_described(made)], as_json, _copied)


def _described(made: Any) -> dict[str, Any]:
    return {
        "commit": made.tid.hex(),
        "time": made.time.isoformat(),
        "objects": made.objects,
        "bytes": made.bytes,
    }


def _copied(item: dict[str, Any]) -> str:
    return f"{item['objects']} records, {_size(item['bytes'])}, as of {item['time']} (commit {item['commit']})"


@on_lake(read_only=True)
def history(
    lake: Any,
    name: Name,
    *,
    limit: Annotated[int, typer.Option(min=1, help="how many at most")] = 1000,
    as_json: Json = False,
) -> None:
    """The commits that changed an array, newest first: from the last pack on."""
    revisions = lake.arrays[name].history(limit)
    items = [
        {"id": one.id, "time": one.time.isoformat(), "shape": list(one.shape), "note": one.note} for one in revisions
    ]
    columns = {
        "id": lambda one: one["id"],
        "time": lambda one: one["time"],
        "shape": lambda one: " x ".join(map(str, one["shape"])),
        "note": lambda one: one["note"],
    }
    print_table(items, as_json, columns)


def verify(target: Target, blobs: Blobs = None, as_json: Json = False) -> None:
    """Read every chunk and compare its checksum. Exits with 1 when one does not hold. Not over a URL."""
    faults = []
    with _local(target, blobs, "verified") as lake, Meter() as meter:
        from clachan_lake.keeping.verifying import verify as run

        for fault in run(lake, meter):
            faults.append({"fault": fault})
            if not as_json:
                print(fault)
    if as_json:
        print(json.dumps(faults))
    if faults:
        raise typer.Exit(1)
    if not as_json:
        print("every checksum holds")


def _local(target: str, blobs: Path | None, done: str, *, read_only: bool = True) -> Any:
    if target.startswith(("http://", "https://")):
        raise ValueError(f"lake {target}: cannot be {done} over HTTP, expected its folder or socket")
    return open_target(target, None, blobs, read_only=read_only)


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)


def add_to(app: typer.Typer) -> None:
    for verb in (history, pack, backup, restore, verify):
        app.command()(verb)
