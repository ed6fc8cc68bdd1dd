"""`clachan request`: declare an instance."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clachan.cli.connection import complete_node, complete_software, connect
from clachan.cli.options import InstancePath, Json, Timeout, Wait, check_fqcn, check_name, check_path, parse_pairs
from clachan.cli.output import details, print_json

if TYPE_CHECKING:
    from clachan.client import Requested
    from clachan.contract.api import InstanceView

Software = Annotated[
    str | None,
    typer.Argument(
        metavar="SOFTWARE",
        help="namespace.collection.role; left out, the instance is changed only in what is given here.",
        autocompletion=complete_software,
        callback=check_fqcn,
    ),
]
Parameter = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter",
        "-p",
        metavar="KEY=VALUE",
        help="JSON where it parses as JSON, else text. KEY=@FILE: the file's text, so that secrets stay out of argv.",
    ),
]
Parameters = Annotated[
    Path | None, typer.Option(help="JSON file with an object of parameters; - is standard input. -p goes over it.")
]
Type = Annotated[str | None, typer.Option("--type", help="Entry point of the software; default main.")]
Digest = Annotated[
    str | None, typer.Option(help="Build of the software; default what the instance has, else the newest.")
]
State = Annotated[str | None, typer.Option(help="started or stopped; default started.")]
Node = Annotated[
    str | None, typer.Option(help="Place it on this node.", autocompletion=complete_node, callback=check_name)
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="KEY=VALUE", help="Only on nodes that have this label."),
]
Spread = Annotated[
    bool | None, typer.Option("--spread/--no-spread", help="Prefer nodes with the fewest of its siblings.")
]
Inside = Annotated[str | None, typer.Option(help="Place it in this vm instance.", callback=check_path)]
Rollback = Annotated[int | None, typer.Option(min=1, metavar="N", help="Start from the content of revision N.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check it and say what would be; change nothing.")]


def request(
    path: InstancePath,
    software: Software = None,
    *,
    parameter: Parameter = None,
    parameters: Parameters = None,
    type_: Type = None,
    digest: Digest = None,
    state: State = None,
    node: Node = None,
    label: Label = None,
    spread: Spread = None,
    inside: Inside = None,
    title: Annotated[str | None, typer.Option(help="Free text for people.")] = None,
    rollback: Rollback = None,
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = 300,
    as_json: Json = False,
) -> None:
    """Declare an instance, and wait until it is so. The same request again changes nothing.

    Example: clachan request home.web acme.web.site -p site_title='Our page' -p site_key=@key.txt --label zone=attic
    """
    from clachan.cli.declaration import build_declaration, current_instance, read_parameters, starting_content

    if software and rollback:
        raise typer.BadParameter("SOFTWARE with --rollback, expected one of the two")
    labels = parse_pairs(label or [], "label") or None
    given: dict[str, Any] = {
        "software": software,
        "digest": digest,
        "type": type_,
        "parameters": read_parameters(parameters, parameter or []),
        "placement": {"node": node, "labels": labels, "spread": spread, "inside": inside},
        "state": state,
        "title": title,
    }
    with connect() as client:
        before = current_instance(client, path)
        content = {} if software else starting_content(client, path, before, rollback, given["parameters"])
        # the title is no part of a revision: nobody loses it by not repeating it
        content["title"] = before.title if before else ""
        done = client.request(path, build_declaration(content, given), dry_run=dry_run)
        if dry_run:
            _show_dry_run(done, as_json)
            return
        view, status = done.instance, 0
        if wait:
            from clachan.cli.waiting import wait_for_instance

            status, last = wait_for_instance(client, path, timeout, before if done.made else None)
            view = last or view
    if as_json:
        print_json(view)
    else:
        show_outcome(view, "new" if done.made else "unchanged")
    raise typer.Exit(status)


def _show_dry_run(done: "Requested", as_json: bool) -> None:
    view = done.instance
    if as_json:
        print_json(view)
    elif done.made:
        where = f"on node {view.node}" if view.node else "not placed yet"
        print(f"{view.path}: would be revision {view.revision} of {view.software}, {where}")
    else:
        print(f"{view.path}: nothing would change, revision {view.revision} is so")


def show_outcome(view: "InstanceView", revision: str) -> None:
    """What the user of an instance wants to know after waiting for it; `revision`: what there is to say of it."""
    from clachan.cli.waiting import why

    details(
        [
            ("instance", view.path),
            ("revision", f"{view.revision} ({revision})"),
            ("state", view.observed.state),
            ("message", why(view) or None),
            ("node", view.node),
            *((key, value) for key, value in sorted(view.published.items())),
        ]
    )
