"""up, down, reset, status, demo: the whole platform on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clachan.cli.errors import FAILED

app = typer.Typer()
_PANEL = "This machine"
demos = typer.Typer(invoke_without_command=True)
app.add_typer(demos, name="demo", rich_help_panel=_PANEL)


def _home(given: Path | None) -> Path:
    """The home, which all that is started from here inherits."""
    import os

    from clachan.client.home import home

    if given is not None:
        os.environ["CLACHAN_HOME"] = str(given.expanduser().absolute())
    return home()


Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="Where the platform is; default CLACHAN_HOME, else /var/lib/clachan for root, ~/.local/share/clachan.",
    ),
]
Input = Annotated[
    Path | None,
    typer.Option(
        "--input", metavar="DIR", exists=True, file_okay=False, help="Take the WAV recordings of this folder."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")]


@app.command(rich_help_panel=_PANEL)
def up(
    recordings: Input = None,
    demo: Annotated[
        bool | None,
        typer.Option("--demo/--no-demo", help="Bring recordings through the lake; default where clachan-lake is."),
    ] = None,
    lab: Annotated[bool, typer.Option("--lab", help="And a JupyterLab beside the lake.")] = False,
    home: Home = None,
) -> None:
    """Bring up controller, node and lake on this machine; safe to repeat and to interrupt."""
    from clachan.cli import platform_demo, platform_playbook, platform_status

    directory = _home(home)
    if recordings is not None and demo is False:
        raise typer.BadParameter("--input and --no-demo, expected one of them")
    with platform_playbook.lock(directory, make=True):
        status = platform_playbook.run(directory, "standalone", *(("-e", "standalone_lab=true") if lab else ()))
        if status:
            raise typer.Exit(FAILED)
        wanted = platform_demo.possible() or recordings is not None if demo is None else demo
        outcome = platform_demo.run(directory, recordings) if wanted else None
        found = platform_status.look(directory)
    platform_status.show(found)
    if outcome is not None:
        platform_demo.show(outcome)
    platform_status.show_next_steps(found, outcome.page if outcome is not None else None)
    if outcome is not None and not outcome.recordings:
        raise typer.Exit(FAILED)


@demos.callback()
def demo(context: typer.Context, recordings: Input = None, home: Home = None, json: Json = False) -> None:
    """Bring recordings through the lake and draw them; what was sent is not sent again.

    Exit status 1 when one of the input's is no array. `demo wav` and `demo usage` run a notebook in a lab instead.
    """
    from clachan.cli import platform_demo, platform_playbook

    directory = _home(home)
    if context.invoked_subcommand is not None:
        if recordings is not None or json:
            raise typer.BadParameter(f"--input and --json, expected none before {context.invoked_subcommand}")
        return
    with platform_playbook.lock(directory):
        outcome = platform_demo.run(directory, recordings, quiet=json)
    if json:
        platform_demo.print_json(outcome)
    else:
        platform_demo.show(outcome)
    if outcome.failed:
        raise typer.Exit(FAILED)


@demos.command("wav")
def demo_wav(
    recording: Annotated[
        str | None, typer.Option(metavar="NAME", help="An array of a recording; default one that is made.")
    ] = None,
    seconds: Annotated[int, typer.Option(min=1, max=3600, help="How long the one is that is made.")] = 60,
    home: Home = None,
    json: Json = False,
) -> None:
    """From a synthesizer's recording to an array, its waveform, spectrum and spectrogram: a notebook, run in a lab."""
    _notebook("wav", {"recording": recording or "", "seconds": seconds}, home, json)


@demos.command("usage")
def demo_usage(
    cpu_hour: Annotated[float, typer.Option(min=0, help="Price of a busy CPU for an hour, in your currency.")] = 0.02,
    gib_hour: Annotated[float, typer.Option(min=0, help="Price of a GiB of memory for an hour.")] = 0.005,
    days: Annotated[int, typer.Option(min=1, max=3660, help="Look at the last ones.")] = 30,
    home: Home = None,
    json: Json = False,
) -> None:
    """What the instances of this platform consume, and what it costs a day: a notebook, run in a lab."""
    _notebook("usage", {"cpu_hour": cpu_hour, "gib_hour": gib_hour, "days": days}, home, json)


def _notebook(name: str, parameters: dict[str, Any], home: Path | None, json: bool) -> None:
    from clachan.cli import platform_notebooks, platform_playbook
    from clachan.cli.progress import Progress

    directory = _home(home)
    chosen = {"wav": platform_notebooks.WAV, "usage": platform_notebooks.USAGE}[name]
    with platform_playbook.lock(directory), Progress(f"demo {name}") as progress:
        outcome = platform_notebooks.run(directory, chosen, parameters, progress.say)
    (platform_notebooks.print_json if json else platform_notebooks.show)(outcome)


@app.command(rich_help_panel=_PANEL)
def status(home: Home = None, json: Json = False) -> None:
    """Say what runs where. Exit status 1 when the platform is not up."""
    from clachan.cli import platform_status

    found = platform_status.look(_home(home))
    if json:
        platform_status.print_json(found)
    else:
        platform_status.show(found)
    if not found.up:
        raise typer.Exit(FAILED)


@app.command(rich_help_panel=_PANEL)
def down(home: Home = None) -> None:
    """Stop everything that runs from here; all data stay."""
    from clachan.cli import platform_playbook, platform_stop

    directory = _home(home)
    with platform_playbook.lock(directory):
        stopped = platform_stop.stop(directory)
    print(f"clachan: {stopped} processes stopped, data kept in {directory}" if stopped else "clachan: nothing runs")


@app.command(rich_help_panel=_PANEL)
def reset(home: Home = None, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Stop everything and remove all that `up` made: processes, users, data."""
    from clachan.cli import platform_playbook, platform_reset

    directory = _home(home)
    if not platform_reset.check(directory):
        print(f"clachan: nothing to remove, {directory} does not exist")
        return
    if not yes:
        typer.confirm(f"Remove {directory} with all data, and its processes and users?", abort=True, err=True)
    with platform_playbook.lock(directory):
        platform_reset.remove(directory)
    print(f"clachan: {directory} removed")


def register(into: typer.Typer) -> None:
    """Add the verbs to another command."""
    into.add_typer(app)
