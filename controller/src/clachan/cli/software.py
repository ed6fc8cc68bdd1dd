"""`clachan software`: what can be requested, and how a new one is made."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clachan.cli.connection import connect
from clachan.cli.errors import WRONG_USE, CommandError
from clachan.cli.options import Json, SoftwareName, check_fqcn
from clachan.cli.output import details, print_json, print_json_list, table

if TYPE_CHECKING:
    from clachan.contract.software import SoftwareView

app = typer.Typer(no_args_is_help=True, help="Software: Ansible roles that run one kind of service.")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the registered software, every build of it."""
    with connect() as client:
        if as_json:
            print_json_list(client.software())
            return
        table(
            ["SOFTWARE", "VERSION", "DIGEST", "TYPES", "REGISTERED", "TITLE"],
            [
                (s.software, s.version, s.digest[:12], " ".join(sorted(s.types)), s.registered, s.meta.title)
                for s in client.software()
            ],
        )


@app.command()
def show(
    software: SoftwareName,
    digest: Annotated[str | None, typer.Option(help="Which build; default the newest registered.")] = None,
    as_json: Json = False,
) -> None:
    """Show a software: its types, their parameters, what it publishes."""
    with connect() as client:
        view = client.software_view(software, digest)
    if as_json:
        print_json(view)
        return
    details(
        [
            ("software", view.software),
            ("title", view.meta.title),
            ("summary", view.meta.summary or None),
            ("version", f"{view.collection} {view.version}"),
            ("digest", view.digest),
            ("publishes", " ".join(view.meta.published) or None),
            ("capacity", f"{view.meta.capacity.memory_mib} MiB, {view.meta.capacity.cpu_milli} milli cpu"),
        ]
    )
    for name, schema in sorted(view.types.items()):
        print(f"\nParameters of type {name}:")
        table(["PARAMETER", "TYPE", "REQUIRED", "DEFAULT", "DESCRIPTION"], _parameter_rows(schema))


def _parameter_rows(schema: dict[str, object]) -> list[tuple[object, ...]]:
    properties, required = schema.get("properties"), schema.get("required")
    rows: list[tuple[object, ...]] = []
    for name, option in sorted(properties.items()) if isinstance(properties, dict) else []:
        described = option if isinstance(option, dict) else {}
        default = json.dumps(described["default"]) if "default" in described else None
        wanted = "yes" if isinstance(required, list) and name in required else None
        type_ = f"{_type_text(described) or 'any'}{', secret' if described.get('writeOnly') else ''}"
        rows.append((name, type_, wanted, default, described.get("description")))
    return rows


def _type_text(option: dict[str, object]) -> str | None:
    """The type of a JSON Schema; of the alternatives, all but the reference to another instance."""
    if isinstance(choices := option.get("enum"), list):
        return "one of " + ", ".join(json.dumps(value) for value in choices)
    if types := option.get("type"):
        return ", ".join(types) if isinstance(types, list) else str(types)
    alternatives = option.get("anyOf") or option.get("oneOf")
    found = (
        [_type_text(each) for each in alternatives if isinstance(each, dict)] if isinstance(alternatives, list) else []
    )
    return next((text for text in found if text), None)


@app.command()
def register(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR|FILE.tar.gz", help="A collection, or its artifact; a directory is built first."),
    ],
    as_json: Json = False,
) -> None:
    """Register the software of a collection; the same build again changes nothing."""
    if not source.exists():
        raise CommandError(f"collection {source}: does not exist, expected a directory or a .tar.gz", WRONG_USE)
    with connect() as client, tempfile.TemporaryDirectory(prefix="clachan-build-") as folder:
        artifact = _build(source, Path(folder)) if source.is_dir() else source
        views = client.register_software(artifact)
    if as_json:
        print_json_list(views)
    else:
        _show_registered(views)


def _show_registered(views: "list[SoftwareView]") -> None:
    table(
        ["SOFTWARE", "VERSION", "DIGEST", "TYPES"],
        [(v.software, v.version, v.digest, " ".join(v.types)) for v in views],
    )


def _build(collection: Path, folder: Path) -> Path:
    """The artifact of a collection's directory, built with ansible-galaxy."""
    from clachan.cli.programs import find_program

    if not (collection / "galaxy.yml").is_file():
        raise CommandError(f"collection {collection}: no galaxy.yml, expected the directory of a collection", WRONG_USE)
    command = [find_program("ansible-galaxy"), "collection", "build", str(collection), "--output-path", str(folder)]
    quiet = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "home")}
    built = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    found = list(folder.glob("*.tar.gz"))
    if built.returncode or len(found) != 1:
        reason = (built.stderr or built.stdout).strip().splitlines()
        raise CommandError(f"collection {collection}: {reason[-1] if reason else 'not built'}, expected it to build")
    return found[0]


@app.command()
def new(
    name: Annotated[
        str,
        typer.Argument(metavar="NAMESPACE.COLLECTION.NAME", help="The last is the role's name.", callback=check_fqcn),
    ],
    directory: Annotated[
        Path | None, typer.Option(help="Where; default ./COLLECTION. In an existing collection only the role is added.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="What people call it.")] = None,
    as_json: Json = False,
) -> None:
    """Write a collection with one software role: a small web service that lints, registers and converges."""
    from clachan.cli.scaffold import write_software

    where = directory or Path(name.split(".")[1])
    written = write_software(name, where, title)
    if as_json:
        print(json.dumps({"directory": str(where), "files": [str(path) for path in written]}, indent=2))
        return
    for path in written:
        print(where / path)
    print(f"\nNext: clachan software register {where}\n      clachan request TENANT.NAME {name}")
