"""A database of an earlier format, made one of the present format in the transaction that is open."""

from typing import Any

from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree, OOTreeSet

from clachan_lake import following
from clachan_lake.documents import LocalDocuments
from clachan_lake.format import DOCUMENTS, Growing, Ids

STATUS = {"waiting": "waiting", "pending": "waiting", "done": "done", "failed": "failed"}


def add_trees(root: Any) -> None:
    """Those that came with format 3 and 4."""
    root.update({name: OOBTree() for name in DOCUMENTS}, due=OOTreeSet(), dead=LOBTree(), growing=Growing())


def migrate(root: Any) -> None:
    """From any earlier format; chunks stay as they are."""
    if root["format"] == 1:
        from clachan_lake.arrays.migration import migrate as migrate_arrays

        migrate_arrays(root)
    if root["format"] == 3:
        root["growing"] = Growing()
        return
    add_trees(root)
    pending = set(root.pop("pending"))
    for record in root["streams"].values():
        _migrate_stream(root, record, record.name in pending)


def _migrate_stream(root: Any, record: Any, pending: bool) -> None:
    """Before format 3 a stream had one transformation at most, `wav`, with its outcome; and no attributes."""
    record._p_activate()
    old = dict(record.__dict__)
    for name in ("transformation", "state", "message", "warnings", "transformed"):
        delattr(record, name)
    record.attrs = "{}"
    record.start = 0
    record.followers = record.due = ()
    record.ids = Ids()
    record.ids.known = old["ids"]
    if old["transformation"] is None:
        return
    key = ("stream", record.name, old["transformation"])
    position = {
        **following.NEW,
        "position": old["transformed"],
        "status": STATUS[old["state"]],
        "message": old["message"],
        "warnings": list(old["warnings"]),
        "output": record.name if old["state"] == "done" else None,
    }
    LocalDocuments(_Open(root), "positions").put(key, position)
    record.followers = ((old["transformation"], "end"),)
    if pending:
        following.mark(record, root["due"], "end")


class _Open:
    """The database while it is migrated, as documents need it."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def root(self) -> Any:
        return self._root

    def adopt(self, record: Any) -> None:
        self._root._p_jar.add(record)

    def writing(self, what: str) -> None:
        pass
