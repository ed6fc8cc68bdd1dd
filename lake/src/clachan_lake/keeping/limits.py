"""How far was packed, as the root says; and how far a FileStorage packs, whoever asks for it and for whatever time."""

from pathlib import Path
from typing import Any

from transaction import TransactionManager
from ZODB.utils import z64

from clachan_lake.errors import PackedError
from clachan_lake.keeping.leases import catch_up, oldest
from clachan_lake.keeping.records import parse
from clachan_lake.moments import as_time

KEY = "packed"
"""Under it the root has the number of the first commit whose state is kept; what is older may be packed away."""


def check_not_packed(db: Any, tid: bytes) -> None:
    """Raises PackedError when the state at that commit is no longer there. Hold its lease before: a pack that begins
    later does not take it, and of an earlier one the newest root tells, also where a session may be late."""
    catch_up(db.storage)
    manager = TransactionManager()
    connection = db.open(manager)
    try:
        known: bytes | None = connection.root().get(KEY)
    finally:
        manager.abort()
        connection.close()
    if known is not None and tid < known:
        raise PackedError(
            f"snapshot {as_time(tid).isoformat()}: packed away, expected after {as_time(known).isoformat()}"
        )


def limit(storage: Any, stop: bytes) -> bytes:
    """At most what the root says, and no snapshot that is open: another may be since the pack was asked for."""
    data, serial = storage.load(z64)
    recorded: bytes = parse(z64, serial, data).state["data"].get(KEY, z64)
    return min(stop, recorded, oldest(Path(storage.blob_dir)) or stop)
