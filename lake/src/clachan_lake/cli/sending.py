"""Sending one file: the forwarder's requests, once."""

from pathlib import Path
from typing import Any

from clachan_lake.errors import RemoteError
from clachan_lake.forward.config import Config
from clachan_lake.forward.connection import UnreachableError
from clachan_lake.forward.sender import RefusedError, Sender
from clachan_lake.forward.shipping import chunk_id
from clachan_lake.settings import read_token

CHUNK_BYTES = 4 << 20


def send_file(
    url: str, token_file: Path | None, policy: str, file: Path, ca_file: Path | None = None
) -> dict[str, Any]:
    """Name and bytes of the stream; raises RemoteError when the lake refuses a chunk or does not answer."""
    if token_file is None:
        raise ValueError("option --token-file: missing, expected the file with the lake's token")
    config = Config(url=url, token_file=token_file, state=file, status=file, policy=policy, ca_file=ca_file)
    sender = Sender(config, read_token(token_file))
    name, size, offset = file.name, file.stat().st_size, 0
    try:
        with file.open("rb") as source:
            while True:
                data = source.read(CHUNK_BYTES)
                final = offset + len(data) >= size
                sender.send(name, data, chunk_id(name, offset, data), offset, final)
                offset += len(data)
                if final:
                    return {"name": name, "bytes": offset}
    except (RefusedError, UnreachableError) as error:
        raise RemoteError(f"file {file}: {error}") from error
    finally:
        sender.close()
