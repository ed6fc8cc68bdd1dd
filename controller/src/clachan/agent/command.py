"""`clachan agent ...`: what runs on a node, for the node."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from clachan.agent import certificate, start
from clachan.agent.layout import AgentError, Layout
from clachan.client import ClientError, home

app = typer.Typer(help="A node's side: converge, check, heal, account, report.", no_args_is_help=True)

Home = Annotated[
    Path | None, typer.Option("--home", help="CLACHAN_HOME; default: the environment's, else the usual place.")
]


def _layout(chosen: Path | None) -> Layout:
    return Layout(chosen.absolute() if chosen else home())


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"clachan agent: {error}", err=True)
    return typer.Exit(1)


@app.command()
def run(chosen: Home = None) -> None:
    """Run until SIGTERM; join first when node/join.json says how. Logs to standard output, one line per event."""
    try:
        start.run(_layout(chosen))
    except AgentError as error:
        raise _fail(error) from error


@app.command()
def join(
    chosen: Home = None,
    url: Annotated[str | None, typer.Option(help="The controller; default: as in node/config.json.")] = None,
    node: Annotated[str | None, typer.Option(help="The node's name; default: as in node/config.json.")] = None,
) -> None:
    """Join the platform with the join token on standard input. Repeating it is harmless."""
    layout = _layout(chosen)
    try:
        if url is None or node is None:
            config = layout.load_config()
            url, node = url or config.controller_url, node or config.node_name
        certificate.join(layout, url, node, sys.stdin.readline().strip())
    except (AgentError, ClientError) as error:
        raise _fail(error) from error
    typer.echo(f"node {node}: joined {url}")


@app.command()
def renew(chosen: Home = None) -> None:
    """Renew the certificate now; a running agent takes it up by itself."""
    from clachan.agent.link import Link

    layout = _layout(chosen)
    try:
        end = certificate.renew(layout, Link(layout, layout.load_config()).client())
    except (AgentError, ClientError, OSError) as error:
        raise _fail(error) from error
    typer.echo(f"certificate of {layout.load_identity().name}: valid until {end:%Y-%m-%d}")


@app.command(name="slots")
def prepare_slots(chosen: Home = None) -> None:
    """Make every slot's directories ready, with owners and modes; says which it changed."""
    from clachan.agent import slots

    layout = _layout(chosen)
    try:
        config = layout.load_config()
        for index in range(config.slots):
            directory = Path(config.slots_directory) / f"s{index:03d}"
            if slots.prepare(directory, config.user_of(index), config.mode == "root"):
                typer.echo(f"slot {directory.name}: prepared")
    except (AgentError, OSError, KeyError) as error:
        raise _fail(error) from error


@app.command(name="doctor")
def examine(
    chosen: Home = None, as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False
) -> None:
    """Look at what an agent needs and at what is here for virtual machines; exit status 1 when something is wrong."""
    from clachan.agent import doctor
    from clachan.contract.api import Findings

    layout, findings = _layout(chosen), []
    start.clean_environment()
    for finding in doctor.examine(layout):
        findings.append(finding)
        if not as_json:
            what = finding.name if finding.kind == "agent" else f"{finding.kind} {finding.name}".rstrip()
            expected = f", expected {finding.expected}" if finding.expected else ""
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {what}: {finding.found}{expected}")
    if as_json:
        typer.echo(Findings(findings=findings).model_dump_json(indent=2))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
