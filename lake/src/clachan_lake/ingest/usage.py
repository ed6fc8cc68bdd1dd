"""How many bytes the streams and arrays of a policy hold, for policies with a quota, and the dead letters.

The counts are in memory: the writer sets each source's as it changes it, and `tending` counts all of them again, but
for those that the writer has just set: what it stores then is not in the state that is counted.
"""

import threading
import time
from collections.abc import Collection

from clachan_lake.errors import LakeError
from clachan_lake.policies.policy import Policy

Source = tuple[str, str]
"""Kind and name."""
JUST_SECONDS = 3.0
"""A commit takes less, as a rule; else the next round counts it."""
RETRY_SECONDS = 60
"""When a sender may try again that was refused for want of room: retention, or somebody, may have made some."""


class QuotaError(LakeError):
    """There is no room for a chunk by the policy's quota, or for another dead letter. Nothing of it is stored."""


class Usage:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, dict[Source, int]] = {}
        self._written: dict[tuple[str, Source], float] = {}
        self._totals: dict[str, int] = {}

    def total(self, policy: str) -> int:
        return self._totals.get(policy, 0)

    def set(self, policy: str, source: Source, held: int) -> None:
        """What a source holds with what the writer is about to commit; may be said again and again."""
        with self._lock:
            self._written[policy, source] = time.monotonic()
            self._set(policy, source, held)

    def count(self, policy: str, source: Source, held: int) -> None:
        """What a source was found to hold."""
        with self._lock:
            if not self._is_just_written(policy, source):
                self._written.pop((policy, source), None)
                self._set(policy, source, held)

    def _set(self, policy: str, source: Source, held: int) -> None:
        sources = self._held.setdefault(policy, {})
        self._totals[policy] = self._totals.get(policy, 0) + held - sources.get(source, 0)
        sources[source] = held

    def _is_just_written(self, policy: str, source: Source) -> bool:
        return time.monotonic() - self._written.get((policy, source), float("-inf")) < JUST_SECONDS

    def keep(self, policy: str, sources: Collection[Source]) -> None:
        """Forget the sources that were not found: not among these."""
        with self._lock:
            for source in self._held.get(policy, {}).keys() - set(sources):
                if not self._is_just_written(policy, source):
                    self._written.pop((policy, source), None)
                    self._totals[policy] -= self._held[policy].pop(source)

    def keep_policies(self, policies: Collection[str]) -> None:
        with self._lock:
            for policy in self._held.keys() - set(policies):
                del self._held[policy], self._totals[policy]
            self._written = {key: when for key, when in self._written.items() if key[0] in self._held}

    def check_room(self, name: str, policy: Policy, length: int) -> None:
        """Raises QuotaError."""
        if policy.quota_bytes is not None and self.total(name) + length > policy.quota_bytes:
            raise QuotaError(
                f"policy {name}: {self.total(name)} bytes held and {length} more, expected at most its quota_bytes "
                f"{policy.quota_bytes}"
            )
