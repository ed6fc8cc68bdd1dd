"""A chunk before it is in the lake: its bytes, in memory or in a file, with their digests."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from clachan_lake.format import BLOCK


class Digester:
    """Counts and digests bytes as they come: the whole by SHA-256, each `BLOCK` by CRC-32."""

    def __init__(self) -> None:
        self.length = 0
        self._sha256 = hashlib.sha256()
        self._done = bytearray()
        self._crc = 0

    def update(self, data: bytes | memoryview) -> None:
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
        return self._sha256.digest()

    @property
    def checksums(self) -> bytes:
        """4 bytes little endian of each block, the last one shorter than `BLOCK` perhaps."""
        return bytes(self._done) + (self._crc.to_bytes(4, "little") if self.length % BLOCK else b"")


@dataclass(frozen=True)
class Chunk:
    """`source` is the bytes, or a file of the lake's file system that the lake takes over by a second link."""

    length: int
    sha256: bytes
    checksums: bytes
    source: bytes | Path

    @classmethod
    def of(cls, data: bytes) -> "Chunk":
        digester = Digester()
        digester.update(data)
        return cls(digester.length, digester.sha256, digester.checksums, data)
