"""`clachan image`: bootable disks, built from recipes on this machine, kept by the controller."""

import json
import re
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clachan.cli.connection import complete_image
from clachan.cli.errors import FAILED, WRONG_USE, CommandError
from clachan.cli.options import Json
from clachan.cli.output import clean, details, print_json, print_json_list, table

if TYPE_CHECKING:
    from clachan.client import Client
    from clachan.contract.image import Manifest


def _check_name(value: str) -> str:
    from clachan.contract import image

    if re.fullmatch(image.NAME, value) is None:
        raise typer.BadParameter(f"image {value!r}, expected {image.NAME}")
    return value


app = typer.Typer(no_args_is_help=True, help="Images: bootable disks, built from recipes.")


class Builder(StrEnum):
    auto = "auto"
    bootstrap = "bootstrap"
    packer = "packer"


class Format(StrEnum):
    raw = "raw"
    qcow2 = "qcow2"
    vmdk = "vmdk"
    vdi = "vdi"


Wanted = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="A name, which means the newest of that name, or the first digits of a sha256.",
        autocompletion=complete_image,
    ),
]
Push = Annotated[bool, typer.Option("--push/--no-push", help="Send it to the controller, when one is configured.")]
Local = Annotated[bool, typer.Option("--local", help="Only this machine's store; ask no controller.")]


@app.command()
def build(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE.yml",
            exists=True,
            dir_okay=False,
            help="Its name, and the options of the module clachan.platform.image's recipe.",
        ),
    ],
    builder: Annotated[
        Builder, typer.Option(help="auto: bootstrap where it works, which boots nothing, else packer.")
    ] = Builder.auto,
    push: Push = True,
    as_json: Json = False,
) -> None:
    """Build an image from a recipe; an unchanged recipe is not built again."""
    variables = {"CLACHAN_IMAGE_RECIPE": str(recipe.resolve()), "CLACHAN_IMAGE_BUILDER": builder.value}
    _make(variables, push=push, as_json=as_json)


@app.command("import")
def import_(
    disk: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A disk, qcow2 or raw, to boot from.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the image is called.", callback=_check_name)],
    push: Push = True,
    as_json: Json = False,
) -> None:
    """Take in a disk of your own, after inspection: one that stands alone, of a bearable size."""
    variables = {"CLACHAN_IMAGE_SOURCE": str(disk.resolve()), "CLACHAN_IMAGE_NAME": name}
    _make(variables, push=push, as_json=as_json)


def _make(variables: dict[str, str], *, push: bool, as_json: bool) -> None:
    from clachan.cli import image_places

    with tempfile.TemporaryDirectory(prefix="clachan-image-") as folder:
        result = Path(folder) / "image.json"
        _play("image_build", variables | {"CLACHAN_IMAGE_RESULT": str(result)}, quiet=as_json)
        sha256 = json.loads(result.read_bytes())["sha256"]
    manifest = image_places.local_images()[sha256]
    with image_places.controller(local=not push) as client:
        if client is not None:
            _push(client, manifest)
    if as_json:
        print_json(manifest)
    else:
        where = f" and in {client.url}" if client is not None else ""
        print(clean(f"image {manifest.name} {sha256}: in {image_places.store()}{where}"))


def _play(playbook: str, variables: dict[str, str], *, quiet: bool = False) -> None:
    """Run a playbook in this machine's home, with the credentials that this command has."""
    from clachan.cli import platform_playbook
    from clachan.client import NoCredentialsError
    from clachan.client.home import home, load_credentials

    try:
        known = load_credentials()
        given = {"CLACHAN_URL": known.url, "CLACHAN_TOKEN": known.token, "CLACHAN_CA": known.ca_file}
        variables |= {name: str(value) for name, value in given.items() if value}
    except NoCredentialsError:
        pass
    with platform_playbook.lock(home(), make=True):
        if platform_playbook.run(home(), playbook, inventory="localhost,", environment=variables, quiet=quiet):
            raise typer.Exit(FAILED)


def _push(client: "Client", manifest: "Manifest") -> None:
    from clachan.cli import image_places
    from clachan.cli.progress import Progress

    with Progress(f"image {manifest.name}") as progress:
        # on a terminal every percent, in a log every tenth
        step = 1 if sys.stderr.isatty() else 10
        client.upload_image(
            manifest,
            image_places.disk(manifest),
            lambda sent: progress.say("sending", f"{100 * sent // manifest.size // step * step} %"),
        )


@app.command("list")
def list_(local: Local = False, as_json: Json = False) -> None:
    """List the images of this machine and of the controller."""
    from clachan.cli import image_places

    with image_places.controller(local=local) as client:
        found = image_places.all_images(client)
    if as_json:
        print_json_list(found)
        return
    table(
        ["NAME", "SHA256", "SIZE", "DISK", "FORMAT", "BUILDER", "CREATED", "STATE", "WHERE"],
        [
            (
                each.name,
                each.sha256[:12],
                _mib(each.size),
                _mib(each.virtual_size),
                each.disk_format,
                each.builder,
                each.created,
                each.state,
                " ".join(each.where),
            )
            for each in found
        ],
    )


@app.command()
def show(
    image: Wanted,
    local: Local = False,
    only_sha256: Annotated[bool, typer.Option("--sha256", help="Print only that, as a request names it.")] = False,
    as_json: Json = False,
) -> None:
    """Show an image: its manifest, with recipe and packages."""
    from clachan.cli import image_places

    with image_places.controller(local=local) as client:
        found = image_places.find(image, client)
        if only_sha256:
            print(found.sha256)
            return
        manifest: Manifest
        if "local" in found.where or client is None:
            manifest = image_places.local_images()[found.sha256]
        else:
            manifest = client.image(found.sha256)
    if as_json:
        print_json(manifest)
        return
    details(
        [
            ("image", manifest.name),
            ("sha256", manifest.sha256),
            ("where", " ".join(found.where)),
            ("state", found.state),
            ("size", f"{_mib(manifest.size)}, {manifest.size} bytes, {manifest.disk_format}"),
            ("disk", f"{_mib(manifest.virtual_size)}, {manifest.virtual_size} bytes"),
            ("builder", manifest.builder),
            ("created", manifest.created),
            ("recipe digest", manifest.recipe_digest),
            ("recipe", json.dumps(manifest.recipe) if manifest.recipe is not None else None),
            ("packages", len(manifest.packages)),
        ]
    )
    if manifest.packages:
        print("\nPackages:")
        table(["PACKAGE", "VERSION"], sorted(manifest.packages.items()))


@app.command()
def push(image: Wanted, as_json: Json = False) -> None:
    """Send an image of this machine to the controller; what a cut has left is gone on with."""
    from clachan.cli import image_places
    from clachan.cli.connection import connect

    manifest = image_places.local_images()[image_places.find(image, None).sha256]
    with connect() as client:
        _push(client, manifest)
        if as_json:
            print_json(client.image(manifest.sha256))
        else:
            print(clean(f"image {manifest.name} {manifest.sha256}: in {client.url}"))


@app.command()
def export(
    image: Wanted,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write; FILE.sha256 is its checksum.")
    ],
    form: Annotated[Format, typer.Option("--format", help="For which virtualisation.")] = Format.qcow2,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Write an image as a disk for another virtualisation, with its checksum beside it."""
    from clachan.cli import image_places

    target = output.expanduser().absolute()
    if not target.parent.is_dir():
        raise CommandError(f"folder {target.parent}: does not exist, expected it", WRONG_USE)
    with image_places.controller(local=local) as client:
        found = image_places.find(image, client)
    wanted = {"CLACHAN_IMAGE": found.sha256, "CLACHAN_IMAGE_FORMAT": form.value, "CLACHAN_IMAGE_DEST": str(target)}
    _play("image_export", wanted, quiet=as_json)
    checksum = target.with_name(f"{target.name}.sha256").read_text().split()[0]
    if as_json:
        written = {"image": found.sha256, "file": str(target), "format": form.value, "sha256": checksum}
        print(json.dumps(written, indent=2))
    else:
        print(clean(f"{checksum}  {target}"))


@app.command()
def remove(
    image: Wanted,
    local: Local = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove an image from this machine's store and from the controller.

    The controller keeps one that an instance has. Nodes that fetched it keep it.
    """
    from clachan.cli import image_places

    with image_places.controller(local=local) as client:
        found = image_places.find(image, client)
        if not yes:
            question = f"Remove image {found.name} {found.sha256[:12]} from {' and '.join(found.where)}?"
            typer.confirm(clean(question), abort=True, err=True)
        if client is not None and "controller" in found.where:
            client.remove_image(found.sha256)
    if "local" in found.where:
        _play("image_remove", {"CLACHAN_IMAGE": found.sha256}, quiet=as_json)
    if as_json:
        print_json(found)
    else:
        print(clean(f"image {found.name} {found.sha256}: removed from {' and '.join(found.where)}"))


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size < 10 << 30 else f"{size / 2**30:.0f} GiB"
