"""Sessions on a bare database, and packing it."""

import time
from typing import Any

from clachan_lake.database import database
from clachan_lake.format import Piece
from clachan_lake.keeping.packing import pack
from clachan_lake.local import LocalLake
from transaction import TransactionManager


class Session:
    """A database with one connection; `pieces` are its records."""

    def __init__(self, storage: Any) -> None:
        self.db = database(storage)
        self.manager = TransactionManager()
        self.connection = self.db.open(self.manager)

    @property
    def pieces(self) -> dict[str, bytes]:
        return {name: piece.data for name, piece in self.connection.root()["arrays"].items()}

    def put(self, name: str, data: bytes) -> None:
        self.connection.root()["arrays"][name] = Piece(data)
        self.manager.commit()

    def close(self) -> None:
        self.manager.abort()
        self.connection.close()
        self.db.close()


def pack_now(db: Any) -> None:
    """All history that no lake's session reads."""
    time.sleep(0.001)
    with LocalLake(db, close_database=False) as lake:
        pack(lake, 0)
