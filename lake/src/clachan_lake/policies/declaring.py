"""Policies of a local lake: name -> document. A change belongs to a transaction."""

from collections.abc import Iterator, Mapping
from typing import Any

from clachan_lake.documents import LocalDocuments, Session
from clachan_lake.interface import Policies
from clachan_lake.policies.policy import Policy, read

KIND = "policies"


class LocalPolicies(Policies):
    def __init__(self, lake: Session) -> None:
        self._documents = LocalDocuments(lake, KIND)

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._documents[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    def __contains__(self, name: object) -> bool:
        return name in self._documents

    def declare(self, name: str, /, **keys: Any) -> bool:
        return self._documents.put(name, read(name, keys).document())

    def delete(self, name: str) -> None:
        self._documents.delete(name)

    def describe(self, name: str) -> dict[str, Any]:
        """The document with its name, its revision and times (milliseconds since 1970, UTC)."""
        record = self._documents.record(name)
        times = {"revision": record.revision, "created": record.created, "modified": record.modified}
        return {"policy": name, **self._documents[name], **times}

    def add_missing(self, policies: Mapping[str, Policy]) -> list[str]:
        """Declare those that are not there; which they were."""
        missing = [name for name in policies if name not in self]
        for name in missing:
            self._documents.put(name, policies[name].document())
        return missing
