"""`clachan login`: remember a controller and a token of it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from clachan.cli.errors import WRONG_USE, CommandError
from clachan.cli.options import Json
from clachan.cli.output import print_json


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="https://HOST[:PORT]")],
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token; default: asked for, or standard input.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="The controller's CA certificate (PEM).")] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="sha256 of the controller's CA, which is then fetched and compared.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remember a controller and a token, in CLACHAN_HOME/credentials.json, after trying them."""
    from clachan.cli.secret_input import read_secret
    from clachan.client import Client
    from clachan.client.home import Credentials, home

    if ca and fingerprint:
        raise CommandError("login: both --ca and --fingerprint, expected one", WRONG_USE)
    pem = _read(ca) if ca else _fetch(url, fingerprint)
    token = read_secret("token", token_file)
    directory = home()
    directory.mkdir(parents=True, exist_ok=True)
    candidate = directory / ".login-ca.pem"
    candidate.write_text(pem)
    try:
        with Client(url, token=token, ca_file=candidate) as client:
            principal = client.principal()
            url = client.url
        ca_file = directory / "controller-ca.pem"
        candidate.rename(ca_file)
    finally:
        candidate.unlink(missing_ok=True)
    stored = Credentials(url, token, ca_file).save(directory)
    if as_json:
        print_json(principal)
    else:
        print(f"{url}: {principal.kind} {principal.name}, {principal.role}; remembered in {stored}")


def _read(ca: Path) -> str:
    try:
        return ca.read_text()
    except OSError as error:
        raise CommandError(f"CA file {ca}: {error.strerror}, expected a PEM file", WRONG_USE) from error


def _fetch(url: str, expected: str | None) -> str:
    """The controller's CA, when its fingerprint is the expected one, or a person says that it is."""
    from clachan.client import fetch_ca

    pem, found = fetch_ca(url)
    if expected is not None:
        wanted = expected.replace(":", "").lower()
        if len(wanted) < 32 or not found.startswith(wanted):
            raise CommandError(f"CA of {url}: fingerprint {found}, expected {expected}")
    elif sys.stdin.isatty():
        print(f"The CA of {url} has the sha256 fingerprint\n  {found}", file=sys.stderr)
        typer.confirm("Is it the right one?", abort=True, err=True)
    else:
        raise CommandError("login: no CA to trust, expected --ca or --fingerprint", WRONG_USE)
    return pem
