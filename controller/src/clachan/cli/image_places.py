"""Where images are: in this machine's store, in the controller, or in both; and which one a user means."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clachan.cli.errors import CommandError
from clachan.contract.image import ImageFacts, ImageSummary, Manifest

if TYPE_CHECKING:
    from clachan.client import Client

PREFIX = re.compile(r"[0-9a-f]{6,64}")
MANIFEST_BYTES = 4 << 20


class Listed(ImageSummary):
    """An image as `image list --json` prints it."""

    where: list[Literal["local", "controller"]]


def store() -> Path:
    """This machine's store, which need not be there."""
    from clachan.client.home import home

    return home() / "images"


def disk(manifest: Manifest) -> Path:
    """The disk of an image of this machine's store."""
    return store() / manifest.sha256 / f"disk.{manifest.disk_format}"


@contextmanager
def controller(*, local: bool = False) -> "Iterator[Client | None]":
    """A client of the controller; None when none is configured, or only this machine is meant."""
    from clachan.client import Client, NoCredentialsError
    from clachan.client.home import load_credentials

    known = None
    if not local:
        try:
            known = load_credentials()
        except NoCredentialsError:
            if (store().parent / "credentials.json").exists():
                raise
    if known is None:
        yield None
        return
    with Client(known.url, token=known.token, ca_file=known.ca_file) as client:
        yield client


def local_images() -> dict[str, Manifest]:
    """sha256 -> manifest of what this machine's store has."""
    from pydantic import ValidationError

    found = {}
    for path in sorted(store().glob("[0-9a-f]*/manifest.json")):
        try:
            manifest = Manifest.from_json(path.read_bytes()[:MANIFEST_BYTES])
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            at = ".".join(str(part) for part in first["loc"])
            raise CommandError(f"manifest {path}: {at} {first['msg']}, expected that of an image") from error
        found[manifest.sha256] = manifest
    return found


def all_images(client: "Client | None") -> list[Listed]:
    """Those of this machine and of the controller, the oldest first."""
    here = local_images()
    there = {each.sha256: each for each in client.images()} if client is not None else {}
    found = []
    for sha256 in here.keys() | there.keys():
        facts = there.get(sha256) or here[sha256]
        arrival = {"state": "ready", "received": facts.size}
        if sha256 in there and sha256 not in here:
            arrival = {"state": there[sha256].state, "received": there[sha256].received}
        content = facts.model_dump(include=set(ImageFacts.model_fields)) | arrival
        where = [name for name, place in (("local", here), ("controller", there)) if sha256 in place]
        found.append(Listed.model_validate({**content, "where": where}))
    return sorted(found, key=lambda each: (each.created, each.sha256))


def find(wanted: str, client: "Client | None") -> Listed:
    """The newest image of that name, else the one whose sha256 begins so."""
    known = all_images(client)
    if named := [each for each in known if each.name == wanted]:
        return named[-1]
    begun = [each for each in known if PREFIX.fullmatch(wanted) and each.sha256.startswith(wanted)]
    if len(begun) > 1:
        raise CommandError(f"image {wanted}: {len(begun)} begin so, expected more digits")
    if not begun:
        raise CommandError(f"image {wanted}: unknown, expected the name of an image, or the beginning of its sha256")
    return begun[0]
