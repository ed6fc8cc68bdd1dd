"""Dead letters: what was received and could not be put where it belongs, kept until somebody replays or deletes it.

    kind           "ingest" (no policy took it; the bytes are here) or "transformation" (they are in the source)
    policy, tag    of an ingested one; `chunk_id`, `offset` and `final` are the request's
    transformation, source    of the other
    position, length          of the bytes
    reason         why
    content_type   what the sender said of the bytes

A letter's number is never used again: it is the time when it came, in milliseconds, or one more than the last.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clachan_lake import holders
from clachan_lake.documents import BODY_BYTES, Documented
from clachan_lake.interface import DeadLetters
from clachan_lake.streams.chunk import Chunk, Digester

BLOCK_BYTES = 1 << 20
INGEST, TRANSFORMATION = "ingest", "transformation"


class LocalDead(Documented, DeadLetters):
    """The dead letters of a local lake: number -> document."""

    kind = "dead"

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**super().__getitem__(number), "created": self._documents.record(number).created}

    def from_number(self, first: int) -> Iterator[int]:
        """The numbers from `first` on."""
        return iter(self._documents.tree.keys(min=first))

    def add(self, document: Mapping[str, Any], body: bytes | Path | None = None, length: int = 0) -> int:
        """Its number; belongs to a transaction."""
        number = max(self._documents.following(), time.time_ns() // 10**6)
        self._documents.put(number, document)
        if body is not None:
            record = self._documents.record(number)
            self._lake.adopt(record)
            record.body = holders.hold(record._p_jar, body, length)
        return number

    def read(self, number: int, offset: int = 0, count: int = BODY_BYTES) -> bytes:
        """The bytes beside it; b"" where there are none."""
        body = self._documents.record(number).body
        return b"" if body is None else holders.read(body, offset, count)

    def chunk(self, number: int) -> Chunk:
        """Its bytes, to be stored again: in memory, or the file that has them already."""
        body = self._documents.record(number).body
        if hasattr(body, "committed"):
            path = Path(body.committed())
            digester = Digester()
            with path.open("rb") as file:
                while data := file.read(BLOCK_BYTES):
                    digester.update(data)
            return Chunk(digester.length, digester.sha256, digester.checksums, path)
        return Chunk.of(self.read(number))
