"""Clachan's lake: streams and arrays, larger than memory, in transactions.

    from clachan_lake import open_lake

    with open_lake("/data/lake") as lake:
        with lake.transaction():
            a = lake.arrays.create("noise", shape=(0, 2), dtype="int16", attrs={"rate": 48000})
            a.append(samples)
        print(lake.arrays["noise"][:100])

A *stream* is an append-only sequence of bytes with chunk boundaries and chunk ids. An *array* is a numpy array kept
in chunks. `format` says what is on disk, `interface` what both kinds of lake (local and over HTTP) offer.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clachan_lake.arrays.memory import MemoryArray
    from clachan_lake.interface import Array, Lake, Stream
    from clachan_lake.opening import open_lake

__version__ = "0.1.0"
__all__ = ["Array", "Lake", "MemoryArray", "Stream", "__version__", "open_lake"]


def __getattr__(name: str) -> Any:
    # lazy: the forwarder is of this package too and must stay small, without numpy and ZODB
    if name == "open_lake":
        from clachan_lake.opening import open_lake

        return open_lake
    if name == "MemoryArray":
        from clachan_lake.arrays.memory import MemoryArray

        return MemoryArray
    if name in {"Array", "Lake", "Stream"}:
        from clachan_lake import interface

        return getattr(interface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
