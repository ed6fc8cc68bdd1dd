"""`open_lake`: a lake by its folder, its server's socket or URL, or its PostgreSQL database."""

import os
import stat
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from clachan_lake.interface import Lake
from clachan_lake.settings import read_token

POSTGRESQL = ("postgresql://", "postgres://")


class Place(NamedTuple):
    """Where a lake is: URL, socket or folder; for a URL the token, and the file with the certificate."""

    url: str
    token: str | None
    ca: str | None


here: ContextVar[Place | None] = ContextVar("here", default=None)
"""The lake of a call that is made in a process of others, as on a Dask cluster."""


def open_lake(
    target: str | Path | None = None,
    *,
    read_only: bool = False,
    blobs: str | Path | None = None,
    token: str | None = None,
    ca: str | Path | None = None,
    wait_seconds: float = 10,
) -> Lake:
    """Open the lake at `target`:

    - a folder: alone, made on first use (its parent must exist); a second opener gets LakeBusyError. With `read_only`
      beside the process that has it open, whose commits are seen after `refresh()`; nothing is made or changed;
    - the unix socket of `clachan-lake serve`: with its other clients; `blobs` is the lake's blob folder, by default
      the one named so beside the socket;
    - a postgresql:// URL: with all other clients of that database; `blobs` is the folder that they share;
    - an http:// or https:// URL of the server: with the lake's `token`; `ca` is the file with the certificate that an
      https server has signed itself, or that of its authority;
    - none: the one that the environment names, as in a notebook or a job: by CLACHAN_LAKE, with CLACHAN_LAKE_TOKEN_FILE
      and CLACHAN_LAKE_CA_FILE for a URL.

    Raises FormatError when it is no lake, RemoteError when the server does not answer within `wait_seconds`.
    """
    if target is None:
        place = given()
        target, token, ca = place.url, token or place.token, ca or place.ca
    if isinstance(target, str) and target.startswith(("http://", "https://")):
        from clachan_lake.remote import RemoteLake

        return RemoteLake(target, token=token, timeout_seconds=wait_seconds, ca=str(ca) if ca else None)
    from clachan_lake.database import database
    from clachan_lake.local import LocalLake

    return LocalLake(database(_storage(target, read_only, blobs, wait_seconds)), read_only=read_only)


def given() -> Place:
    """The lake that this process belongs to, or the job that makes this call. Raises ValueError when there is none."""
    if (place := here.get()) is not None:
        return place
    target, file = os.environ.get("CLACHAN_LAKE"), os.environ.get("CLACHAN_LAKE_TOKEN_FILE")
    if not target:
        raise ValueError("lake: none given, expected its folder, socket or URL, or the variable CLACHAN_LAKE")
    token = read_token(Path(file)) if file and target.startswith(("http://", "https://")) else None
    return Place(target, token, os.environ.get("CLACHAN_LAKE_CA_FILE") or None)


def _storage(target: str | Path, read_only: bool, blobs: str | Path | None, wait_seconds: float) -> Any:
    from clachan_lake import database

    if isinstance(target, str) and target.startswith(POSTGRESQL):
        from clachan_lake.storage.postgresql import connect

        return connect(target, blobs, read_only=read_only, wait_seconds=wait_seconds)
    path = Path(target)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        return database.join(path, Path(blobs) if blobs else path.parent / "blobs", wait_seconds)
    return database.follow(path) if read_only else database.own(path)
