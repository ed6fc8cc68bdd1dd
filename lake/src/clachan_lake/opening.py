"""`open_lake`: a lake by its folder, its server's socket or its URL."""

import stat
from pathlib import Path

from clachan_lake.interface import Lake


def open_lake(
    target: str | Path,
    *,
    read_only: bool = False,
    blobs: str | Path | None = None,
    token: str | None = None,
    wait_seconds: float = 10,
) -> Lake:
    """Open the lake at `target`:

    - a folder: alone, made on first use (its parent must exist); a second opener gets LakeBusyError;
    - the unix socket of `clachan-lake serve`: with its other clients; `blobs` is the lake's blob folder, by default
      the one named so beside the socket;
    - an http:// or https:// URL of the server: for reading, with the lake's `token`.

    Raises FormatError when it is no lake, RemoteError when the server does not answer within `wait_seconds`.
    """
    if isinstance(target, str) and target.startswith(("http://", "https://")):
        from clachan_lake.remote import RemoteLake

        return RemoteLake(target, token=token, timeout_seconds=wait_seconds)
    from clachan_lake import database
    from clachan_lake.local import LocalLake

    path = Path(target)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        storage = database.join(path, Path(blobs) if blobs else path.parent / "blobs", wait_seconds)
    else:
        storage = database.own(path)
    return LocalLake(database.database(storage), read_only=read_only)
