"""How many bytes the streams and arrays of a policy hold, for policies with a quota, and the dead letters.

The counts are in memory: the writer sets each source's as it changes it, and `tending` counts all of them again.
"""

import threading
from collections.abc import Collection

from clachan_lake.errors import LakeError
from clachan_lake.policies.policy import Policy

Source = tuple[str, str]
"""Kind and name."""
RETRY_SECONDS = 60
"""When a sender may try again that was refused for want of room: retention, or somebody, may have made some."""


class QuotaError(LakeError):
    """There is no room for a chunk by the policy's quota, or for another dead letter. Nothing of it is stored."""


class Usage:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, dict[Source, int]] = {}
        self._totals: dict[str, int] = {}

    def total(self, policy: str) -> int:
        return self._totals.get(policy, 0)

    def set(self, policy: str, source: Source, held: int) -> None:
        """What a source holds now; may be said again and again."""
        with self._lock:
            sources = self._held.setdefault(policy, {})
            self._totals[policy] = self._totals.get(policy, 0) + held - sources.get(source, 0)
            sources[source] = held

    def keep(self, policy: str, sources: Collection[Source]) -> None:
        """Forget the sources that are not among these."""
        with self._lock:
            for source in self._held.get(policy, {}).keys() - set(sources):
                self._totals[policy] -= self._held[policy].pop(source)

    def keep_policies(self, policies: Collection[str]) -> None:
        with self._lock:
            for policy in self._held.keys() - set(policies):
                del self._held[policy], self._totals[policy]

    def check_room(self, name: str, policy: Policy, length: int) -> None:
        """Raises QuotaError."""
        if policy.quota_bytes is not None and self.total(name) + length > policy.quota_bytes:
            raise QuotaError(
                f"policy {name}: {self.total(name)} bytes held and {length} more, expected at most its quota_bytes "
                f"{policy.quota_bytes}"
            )
