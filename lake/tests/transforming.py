"""What the tests of transformations have in common: declaring, feeding, and seeing how far they are."""

import textwrap
from typing import Any

from clachan_lake.local import LocalLake

STREAMS = {"kind": "stream"}
LINES = """
    import numpy as np
    def transform(batch, output, state):
        *lines, rest = (state.get("rest", "").encode() + batch.data).split(b"\\n")
        output.append(np.array([int(line) for line in lines], "i8"))
        state["rest"] = rest.decode()
"""


def declare(lake: LocalLake, code: str, name: str = "t", **keys: Any) -> None:
    with lake.transaction():
        lake.transformations.declare(
            name, **{"code": textwrap.dedent(code), "source": STREAMS, "output": "{name}.out", **keys}
        )


def feed(lake: LocalLake, *chunks: bytes, name: str = "x", final: bool = False) -> None:
    for chunk in chunks:
        with lake.transaction():
            (lake.streams[name] if name in lake.streams else lake.streams.create(name)).append(chunk)
    if final:
        with lake.transaction():
            lake.streams[name].end()


def at(lake: LocalLake, name: str = "t", source: str = "x") -> dict[str, Any]:
    lake.refresh()
    return next(one for one in lake.transformations.positions(name) if one["source"] == source)


def letters(lake: LocalLake) -> list[dict[str, Any]]:
    return [lake.dead[number] for number in lake.dead]
