"""Rounds of the tests that kill: two in CI, as many as are wanted in `./dev soak`, by chances that can be had again.

Every round has a seed of its own, which is printed; `CLACHAN_SOAK_SEED` and `CLACHAN_SOAK_FIRST` begin at that one.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

ROUNDS, FIRST, SEED, MINUTES, RECORD = (
    f"CLACHAN_SOAK_{word}" for word in ("ROUNDS", "FIRST", "SEED", "MINUTES", "RECORD")
)
IN_CI = 2


def wanted() -> int:
    return int(os.environ.get(ROUNDS, IN_CI))


def seconds(in_ci: float) -> float:
    """For `pytest.mark.timeout`: a test has that long for its two rounds, and in a soak in proportion."""
    return in_ci * max(1, wanted() / IN_CI)


def rounds(stage: str, every: int = 1) -> Iterator[Random]:
    """The chances of each round. `every`: only each so manieth is run, of rounds that take minutes; at least one."""
    count = -(-wanted() // every)
    first = int(os.environ.get(FIRST, 1))
    seed = os.environ.get(SEED, "4711")
    end = time.monotonic() + 60 * float(os.environ.get(MINUTES, "inf"))
    for number in range(first, first + count):
        if time.monotonic() > end:
            print(f"{stage}: its time is over before round {number} of {count}", flush=True)
            break
        began = time.monotonic()
        print(f"{stage}: round {number} of {count}, seed {seed}", flush=True)
        _note(stage, number, count, "begun")
        yield Random(f"{seed}/{stage}/{number}")
        _note(stage, number, count, "done", time.monotonic() - began)
    else:
        return
    _note(stage, 0, count, "out of time")


def _note(stage: str, number: int, count: int, what: str, took: float = 0.0) -> None:
    if path := os.environ.get(RECORD):
        line = {"stage": stage, "round": number, "of": count, "what": what, "seconds": round(took, 1)}
        with Path(path).open("a") as record:
            record.write(json.dumps(line) + "\n")
