"""A chunk before it is in the lake: its bytes, in memory or in a file, with their digests."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from isal.isal_zlib import crc32

from clachan_lake.format import BLOCK
from clachan_lake.streams.extents import Room


class Digester:
    """Counts and digests bytes as they come: the whole by SHA-256 if wanted, each `BLOCK` by CRC-32."""

    def __init__(self, whole: bool = True) -> None:
        self.length = 0
        self._sha256 = hashlib.sha256() if whole else None
        self._done = bytearray()
        self._crc = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        if self._sha256 is not None:
            self._sha256.update(data)
        view = memoryview(data)
        while view:
            part = view[: BLOCK - self.length % BLOCK]
            self._crc = crc32(part, self._crc)
            self.length += len(part)
            if self.length % BLOCK == 0:
                self._done += self._crc.to_bytes(4, "little")
                self._crc = 0
            view = view[len(part) :]

    @property
    def sha256(self) -> bytes:
        """b"" when it was not wanted."""
        return b"" if self._sha256 is None else self._sha256.digest()

    @property
    def checksums(self) -> bytes:
        """4 bytes little endian of each block, the last one shorter than `BLOCK` perhaps."""
        return bytes(self._done) + (self._crc.to_bytes(4, "little") if self.length % BLOCK else b"")


@dataclass(frozen=True)
class Chunk:
    """`source` is the bytes, a file of the lake's file system that the lake takes over by a second link, or room in an
    extent that has them. `sha256` is b"" for a chunk that need not be told from others: one without an id."""

    length: int
    sha256: bytes
    checksums: bytes
    source: bytes | Path | Room

    @property
    def apart(self) -> bytes | Path:
        """The bytes, or a file that has nothing else; a copy in one as long as the room is held."""
        return self.source.as_file() if isinstance(self.source, Room) else self.source

    def hold(self) -> None:
        """Once more, for whoever uses it beside the one who received it."""
        if isinstance(self.source, Room):
            self.source.hold()

    def let_go(self) -> None:
        """As often as it is held."""
        if isinstance(self.source, Room):
            self.source.let_go()

    @classmethod
    def of(cls, data: bytes, digest: bool = True) -> "Chunk":
        digester = Digester(digest)
        digester.update(data)
        return cls(digester.length, digester.sha256, digester.checksums, data)
