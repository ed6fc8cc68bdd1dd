"""When each node was last heard of: kept in memory, written to the database now and then by `upkeep`.

A node that may have been restarted is doubted until it is heard of again: what it said before says nothing of it now.
Doubts are in memory alone, but a controller that starts anew doubts whoever was shown as converging.
"""

import threading

from clachan.server import clock

RETURN_SECONDS = 600
"""How long a VM may take to boot until its agent is heard of, also where it is emulated beside many others."""


class Sightings:
    def __init__(self) -> None:
        self._since = clock.now()
        self._seen: dict[str, str] = {}
        self._fresh: set[str] = set()
        self._doubted: dict[str, str] = {}
        self._lock = threading.Lock()

    def saw(self, node_id: str) -> bool:
        """Whether this ends a doubt."""
        moment = clock.now()
        with self._lock:
            self._seen[node_id] = moment
            self._fresh.add(node_id)
            return self._doubted.pop(node_id, None) is not None

    def doubt(self, node_id: str) -> None:
        with self._lock:
            self._doubted[node_id] = clock.now()

    def doubted(self, node_id: str, converging: bool = False) -> bool:
        return node_id in self._doubted or (converging and node_id not in self._seen)

    def given_up(self, node_id: str) -> bool:
        """Whether it was doubted for so long that it should have been heard of."""
        return self._doubted.get(node_id, self._since) <= clock.after(-RETURN_SECONDS)

    def seen(self, node_id: str, stored: str | None) -> str | None:
        return max(self._seen.get(node_id) or "", stored or "") or None

    def silent_since(self, node_id: str, stored: str | None, seconds: int) -> str | None:
        """When it was last heard of, when that is longer ago; never while the controller is younger than that."""
        heard, horizon = self.seen(node_id, stored) or "", clock.after(-seconds)
        return heard if max(heard, self._since) <= horizon else None

    def take(self) -> dict[str, str]:
        """What was not yet written."""
        with self._lock:
            fresh, self._fresh = self._fresh, set()
            return {node: self._seen[node] for node in fresh}
