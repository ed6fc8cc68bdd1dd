"""When each node was last heard of: kept in memory, written to the database now and then by `upkeep`.

A node that may have been restarted is doubted until it is heard of again: what it said before says nothing of it now.
Doubts are in memory alone: a controller that starts anew believes what it was told last, as it does of silence.
"""

import threading

from clachan.server import clock


class Sightings:
    def __init__(self) -> None:
        self._since = clock.now()
        self._seen: dict[str, str] = {}
        self._fresh: set[str] = set()
        self._doubted: set[str] = set()
        self._lock = threading.Lock()

    def saw(self, node_id: str) -> bool:
        """Whether this ends a doubt."""
        moment = clock.now()
        with self._lock:
            self._seen[node_id] = moment
            self._fresh.add(node_id)
            ended = node_id in self._doubted
            self._doubted.discard(node_id)
        return ended

    def doubt(self, node_id: str) -> None:
        with self._lock:
            self._doubted.add(node_id)

    def doubted(self, node_id: str) -> bool:
        return node_id in self._doubted

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
