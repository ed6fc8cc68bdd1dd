"""The verbs of work: `work` takes jobs, `job` lists, shows and ends them."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from clachan_lake.cli.options import CaFile, Json, moment, on_lake, print_items, print_table

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
@on_lake(read_only=True)
def list_(
    lake: Any,
    *,
    state: Annotated[str | None, typer.Option(help="only those that are so, as running")] = None,
    as_json: Json = False,
) -> None:
    """All jobs in the order of their submission."""
    columns = {
        "id": lambda one: one["id"],
        "name": lambda one: one["name"],
        "state": lambda one: one["state"],
        "submitted": lambda one: moment(one["submitted"]),
        "message": lambda one: one["message"],
    }
    print_table(list(lake.jobs.items_of(state)), as_json, columns)


@jobs.command()
@on_lake(read_only=True)
def show(
    lake: Any,
    job: Id,
    *,
    as_json: Json = False,
) -> None:
    """All that is known of a job."""
    found = lake.jobs[job].document
    print(json.dumps(found, indent=None if as_json else 2, ensure_ascii=as_json))


@jobs.command()
@on_lake(read_only=True)
def log(lake: Any, job: Id) -> None:
    """What it printed."""
    text = lake.jobs[job].log
    # a terminal is not to obey what a job prints
    print("".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text), end="")


@jobs.command()
@on_lake(read_only=False)
def cancel(
    lake: Any,
    job: Id,
    *,
    as_json: Json = False,
) -> None:
    """End a job that waits or runs."""
    item = {"id": job, "cancelled": lake.jobs[job].cancel()}
    print_items([item], as_json, _cancelled)


def _cancelled(item: dict[str, Any]) -> str:
    return f"{item['id']}: {'cancelled' if item['cancelled'] else 'it had ended before'}"


def add_to(app: typer.Typer) -> None:
    app.command()(work)
    app.add_typer(jobs, name="job")
