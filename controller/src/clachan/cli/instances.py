"""`clachan instance`: what was requested, how it is, what it says."""

import json
import sys
from typing import Annotated

import typer

from clachan.cli.connection import complete_software, connect
from clachan.cli.options import InstancePath, Json, OfTenant, Timeout, Wait, check_fqcn
from clachan.cli.output import clean, details, print_json, print_json_list, table

app = typer.Typer(no_args_is_help=True, help="Instances: list, look at, wait for, connect to, delete.")


@app.command("list")
def list_(
    tenant: OfTenant = None,
    state: Annotated[str | None, typer.Option(help="Only those observed in this state, e.g. failing.")] = None,
    software: Annotated[
        str | None, typer.Option(help="Only of this software.", autocompletion=complete_software, callback=check_fqcn)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the instances that you may see."""
    with connect() as client:
        found = client.instances(tenant=tenant, state=state, software=software)
        if as_json:
            print_json_list(found)
            return
        rows = []
        for each in found:
            failing = [name for name, promise in each.observed.promises.items() if not promise.ok]
            promises = f"{len(each.observed.promises) - len(failing)}/{len(each.observed.promises)}"
            message = each.observed.message or ", ".join(failing)
            rows.append((each.path, each.software, each.wanted, each.observed.state, promises, each.node, message))
        table(["PATH", "SOFTWARE", "WANTED", "STATE", "PROMISES", "NODE", "MESSAGE"], rows)


@app.command()
def show(
    path: InstancePath,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="With secrets; needs the permission, and is an event.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one instance: wanted and observed state, parameters, promises, published values."""
    with connect() as client:
        view = client.instance(path, reveal=reveal)
    if as_json:
        print_json(view)
        return
    slot = view.slot
    details(
        [
            ("path", view.path),
            ("title", view.title or None),
            ("software", f"{view.software} ({view.type}, {view.digest[:12]})"),
            ("revision", f"{view.revision} (converged: {view.observed.revision or 'none'})"),
            ("wanted", view.wanted),
            ("state", f"{view.observed.state} since {view.observed.since}"),
            ("message", view.observed.message or None),
            ("node", view.node),
            ("slot", f"{slot.name} {slot.user} {slot.addresses.ipv4} {slot.directory}" if slot else None),
            ("children", " ".join(view.children) or None),
        ]
    )
    if view.parameters:
        print()
        table(["PARAMETER", "VALUE"], sorted(view.parameters.items()))
    if view.observed.promises:
        print()
        table(
            ["PROMISE", "RESULT", "SINCE", "MESSAGE"],
            [
                (name, "ok" if promise.ok else "failing", promise.since, promise.message)
                for name, promise in sorted(view.observed.promises.items())
            ],
        )
    if view.published:
        print()
        table(["PUBLISHED", "VALUE"], sorted(view.published.items()))


@app.command()
def revisions(path: InstancePath, as_json: Json = False) -> None:
    """List the revisions of an instance; take one back with: clachan request PATH --rollback N"""
    with connect() as client:
        found = client.revisions(path)
        if as_json:
            print_json_list(found)
            return
        table(
            ["NUMBER", "CREATED", "AUTHOR", "SOFTWARE", "DIGEST", "TYPE", "STATE", "PARAMETERS"],
            [
                (r.number, r.created, r.author, r.software, r.digest[:12], r.type, r.state, r.parameters or None)
                for r in found
            ],
        )


@app.command()
def logs(
    path: InstancePath,
    service: Annotated[str | None, typer.Option(help="Only of this service.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10000, help="How many of the last lines.")] = 100,
    as_json: Json = False,
) -> None:
    """Show the last lines that the services of an instance wrote; its node is asked for them."""
    from clachan.contract.api import LogsView

    with connect() as client:
        found = client.logs(path, service, lines)
    if as_json:
        print_json(LogsView(logs=found))
        return
    terminal = sys.stdout.isatty()
    for name, text in sorted(found.items()):
        if len(found) > 1:
            print(f"==> {clean(name)} <==")
        print(clean(text, lines=True) if terminal else text, end="" if text.endswith("\n") else "\n")


@app.command("connect")
def connect_port(
    *,
    path: InstancePath,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 22 of a VM, else the first port of its slot.")
    ] = None,
    console: Annotated[bool, typer.Option("--console", help="The serial console of a VM; Ctrl-] leaves it.")] = False,
    vnc: Annotated[
        bool, typer.Option("--vnc", help="The screen of a VM; at a terminal with --listen 0, a free port.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT", help="Listen here, each connection one to the instance; 0: a free port."
        ),
    ] = None,
    open_to_others: Annotated[
        bool, typer.Option("--open-to-others", help="Let --listen be an address that other machines reach.")
    ] = False,
) -> None:
    """Connect standard input and output, or an address of this machine, to a port of an instance."""
    from clachan.cli import stream

    if (port is not None) + console + vnc > 1:
        raise typer.BadParameter("expected at most one of --port, --console and --vnc")
    wanted = "console" if console else "vnc" if vnc else port
    if listen is None and vnc and sys.stdin.isatty():
        listen = "0"
    if listen is not None:
        stream.listen(path, wanted, listen, others=open_to_others)
    raise typer.Exit(stream.converse(path) if console else stream.carry(path, wanted))


@app.command()
def host_key(path: InstancePath, as_json: Json = False) -> None:
    """Print the SSH host key of a VM as a line of known_hosts, as SSH's KnownHostsCommand."""
    from clachan.cli import stream

    shown = stream.instance(path)
    print(json.dumps(shown, indent=2) if as_json else stream.known_host(path, shown))


@app.command()
def wait(
    path: InstancePath,
    timeout: Timeout = 300,
    as_json: Json = False,
) -> None:
    """Wait until an instance is what was declared."""
    from clachan.cli.request import show_outcome
    from clachan.cli.waiting import wait_for_instance

    with connect() as client:
        client.instance(path)
        status, view = wait_for_instance(client, path, timeout)
    if as_json:
        print_json(view)
    elif view is not None:
        show_outcome(view, "wanted")
    raise typer.Exit(status)


@app.command()
def delete(
    path: InstancePath,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = True,
    timeout: Timeout = 300,
    as_json: Json = False,
) -> None:
    """Remove an instance and what it requested, with all their data."""
    from clachan.cli.waiting import wait_for_instance

    with connect() as client:
        client.instance(path)
        if not yes and sys.stdin.isatty():
            typer.confirm(f"Remove {path}, its children and their data?", abort=True, err=True)
        view = client.delete_instance(path)
        status = 0
        if wait and view is not None:
            status, view = wait_for_instance(client, path, timeout)
    if as_json:
        print_json(view)
    elif view is None:
        print(f"{path}: removed")
    else:
        print(f"{path}: wanted absent, now {view.observed.state}")
    raise typer.Exit(status)
