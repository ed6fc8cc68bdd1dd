"""Documents of a local lake: JSON objects by name or id, perhaps with bytes beside them.

A mapping of key -> dict, each a copy; changes belong to a transaction of the lake.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from clachan_lake import holders
from clachan_lake.errors import MissingError
from clachan_lake.format import Document

BODY_BYTES = 1 << 30


class Session(Protocol):
    """What documents need of their lake."""

    def root(self) -> Any: ...

    def adopt(self, record: Any) -> None: ...

    def writing(self, what: str) -> None:
        """Raises TransactionError outside a transaction."""


class LocalDocuments(Mapping[Any, dict[str, Any]]):
    """`kind` is the root's key; keys are what the format says of it."""

    def __init__(self, lake: Session, kind: str) -> None:
        self._lake = lake
        self._kind = kind

    @property
    def tree(self) -> Any:
        """For ranges of keys."""
        return self._lake.root()[self._kind]

    def __getitem__(self, key: Any) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.record(key).text)
        return document

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tree.keys())

    def __len__(self) -> int:
        return len(self.tree)

    def __contains__(self, key: object) -> bool:
        return key in self.tree

    def record(self, key: Any) -> Document:
        """With its revision and times; raises MissingError."""
        found: Document | None = self.tree.get(key)
        if found is None:
            raise MissingError(f"{self._kind}, {key!r}: none of this name")
        return found

    def put(self, key: Any, document: Mapping[str, Any], body: bytes | None = None) -> bool:
        """Make it, or give it this content; False when it has it already. Without `body` a present one stays."""
        self._lake.writing(f"{self._kind}, {key!r}: write")
        text = as_text(document)
        found = self.tree.get(key)
        if found is None:
            found = self.tree[key] = Document(text, None, _now())
        elif found.text == text and body is None:
            return False
        else:
            found.text = text
            found.revision += 1
            found.modified = _now()
        if body is not None:
            self._lake.adopt(found)
            found.body = holders.hold(found._p_jar, body, len(body))
        return True

    def delete(self, key: Any) -> None:
        """Raises MissingError."""
        self._lake.writing(f"{self._kind}, {key!r}: delete")
        self.record(key)
        del self.tree[key]

    def body(self, key: Any) -> bytes:
        """The bytes beside it; b"" without."""
        body = self.record(key).body
        return b"" if body is None else holders.read(body, 0, BODY_BYTES)

    def following(self) -> int:
        """The next number, for trees whose keys are numbers."""
        return self.tree.maxKey() + 1 if self.tree else 1


class Documented(Mapping[Any, dict[str, Any]]):
    """What is kept as documents of one kind, as a mapping of its own: for the classes that say what they mean."""

    kind: str

    def __init__(self, lake: Session) -> None:
        self._lake = lake
        self._documents = LocalDocuments(lake, self.kind)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return self._documents[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    def __contains__(self, key: object) -> bool:
        return key in self._documents

    def delete(self, key: Any) -> None:
        """Raises MissingError; belongs to a transaction."""
        self._documents.delete(key)


def as_text(document: Mapping[str, Any]) -> str:
    """As it is stored; raises TypeError, ValueError for what is no JSON."""
    return json.dumps(dict(document), sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _now() -> int:
    return time.time_ns() // 10**6
