"""`clachan usage`, `events`, `inventory`: what was counted, what happened, what is wanted."""

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from clachan.cli.connection import connect
from clachan.cli.options import Json, OfNode, OfPath, OfTenant, parse_duration
from clachan.cli.output import clean, print_json, print_json_line, print_json_list, table

if TYPE_CHECKING:
    from clachan.contract.api import EventView

FOLLOW_SECONDS = 1.0


def _moment(text: str | None) -> str | None:
    """A time of the day, in UTC, or how long ago."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def usage(
    *,
    tenant: OfTenant = None,
    path: OfPath = None,
    meter: Annotated[str | None, typer.Option(help="Only of this meter.")] = None,
    since: Annotated[
        str | None, typer.Option(help="From this time on: 2026-01-31, 2026-01-31T12:00, or how long ago: 7d, 12h.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before this time; the same forms.")] = None,
    as_json: Json = False,
) -> None:
    """Show the usage records: integer quantities of one meter, of one instance, in one UTC window."""
    query = {"tenant": tenant, "path": path, "meter": meter, "since": _moment(since), "until": _moment(until)}
    with connect() as client:
        found = client.usage(**query)
        if as_json:
            print_json_list(found)
            return
        table(
            ["PATH", "METER", "FROM", "TO", "QUANTITY", "NODE", "BILLED"],
            [
                (u.path, u.meter, u.window_start, u.window_end, u.quantity, u.node, "yes" if u.billable else "no")
                for u in found
            ],
        )


def events(
    *,
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    path: OfPath = None,
    node: OfNode = None,
    after: Annotated[int | None, typer.Option(min=0, help="Only those with a higher id.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with those that come; with --json one object per line.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what happened, oldest first."""
    with connect() as client:
        if not follow:
            found = client.events(kind=kind, path=path, node=node, after=after)
            if as_json:
                print_json_list(found)
            else:
                table(["ID", "AT", "KIND", "WHO", "MESSAGE"], [_row(event) for event in found])
            return
        while True:
            for event in client.events(kind=kind, path=path, node=node, after=after):
                after = event.id
                if as_json:
                    print_json_line(event)
                else:
                    print("  ".join(clean(cell) for cell in _row(event)), flush=True)
            time.sleep(FOLLOW_SECONDS)


def _row(event: "EventView") -> tuple[object, ...]:
    return event.id, event.at, event.kind, event.path or event.node or event.tenant or "-", event.message


def inventory(as_json: Json = False) -> None:
    """Show the inventory: hosts and groups, as Ansible gets them from the plugin clachan.platform.inventory."""
    from clachan.client.node import WrappedInventory

    with connect() as client:
        found = client.inventory()
    if as_json:
        print_json(WrappedInventory.model_validate({"clachan_inventory": found}))
        return
    for group, hosts in sorted(found.groupings.items()):
        print(clean(f"@{group}:"))
        for host in sorted(hosts):
            print(clean(f"  {host}"))
