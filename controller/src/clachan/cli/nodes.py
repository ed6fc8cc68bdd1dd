"""`clachan node`: the machines, and how one joins."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clachan.cli.connection import complete_tenant, connect
from clachan.cli.errors import FAILED, CommandError
from clachan.cli.options import Json, NewName, NodeName, check_name, parse_duration, parse_pairs, validated
from clachan.cli.output import details, labels_text, print_json, print_json_list, table

app = typer.Typer(no_args_is_help=True, help="Nodes: list, join, examine, label, drain, revoke.")

Labels = Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="KEY= takes the label away.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the nodes."""
    with connect() as client:
        if as_json:
            print_json_list(client.nodes())
            return
        table(
            ["NAME", "STATE", "REACHED", "SLOTS", "MODE", "OWNER", "SEEN", "LABELS"],
            [
                (
                    n.name,
                    n.state,
                    "online" if n.online else "offline",
                    f"{n.slots_used}/{n.slots}",
                    n.mode,
                    n.owner,
                    n.seen,
                    labels_text(n.labels),
                )
                for n in client.nodes()
            ],
        )


@app.command()
def show(node: NodeName, as_json: Json = False) -> None:
    """Show one node."""
    with connect() as client:
        view = client.node(node)
    if as_json:
        print_json(view)
        return
    isolation = {"user": "none between its slots: it serves one tenant", "root": "a unix user for each slot"}
    details(
        [
            ("name", view.name),
            ("id", view.id),
            ("state", f"{view.state}, {'online' if view.online else 'offline'}"),
            ("seen", view.seen),
            ("owner", view.owner),
            ("vm", view.vm),
            ("labels", labels_text(view.labels)),
            ("slots", f"{view.slots_used} of {view.slots} used"),
            ("isolation", isolation.get(view.mode or "")),
            ("memory", f"{view.memory_mib} MiB"),
            ("cpu", f"{view.cpu_milli} milli"),
            ("addresses", f"{view.addresses.ipv4} {view.addresses.ipv6}"),
            ("ssh", view.addresses.reach),
            ("links", " ".join(view.addresses.links) or None),
            ("system", view.system),
            ("version", view.version),
            ("certificate", f"until {view.certificate_expires}" if view.certificate_expires else None),
        ]
    )


@app.command()
def doctor(node: NodeName, as_json: Json = False) -> None:
    """Compare what is on a node with what should be; its agent is asked. Exit status 1 when something is wrong."""
    from clachan.cli.waiting import patiently

    with connect() as client:
        found = patiently(f"node {node}", "looks at what is on it", lambda: client.examine_node(node))
    if as_json:
        print_json(found)
    else:
        rows = [
            (one.kind, one.name or None, "ok" if one.ok else "wrong", one.found, one.expected or None)
            for one in found.findings
        ]
        table(["KIND", "NAME", "RESULT", "FOUND", "EXPECTED"], rows)
    if not all(one.ok for one in found.findings):
        raise typer.Exit(FAILED)


@app.command()
def token(
    name: NewName,
    lasts: Annotated[str, typer.Option(metavar="DURATION", help="How long, at most 7d.")] = "1h",
    owner: Annotated[
        str | None, typer.Option(help="The tenant that owns it.", autocompletion=complete_tenant, callback=check_name)
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="A label it begins with.")
    ] = None,
    *,
    link: Annotated[
        list[str] | None, typer.Option("--link", metavar="ADDRESS", help="Where other nodes reach it; IPv4 and IPv6.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create the one-time token with which the machine NAME joins, and print it: it is shown this once."""
    from clachan.contract.api import JoinTokenDeclaration

    content = {
        "node": name,
        "owner": owner,
        "labels": parse_pairs(label or [], "label"),
        "links": link or [],
        "seconds": parse_duration(lasts),
    }
    with connect() as client:
        view = client.create_join_token(validated(JoinTokenDeclaration, content))
    if as_json:
        print_json(view)
        return
    details([("node", view.node), ("expires", view.expires), ("token", view.token)])
    print(f"\nOn that machine: clachan node join {client.url} --name {view.node}")


@app.command()
def tokens(as_json: Json = False) -> None:
    """List the join tokens; the tokens themselves are not kept."""
    with connect() as client:
        if as_json:
            print_json_list(client.join_tokens())
            return
        rows = [(t.id, t.node, t.owner, t.created, t.expires, "used" if t.used else None) for t in client.join_tokens()]
        table(["ID", "NODE", "OWNER", "CREATED", "EXPIRES", "USED"], rows)


@app.command("token-delete")
def token_delete(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The join token's id, not the token.")],
    as_json: Json = False,
) -> None:
    """Make a join token worthless at once."""
    with connect() as client:
        client.delete_join_token(identifier)
    if as_json:
        print_json(None)
    else:
        print(f"join token {identifier} deleted")


def _change(name: str, as_json: bool, **change: Any) -> None:
    from clachan.contract.api import NodeChange

    with connect() as client:
        view = client.change_node(name, validated(NodeChange, change))
    if as_json:
        print_json(view)
    else:
        links = " ".join(view.addresses.links) or None
        details([("node", view.name), ("state", view.state), ("labels", labels_text(view.labels)), ("links", links)])


@app.command()
def label(node: NodeName, labels: Labels, as_json: Json = False) -> None:
    """Set labels of a node; the others stay."""
    with connect() as client:
        merged = client.node(node).labels | parse_pairs(labels, "label")
    _change(node, as_json, labels={key: value for key, value in merged.items() if value})


@app.command()
def drain(node: NodeName, as_json: Json = False) -> None:
    """Place no further instance on a node; those that are there stay."""
    _change(node, as_json, state="drained")


@app.command()
def activate(node: NodeName, as_json: Json = False) -> None:
    """Take back a drain."""
    _change(node, as_json, state="active")


@app.command()
def reach(
    node: NodeName,
    address: Annotated[str, typer.Argument(help="Where your SSH reaches it, for pushes.")],
    as_json: Json = False,
) -> None:
    """Say where SSH reaches a node."""
    _change(node, as_json, reach=address)


@app.command()
def links(
    node: NodeName,
    addresses: Annotated[
        list[str] | None, typer.Argument(metavar="[ADDRESS]...", help="An IPv4 and an IPv6 address; none: take away.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where other nodes reach a node directly, for clusters that are on several."""
    _change(node, as_json, links=addresses or [])


@app.command()
def revoke(
    node: NodeName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Refuse a node's certificate from now on; it gets nothing any more and reports nothing."""
    import sys

    with connect() as client:
        client.node(node)
        if not yes and sys.stdin.isatty():
            typer.confirm(f"Revoke the node {node}?", abort=True, err=True)
        client.revoke_node(node)
        view = client.node(node)
    if as_json:
        print_json(view)
    else:
        print(f"node {view.name} {view.state}")


@app.command()
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="https://HOST[:PORT] of the controller.")],
    name: Annotated[str, typer.Option(help="Name of this node, for which the token is.", callback=check_name)],
    token_file: Annotated[
        Path | None, typer.Option(help="File with the join token; default: asked for, or standard input.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=4000, help="How many slots; default 10.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would be done; change nothing.")] = False,
) -> None:
    """Make this machine a node: runs the playbook clachan.platform.node here, as the user that you are."""
    from clachan.cli.join import join_here
    from clachan.cli.secret_input import read_secret
    from clachan.client import trusted_ca

    secret = read_secret("join token", token_file)
    trusted_ca(url, secret)
    status = join_here(url, name, secret, slots, check)
    if status:
        raise CommandError(f"playbook clachan.platform.node: exit status {status}, expected 0")
