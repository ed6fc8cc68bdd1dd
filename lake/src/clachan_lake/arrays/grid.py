"""How an array's bytes are cut into chunks: the first ones small, those behind them larger."""

from collections.abc import Iterator
from dataclasses import dataclass

from clachan_lake.format import GROWTH


@dataclass(frozen=True)
class Grid:
    """`small` bytes for each of the first `GROWTH` chunks, `large` bytes for each one behind."""

    small: int
    large: int

    def number(self, position: int) -> int:
        """Of the chunk that holds the byte at `position`."""
        if position < GROWTH * self.small:
            return position // self.small
        return GROWTH + (position - GROWTH * self.small) // self.large

    def start(self, number: int) -> int:
        """Position of the chunk's first byte."""
        if number < GROWTH:
            return number * self.small
        return GROWTH * self.small + (number - GROWTH) * self.large

    def size(self, number: int) -> int:
        return self.small if number < GROWTH else self.large

    def stop(self, number: int) -> int:
        return self.start(number) + self.size(number)

    def count(self, length: int) -> int:
        """How many chunks `length` bytes take."""
        return self.number(length - 1) + 1 if length else 0

    def spanned(self, low: int, high: int) -> range:
        """The chunks that hold some of the bytes low <= position < high."""
        return range(self.number(low), self.number(high - 1) + 1) if low < high else range(0)

    def inside(self, low: int, high: int) -> range:
        """The chunks whose every byte is in low <= position < high."""
        first = self.number(low)
        if self.start(first) < low:
            first += 1
        return range(first, max(first, self.number(high)))

    def clipped(self, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """(number, low, high) of the part of low <= position < high in each chunk."""
        for number in self.spanned(low, high):
            yield number, max(low, self.start(number)), min(high, self.stop(number))
