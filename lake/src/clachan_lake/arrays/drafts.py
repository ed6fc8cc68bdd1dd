"""Extents on their way: files that become blobs when the transaction commits."""

import fcntl
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest
from ZODB.blob import Blob

from clachan_lake.format import EXTENT_BYTES, PAGE_BYTES, Entry, Piece
from clachan_lake.holders import give

Bytes = npt.NDArray[np.uint8]
PIECE_BYTES = 128 << 10
FICLONERANGE = 0x4020940D


def checksum(data: Bytes | bytes) -> int:
    """XXH3, 64 bits."""
    return xxh3_64_intdigest(data)  # type: ignore[arg-type]


def write_all(file: int, data: Bytes | bytes, offset: int) -> None:
    """All of the bytes, of which a full disk may take the first ones only before it is an error."""
    view = memoryview(data)  # type: ignore[arg-type]
    while view:
        done = os.pwrite(file, view[: 64 << 20], offset)
        view, offset = view[done:], offset + done


class Draft:
    """A file beside the lake's blobs; removed unless it became a blob."""

    def __init__(self, folder: Path) -> None:
        number, name = tempfile.mkstemp(prefix="draft-", dir=folder)
        self.file, self.path = number, Path(name)
        self.size = 0
        self._given = False

    def write(self, data: Bytes, offset: int) -> None:
        """Every byte is written before it is mapped: a full disk is an error here, and no signal at a store."""
        if self.file < 0:
            self.file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        write_all(self.file, data, offset)

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def discard(self) -> None:
        self.close()
        if not self._given:
            self.path.unlink(missing_ok=True)

    def publish(self, jar: Any) -> Blob:
        """The blob that the file becomes with the transaction."""
        self.close()
        blob = Blob()
        jar.add(blob)
        give(blob, str(self.path))
        self._given = True
        return blob


@dataclass(frozen=True)
class Base:
    """What a part is a changed copy of: bytes of an open file from `offset` on, but for these ranges of the part."""

    file: int
    offset: int
    changed: Sequence[tuple[int, int]]


class Writer:
    """Makes entries of bytes, in the session `jar`. `folder` is None where the storage has no blobs. `clones` says
    whether the file system may share blocks between files (btrfs, XFS); the first attempt tells."""

    def __init__(self, jar: Any, folder: Path | None) -> None:
        self.jar = jar
        self.folder = folder
        self.clones = folder is not None

    def piece(self, data: Bytes) -> Entry:
        holder = Piece(data.tobytes())
        self.jar.add(holder)
        return holder, 0, len(data), checksum(data)

    def small(self, data: Bytes) -> Entry:
        """A piece, or an extent of its own when it is too large for the database."""
        if self.folder is None or len(data) <= PIECE_BYTES:
            return self.piece(data)
        return self.extent([data])[0]

    def extent(self, parts: list[Bytes], bases: Sequence[Base | None] = ()) -> list[Entry]:
        """One entry for each of the parts, which stand behind each other in one file, each from a page on."""
        if self.folder is None:
            return [self.piece(part) for part in parts]
        draft = Draft(self.folder)
        try:
            offsets, end = [], 0
            for index, part in enumerate(parts):
                offsets.append(end)
                self._write(draft, part, end, bases[index] if bases else None)
                end += -(-len(part) // PAGE_BYTES) * PAGE_BYTES
            blob = draft.publish(self.jar)
        except BaseException:
            draft.discard()
            raise
        return [(blob, at, len(part), checksum(part)) for at, part in zip(offsets, parts, strict=True)]

    def _write(self, draft: Draft, part: Bytes, offset: int, base: Base | None) -> None:
        if base is None or not self._clone(draft, part, offset, base):
            draft.write(part, offset)
            return
        for low, high in base.changed:
            draft.write(part[low:high], offset + low)

    def _clone(self, draft: Draft, part: Bytes, offset: int, base: Base) -> bool:
        if not self.clones:
            return False
        wanted = struct.pack("qQQQ", base.file, base.offset, len(part), offset)
        try:
            fcntl.ioctl(draft.file, FICLONERANGE, wanted)
        except OSError:
            self.clones = False
        return self.clones


def runs(numbers: list[int], size: Callable[[int], int], first: int = EXTENT_BYTES) -> list[list[int]]:
    """Sorted numbers in lists of consecutive ones, of at most `EXTENT_BYTES` together, in the first list `first`."""
    found: list[list[int]] = []
    room = 0
    for number in numbers:
        if not found or found[-1][-1] != number - 1 or room < size(number):
            room = EXTENT_BYTES if found else first
            found.append([])
        found[-1].append(number)
        room -= size(number)
    return found


Placed = list[tuple[Draft, int]]
"""Of each span, the draft and where in it the span begins."""


def draft_blocks(
    folder: Path, spans: list[tuple[int, int]], blocks: Iterable[Bytes], at: int, known: Draft | None
) -> tuple[Placed, list[tuple[int, Bytes]]]:
    """Drafts of these spans of positions, which follow each other, and what is in none of them as (position, bytes).
    The blocks lie behind each other from position `at` on. The first span goes on in the draft `known`, if that is
    given. When it raises, no new draft is left, and `known` is as it was."""
    placed: Placed = [] if known is None else [(known, known.size)]
    rest: list[tuple[int, Bytes]] = []
    try:
        placed.extend((Draft(folder), 0) for _span in spans[len(placed) :])
        for block in blocks:
            for (low, high), (draft, offset) in zip(spans, placed, strict=True):
                if len(part := _within(block, at, low, high)):
                    draft.write(part, offset + max(at, low) - low)
            for low, high in ((0, spans[0][0]), (spans[-1][1], at + len(block))):
                if len(part := _within(block, at, low, high)):
                    rest.append((max(at, low), part.copy()))
            at += len(block)
    except BaseException:
        for draft, _offset in placed:
            if draft is known:
                draft.close()
                os.truncate(draft.path, draft.size)
            else:
                draft.discard()
        raise
    for (low, high), (draft, offset) in zip(spans, placed, strict=True):
        draft.size = offset + high - low
    return placed, rest


def _within(block: Bytes, at: int, low: int, high: int) -> Bytes:
    """The part of the block, which begins at position `at`, in low <= position < high."""
    return block[max(low - at, 0) : max(high - at, 0)]
