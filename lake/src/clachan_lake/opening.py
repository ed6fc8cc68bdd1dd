"""`open_lake`: a lake by its folder, its server's socket or URL, or its PostgreSQL database."""

import stat
from pathlib import Path
from typing import Any

from clachan_lake.interface import Lake

POSTGRESQL = ("postgresql://", "postgres://")


def open_lake(
    target: str | Path,
    *,
    read_only: bool = False,
    blobs: str | Path | None = None,
    token: str | None = None,
    wait_seconds: float = 10,
) -> Lake:
    """Open the lake at `target`:

    - a folder: alone, made on first use (its parent must exist); a second opener gets LakeBusyError. With `read_only`
      beside the process that has it open, whose commits are seen after `refresh()`; nothing is made or changed;
    - the unix socket of `clachan-lake serve`: with its other clients; `blobs` is the lake's blob folder, by default
      the one named so beside the socket;
    - a postgresql:// URL: with all other clients of that database; `blobs` is the folder that they share;
    - an http:// or https:// URL of the server: for reading, with the lake's `token`.

    Raises FormatError when it is no lake, RemoteError when the server does not answer within `wait_seconds`.
    """
    if isinstance(target, str) and target.startswith(("http://", "https://")):
        from clachan_lake.remote import RemoteLake

        return RemoteLake(target, token=token, timeout_seconds=wait_seconds)
    from clachan_lake.database import database
    from clachan_lake.local import LocalLake

    return LocalLake(database(_storage(target, read_only, blobs, wait_seconds)), read_only=read_only)


def _storage(target: str | Path, read_only: bool, blobs: str | Path | None, wait_seconds: float) -> Any:
    from clachan_lake import database

    if isinstance(target, str) and target.startswith(POSTGRESQL):
        from clachan_lake.storage.postgresql import connect

        return connect(target, blobs, read_only=read_only, wait_seconds=wait_seconds)
    path = Path(target)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        return database.join(path, Path(blobs) if blobs else path.parent / "blobs", wait_seconds)
    return database.follow(path) if read_only else database.own(path)
