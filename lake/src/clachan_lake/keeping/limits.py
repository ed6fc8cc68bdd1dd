"""How far a FileStorage packs, whoever asks for it and whatever time is asked for."""

from pathlib import Path
from typing import Any

from ZODB.utils import z64

from clachan_lake.keeping.leases import oldest
from clachan_lake.keeping.records import parse

KEY = "packed"
"""Under it the root has the number of the first commit whose state is kept; what is older may be packed away."""


def limit(storage: Any, stop: bytes) -> bytes:
    """At most what the root says, and no snapshot that is open: another may be since the pack was asked for."""
    data, serial = storage.load(z64)
    recorded: bytes = parse(z64, serial, data).state["data"].get(KEY, z64)
    return min(stop, recorded, oldest(Path(storage.blob_dir)) or stop)
