"""What changed, and who waits for it.

A topic ("node:<id>", "instance:<path>", "questions:<node id>") has a version that grows when something that it
shows was committed. A long poll remembers the version that it answered from and waits for a newer one: it holds a
future of the event loop, no thread and no database session. `announce` may be called from any thread.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable


class Hub:
    def __init__(self) -> None:
        self._versions: defaultdict[str, int] = defaultdict(int)
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self.closed = False

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop in which waiters live."""
        self._loop = loop

    def version(self, topic: str) -> int:
        return self._versions[topic]

    def announce(self, topics: Iterable[str]) -> None:
        """The topics changed: grow their versions, wake who waits."""
        topics = list(topics)
        with self._lock:
            for topic in topics:
                self._versions[topic] += 1
        if self._loop is not None and topics:
            try:
                self._loop.call_soon_threadsafe(self._wake, topics)
            except RuntimeError:  # the loop has ended: nobody waits any more
                self._loop = None

    def waiters(self, topic: str) -> int:
        return len(self._waiting.get(topic, ()))

    async def wait(self, topic: str, version: int, seconds: float) -> bool:
        """Until the topic is newer than `version`; False when the time is over or the server ends."""
        if self._versions[topic] != version:
            return True
        if self.closed or seconds <= 0:
            return False
        future = asyncio.get_running_loop().create_future()
        timer = asyncio.get_running_loop().call_later(seconds, _finish, future)
        self._waiting.setdefault(topic, set()).add(future)
        try:
            await future
        finally:
            timer.cancel()
            waiting = self._waiting[topic]
            waiting.discard(future)
            if not waiting:
                del self._waiting[topic]
        return self._versions[topic] != version

    def close(self) -> None:
        """In the loop: every wait ends now, and no other begins."""
        self.closed = True
        self._wake(list(self._waiting))

    def _wake(self, topics: list[str]) -> None:
        for topic in topics:
            for future in self._waiting.get(topic, ()):
                _finish(future)


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
