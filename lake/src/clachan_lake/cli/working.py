"""The verbs of work: `work` takes jobs, `job` lists, shows and ends them."""

import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from clachan_lake.cli.options import Blobs, CaFile, Json, Target, TokenFile, open_target, print_items

Id = Annotated[str, typer.Argument(help="the job's id")]
jobs = typer.Typer(no_args_is_help=True, help="Jobs: work that was submitted.")


def work(
    url: Annotated[str, typer.Argument(envvar="CLACHAN_LAKE", help="URL of the lake")],
    *,
    token_file: Annotated[
        Path, typer.Option(envvar="CLACHAN_LAKE_TOKEN_FILE", exists=True, help="file with a token, scope work")
    ],
    directory: Annotated[Path | None, typer.Option(help="its own, for the jobs' files; by default a new one")] = None,
    processes: Annotated[int, typer.Option(min=1, help="so many jobs at a time")] = 1,
    memory_mib: Annotated[int, typer.Option(min=0, help="of data that a job may have in memory; 0: no limit")] = 0,
    seconds: Annotated[float, typer.Option(min=1, help="how long a job may take")] = 86400.0,
    python: Annotated[Path, typer.Option(help="runs the jobs: it has their packages")] = Path(sys.executable),
    ca_file: CaFile = None,
) -> None:
    """Take jobs of a lake and run them. Ends at SIGTERM, and gives back what is not done."""
    folder = (directory or Path(tempfile.mkdtemp(prefix="clachan-work-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "url": url,
        "token_file": str(token_file.absolute()),
        "directory": str(folder),
        "processes": processes,
        "memory_mib": memory_mib,
        "seconds": seconds,
        "python": str(python),
        "ca_file": str(ca_file.absolute()) if ca_file else None,
    }
    config = folder / "worker.json"
    config.write_text(json.dumps(settings))
    os.execv(sys.executable, [sys.executable, "-I", "-m", "clachan_lake.jobs.worker", str(config)])  # noqa: S606


@jobs.command(name="list")
def list_(
    target: Target,
    *,
    state: Annotated[str | None, typer.Option(help="only those that are so, as running")] = None,
    token_file: TokenFile = None,
    blobs: Blobs = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """All jobs in the order of their submission."""
    with open_target(target, token_file, blobs, ca_file, read_only=True) as lake:
        items = list(lake.jobs.items_of(state))
    if as_json:
        print(json.dumps(items))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "name", "state", "submitted", "message")
    for item in items:
        cells = (item["id"], item["name"], item["state"], _time(item["submitted"]), item["message"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    Console().print(table)


@jobs.command()
def show(
    target: Target,
    job: Id,
    *,
    token_file: TokenFile = None,
    blobs: Blobs = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """All that is known of a job."""
    with open_target(target, token_file, blobs, ca_file, read_only=True) as lake:
        found = lake.jobs[job].document
    print(json.dumps(found, indent=None if as_json else 2, ensure_ascii=as_json))


@jobs.command()
def log(target: Target, job: Id, *, token_file: TokenFile = None, blobs: Blobs = None, ca_file: CaFile = None) -> None:
    """What it printed."""
    with open_target(target, token_file, blobs, ca_file, read_only=True) as lake:
        text = lake.jobs[job].log
    # a terminal is not to obey what a job prints
    print("".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text), end="")


@jobs.command()
def cancel(
    target: Target,
    job: Id,
    *,
    token_file: TokenFile = None,
    blobs: Blobs = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """End a job that waits or runs."""
    with open_target(target, token_file, blobs, ca_file) as lake:
        item = {"id": job, "cancelled": lake.jobs[job].cancel()}
    print_items([item], as_json, _cancelled)


def _cancelled(item: dict[str, Any]) -> str:
    return f"{item['id']}: {'cancelled' if item['cancelled'] else 'it had ended before'}"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def add_to(app: typer.Typer) -> None:
    app.command()(work)
    app.add_typer(jobs, name="job")
