"""The root of the command: its groups in the order of the help, and how errors become one line and a status."""

import importlib
import sys
from typing import Annotated, NoReturn

import typer

import clachan
from clachan.cli import accounts, image, instances, lab, login, nodes, records, request, software, supply
from clachan.cli.errors import FAILED, INTERRUPTED, explain, leave, say
from clachan.cli.extras import agent, controller, lake

app = typer.Typer(
    name="clachan",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A handful of unlike Linux machines as one self-hosted Big Data platform.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong use, 3 still waiting at the time limit.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"clachan {clachan.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


def _mount_platform() -> None:
    """up, down, reset, status, demo: they drive the platform on this machine."""
    try:
        platform = importlib.import_module("clachan.cli.platform")
    except ModuleNotFoundError as error:
        if error.name != "clachan.cli.platform":
            raise
        return
    app.add_typer(platform.app)


_mount_platform()
app.command("login", rich_help_panel="Controller")(login.login)
app.command("request", rich_help_panel="Instances")(request.request)
app.add_typer(instances.app, name="instance", rich_help_panel="Instances")
app.add_typer(software.app, name="software", rich_help_panel="Instances")
app.add_typer(image.app, name="image", rich_help_panel="Instances")
app.add_typer(lab.app, name="lab", rich_help_panel="Instances")
app.command("supply", rich_help_panel="Instances")(supply.supply)
app.add_typer(nodes.app, name="node", rich_help_panel="Machines")
app.command("inventory", rich_help_panel="Machines")(records.inventory)
app.command("events", rich_help_panel="What happened")(records.events)
app.command("usage", rich_help_panel="What happened")(records.usage)
app.add_typer(accounts.account, name="account", rich_help_panel="Controller")
app.add_typer(accounts.tenant, name="tenant", rich_help_panel="Controller")
app.add_typer(accounts.user, name="user", rich_help_panel="Controller")
app.add_typer(accounts.token, name="token", rich_help_panel="Controller")
app.add_typer(controller, name="controller", rich_help_panel="Services")
app.add_typer(agent, name="agent", rich_help_panel="Services")
app.add_typer(lake, name="lake", rich_help_panel="Services")


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run one command line and end the process with its status."""
    for stream in (sys.stdout, sys.stderr):
        # a character that the terminal's encoding lacks is no reason to fail
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        typer.main.get_command(app).main(arguments, prog_name="clachan")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("interrupted")
        leave(end.code if isinstance(end.code, int) else FAILED)
    except Exception as error:
        status = explain(error)
        if status is None:
            raise
        leave(status)
    leave(0)
