"""`clachan supply`: make a software present on a node, once for all its instances."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from clachan.cli.connection import complete_node, complete_software, connect
from clachan.cli.errors import DONE, FAILED, STILL_WAITING
from clachan.cli.options import Json, Timeout, Wait, check_fqcn, check_name, validated
from clachan.cli.output import details, print_json, print_json_list, table
from clachan.cli.progress import Progress

if TYPE_CHECKING:
    from clachan.client import Client
    from clachan.contract.api import SupplyView

PAUSE = 0.5


def supply(
    node: Annotated[
        str | None,
        typer.Argument(metavar="NODE", help="Name of the node.", autocompletion=complete_node, callback=check_name),
    ] = None,
    software: Annotated[
        str | None,
        typer.Argument(
            metavar="SOFTWARE", help="namespace.collection.role", autocompletion=complete_software, callback=check_fqcn
        ),
    ] = None,
    *,
    digest: Annotated[str | None, typer.Option(help="Which build; default the newest registered.")] = None,
    absent: Annotated[bool, typer.Option("--absent", help="Take it away from the node.")] = False,
    wait: Wait = True,
    timeout: Timeout = 300,
    as_json: Json = False,
) -> None:
    """Make SOFTWARE present on NODE; without both, list the supplies."""
    if node is None:
        _list(as_json)
        return
    if software is None:
        raise typer.BadParameter("SOFTWARE: missing, expected NODE and SOFTWARE, or neither")
    from clachan.contract.api import SupplyDeclaration

    with connect() as client:
        view = client.supply(
            node, software, validated(SupplyDeclaration, {"digest": digest, "state": "absent" if absent else "present"})
        )
        status, view = _wait(client, view, timeout) if wait else (DONE, view)
    if as_json:
        print_json(view)
    else:
        details(
            [
                ("node", view.node),
                ("software", view.software),
                ("digest", view.digest),
                ("wanted", view.state),
                ("state", view.observed),
                ("message", view.message or None),
            ]
        )
    raise typer.Exit(status)


def _list(as_json: bool) -> None:
    with connect() as client:
        found = client.supplies()
        if as_json:
            print_json_list(found)
            return
        table(
            ["NODE", "SOFTWARE", "DIGEST", "WANTED", "STATE", "MESSAGE"],
            [(s.node, s.software, s.digest[:12], s.state, s.observed, s.message) for s in found],
        )


def _wait(client: "Client", view: "SupplyView", seconds: float) -> "tuple[int, SupplyView]":
    from clachan.client import ApiError, UnreachableError

    with Progress(f"{view.software} on {view.node}") as progress:
        while view.observed != view.state:
            progress.say(view.observed, view.message)
            if view.observed == "failed":
                return FAILED, view
            if progress.elapsed() >= seconds:
                return STILL_WAITING, view
            time.sleep(PAUSE)
            try:
                view = client.supply_view(view.node, view.software)
            except UnreachableError as error:
                progress.say("unknown", str(error))
            except ApiError as error:
                if error.code != "not_found" or view.state != "absent":
                    raise
                view = view.model_copy(update={"observed": "absent"})
    return DONE, view
