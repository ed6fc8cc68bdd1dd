"""What else ZODB would unpickle, beside records: the index file, and what a transaction says of itself.

A transaction's *extension* is a pickle of whoever committed it, and ZODB loads it wherever history is asked for. A lake
has none: it takes no transaction with one, and passes over those that it finds.
"""

import logging
import pickle
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ZODB.POSException import StorageTransactionError, UndoError

log = logging.getLogger(__name__)


class PlainTransactions:
    """Before a storage's class: see the module."""

    def tpc_begin(self, transaction: Any, tid: bytes | None = None, status: str = " ") -> None:
        if size := len(transaction.extension_bytes):
            raise StorageTransactionError(f"transaction's extension: {size} bytes, expected none")
        super().tpc_begin(transaction, tid, status)  # type: ignore[misc]

    def supportsUndo(self) -> bool:  # noqa: N802 - ZODB's name
        return False

    def undoLog(self, *_: Any, **__: Any) -> NoReturn:  # noqa: N802 - ZODB's name
        raise UndoError("undo: not offered, expected a later state to be stored anew")

    undoInfo = undoLog  # noqa: N815 - ZODB's name


class PlainFile(PlainTransactions):
    """Before FileStorage: an index file with classes in it is made again."""

    __name__: str

    def _restore_index(self) -> Any:
        path = Path(f"{self.__name__}.index")
        if path.exists() and not _is_plain_pickle(path):
            log.warning("index %s: not plain, ignored and made again", path)
            return None
        return super()._restore_index()  # type: ignore[misc]

    def _read_txn_header(self, pos: int, tid: bytes | None = None) -> Any:
        header = super()._read_txn_header(pos, tid)  # type: ignore[misc]
        header.ext = b""
        return header


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"class {module}.{name}, expected none")


def _is_plain_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return _loads_to_end(file)


def _loads_to_end(file: BinaryIO) -> bool:
    try:
        while _Plain(file).load():
            pass
    except Exception:
        return False
    return True
