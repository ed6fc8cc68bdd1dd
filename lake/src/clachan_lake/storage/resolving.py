"""Two transactions that changed one record: merged where the record's class can, and unpickled by no one's leave.

ZODB would load the three states with any class that they name, and what a class is called with may do anything. Here a
class of a pickle becomes its name only, which nothing can call; just the class of the record itself is imported, when
it is one of `RESOLVABLE`. All else is a ConflictError, also a pickle that does not load: the writer does it again.
"""

import logging
from io import BytesIO
from typing import Any, NamedTuple

from ZODB.POSException import ConflictError
from zodbpickle import binary
from zodbpickle.pickle import Pickler, Unpickler, UnpicklingError

from clachan_lake.format import admit

log = logging.getLogger(__name__)
RESOLVABLE = frozenset(
    {("clachan_lake.format", name) for name in ("ArrayState", "Leaf")}
    # a tree of few keys keeps its only bucket inside itself: then the tree is what conflicts
    | {("BTrees.LOBTree", name) for name in ("LOBTree", "LOBucket")}
    | {("BTrees.OOBTree", name) for name in ("OOBTree", "OOBucket", "OOTreeSet", "OOSet")}
)
PLAIN = frozenset({type(None), bool, int, float, str, bytes, binary, tuple, list, dict})
PROTOCOL = 3


class Name(NamedTuple):
    """A class that a pickle names."""

    module: str
    name: str


class Reference(NamedTuple):
    """Another record that a state refers to; equal where they are one record, in the order of their ids."""

    oid: bytes
    kind: Name | None


class _Reader(Unpickler):  # type: ignore[misc]
    def __init__(self, record: bytes, known: dict[Any, Reference]) -> None:
        super().__init__(BytesIO(record))
        self._known = known

    def find_class(self, module: str, name: str) -> Name:
        admit(None, module, name)
        return Name(module, name)

    def persistent_load(self, reference: Any) -> Reference:
        oid, kind = reference if isinstance(reference, tuple) else (reference, None)
        if not isinstance(oid, bytes) or not isinstance(kind, Name | None):
            raise UnpicklingError(f"reference {reference!r}, expected an id, or an id and a class")
        # BTrees tells whether two buckets have one neighbour by identity
        return self._known.setdefault((oid, kind), Reference(oid, kind))


class Writer(Pickler):  # type: ignore[misc]
    def persistent_id(self, value: Any) -> Any:
        if type(value) is Reference:
            return (value.oid, admit(None, *value.kind)) if value.kind else value.oid
        if type(value) not in PLAIN and not isinstance(value, type):
            raise UnpicklingError(f"value of {type(value)}, expected plain data")
        return None


def resolve(old: bytes, committed: bytes, new: bytes) -> bytes:
    """The record that has the changes of `committed` and `new` to `old`; raises any Exception when there is none."""
    known: dict[Any, Reference] = {}
    kind, state = read(new, known)
    if kind not in RESOLVABLE:
        raise ConflictError(f"record of class {kind}, expected one that can be merged")
    before, theirs = read(old, known), read(committed, known)
    if before[0] != kind or theirs[0] != kind:
        raise ConflictError(f"record of class {kind}, expected to be one before: {before[0]}, {theirs[0]}")
    cls = admit(None, *kind)
    merged = cls.__new__(cls)._p_resolveConflict(before[1], theirs[1], state)
    file = BytesIO()
    writer = Writer(file, PROTOCOL)
    writer.dump(cls)
    writer.dump(merged)
    return file.getvalue()


def read(record: bytes, known: dict[Any, Reference]) -> tuple[Name, Any]:
    """The class and the state of a record; `known` gets the references in their order."""
    reader = _Reader(record, known)
    kind = reader.load()
    if type(kind) is tuple and len(kind) == 2 and not kind[1]:
        kind = kind[0]
    if type(kind) is not Name:
        raise UnpicklingError(f"record of {kind!r}, expected a class without arguments")
    return kind, reader.load()


class Resolving:
    """Before a storage's class: its conflicts are resolved by `resolve`, and by nothing else."""

    loadSerial: Any  # noqa: N815 - ZODB's name

    def tryToResolveConflict(  # noqa: N802 - ZODB's name
        self, oid: bytes, committed_serial: bytes, old_serial: bytes, new: bytes, committed: bytes = b""
    ) -> bytes:
        try:
            old = self.loadSerial(oid, old_serial)
            return resolve(old, committed or self.loadSerial(oid, committed_serial), new)
        except Exception as error:
            log.debug("record %s: not merged: %r", oid.hex(), error)
            # without `data`: from those ZODB would load the class's name
            raise ConflictError(oid=oid, serials=(committed_serial, old_serial)) from None
