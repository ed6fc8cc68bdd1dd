"""Policies of a local lake: name -> document. A change belongs to a transaction."""

from collections.abc import Mapping
from typing import Any

from clachan_lake.documents import Documented
from clachan_lake.interface import Policies
from clachan_lake.policies.policy import Policy, read


class LocalPolicies(Documented, Policies):
    kind = "policies"

    def declare(self, name: str, /, **keys: Any) -> bool:
        return self._documents.put(name, read(name, keys).document())

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
