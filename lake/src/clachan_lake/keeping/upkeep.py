"""Packs a served lake now and then: what retention and newer contents left behind gives its room back."""

import logging
import threading
import time

from ZODB.utils import z64

from clachan_lake.keeping.limits import KEY
from clachan_lake.keeping.packing import pack
from clachan_lake.local import LocalLake
from clachan_lake.moments import as_time

log = logging.getLogger(__name__)
LOOK_SECONDS = 600.0


class Upkeep(threading.Thread):
    """A history of `history_seconds` is kept, and every `pack_seconds` what is older is
    packed away; with 0 nothing ever is."""

    def __init__(self, lake: LocalLake, history_seconds: float, pack_seconds: float) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._lake = lake
        self._history_seconds = history_seconds
        self._pack_seconds = pack_seconds
        self._ended = threading.Event()

    def run(self) -> None:
        # not at once: whoever starts a lake wants it to answer first
        wait = min(60.0, self._pack_seconds)
        while self._pack_seconds and not self._ended.wait(wait):
            wait = min(LOOK_SECONDS, self._pack_seconds)
            try:
                self.look()
            except Exception as error:
                log.warning("not packed: %r", error)

    def stop(self) -> None:
        """A pack that runs goes on; the process need not wait for it, for it can end at any moment."""
        self._ended.set()

    def look(self) -> bool:
        """Pack when it is due; whether it was."""
        # a session of its own for each time: what one could still read no pack may take away
        with self._lake.session() as session:
            if not self._is_due(session):
                return False
            done = pack(session, self._history_seconds)
        log.info("packed until %s: %d bytes, before %d", done.until.isoformat(), done.after_bytes, done.before_bytes)
        return True

    def _is_due(self, session: LocalLake) -> bool:
        known: bytes = session.root().get(KEY, z64)
        packed = 0.0 if known == z64 else as_time(known).timestamp()
        return time.time() - packed >= self._history_seconds + self._pack_seconds
