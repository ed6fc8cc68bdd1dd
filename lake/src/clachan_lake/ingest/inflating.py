"""A body that was compressed with gzip, as it comes in: never more of it at once than a part."""

import zlib
from collections.abc import Iterator

from clachan_lake.refusal import RefusedError

PART_BYTES = 256 << 10
GZIP = 16 + zlib.MAX_WBITS


class Inflater:
    """Members that follow each other are one body, as gzip itself has it."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(GZIP)
        self._began = False

    def inflate(self, data: bytes | bytearray) -> Iterator[bytes]:
        """What the bytes become, at most `PART_BYTES` at a time. Raises RefusedError (400)."""
        while data:
            self._began = True
            try:
                part = self._member.decompress(data, PART_BYTES)
            except zlib.error as error:
                raise RefusedError(400, f"body: {error}, expected gzip as content-encoding says") from None
            if part:
                yield part
            data = self._member.unconsumed_tail
            if self._member.eof:
                data = self._member.unused_data
                if data:
                    self._member = zlib.decompressobj(GZIP)

    def check_end(self) -> None:
        """Raises RefusedError (400) when the body ended before its last member did."""
        if self._began and not self._member.eof:
            raise RefusedError(400, "body: gzip that was cut, expected all of it")
