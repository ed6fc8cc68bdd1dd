"""Shipping what the spool keeps: chunk by chunk, each tag in its order."""

import logging
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from clachan_lake.forward.config import Config
from clachan_lake.forward.connection import UnreachableError
from clachan_lake.forward.recording import Recorder
from clachan_lake.forward.sender import RefusedError, Sender
from clachan_lake.forward.spool import Spool

log = logging.getLogger(__name__)
CHUNKS_A_TURN = 16
REFUSED_SECONDS = 60.0


class Records:
    def __init__(self, config: Config, spool: Spool, sender: Sender, recorders: Sequence[Recorder]) -> None:
        self._config = config
        self._spool = spool
        self._sender = sender
        self._recorders = recorders
        self._refused: dict[str, tuple[float, str]] = {}
        self._sent = 0

    def ship(self) -> bool:
        """Send what is due; True when more is due at once. Raises UnreachableError."""
        more = False
        try:
            for tag in self._spool.tags():
                again, _ = self._refused.get(tag, (0.0, ""))
                if again <= time.monotonic():
                    more |= self._ship(tag)
        except sqlite3.Error as error:
            raise UnreachableError(f"spool: {error}, expected to write it") from error
        return more

    def _ship(self, tag: str) -> bool:
        for _ in range(CHUNKS_A_TURN):
            chunk = self._spool.due(tag, self._config.records_flush_seconds)
            if chunk is None:
                return False
            try:
                self._sender.send_records(tag, chunk.data, chunk.id)
            except RefusedError as error:
                # kept: an operator mends the lake's side, and until then the promise says it
                log.warning("records %s: %s", tag, error)
                self._refused[tag] = time.monotonic() + REFUSED_SECONDS, f"records {tag}: {error}"
                return False
            self._refused.pop(tag, None)
            self._spool.done(chunk)
            self._sent += chunk.data.count(b"\n")
        return True

    def describe(self) -> dict[str, Any]:
        """For the status file."""
        filling = self._spool.filling()
        waited = time.time() - filling.oldest - self._config.records_flush_seconds if filling.oldest else 0.0
        return {
            "lines": filling.lines,
            "bytes": filling.bytes,
            "lag_seconds": round(max(0.0, waited), 1),
            "sent": self._sent,
            "lost": filling.lost,
            "lost_at": filling.lost_at,
            "refused": [message for _, message in self._refused.values()],
            "failing": {one.name: one.failing for one in self._recorders if one.failing},
        }
