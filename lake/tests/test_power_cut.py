"""A power cut at each step: the lake opens with every commit that was acknowledged, whole, and at most one more."""

import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.opening import open_lake

from . import cutting

COMMITS = 12
SEED = 20261126


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return getattr(cutting, name) if module in {"__main__", "cutting"} else super().find_class(module, name)


def record(tmp_path: Path, kind: str, skipped: str = "") -> cutting.Record:
    """What a process wrote that made the commits; `skipped` is what it did not sync."""
    top = tmp_path / "top"
    top.mkdir()
    command = [sys.executable, cutting.__file__, top, tmp_path / "record", kind, str(COMMITS), skipped]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "record").open("rb") as file:
        found: cutting.Record = Unpickler(file).load()
    assert found.events[-1].acknowledged == COMMITS - 1
    return found


def faults(found: cutting.Record, tmp_path: Path, count: int | None) -> list[str]:
    """What is wrong after a cut at `count` of the events (all, for None), in every mode."""
    chance = random.Random(SEED)
    events = list(enumerate(found.events))
    chosen = events if count is None else sorted(chance.sample(events, min(count, len(events))), key=lambda one: one[0])
    wanted = cutting.states(COMMITS)
    wrong = []
    for number, event in chosen:
        for mode in cutting.MODES:
            where = tmp_path / "cut"
            cutting.materialize(found, event, mode, random.Random(f"{SEED} {number} {mode}"), where)
            try:
                check(where / "lake", event.acknowledged, wanted)
            except Exception as error:
                wrong.append(f"event {number} ({event.step}), {mode}: {error!r}")
            shutil.rmtree(where)
    return wrong


def check(folder: Path, acknowledged: int, wanted: list[cutting.State]) -> None:
    with open_lake(folder) as lake:
        found = count_of(lake)
        assert acknowledged <= found <= acknowledged + 1, f"{found} commits, acknowledged {acknowledged}"
        if found >= 0:
            compare(lake, wanted[found])
        with lake.transaction():
            if found < 0:
                lake.arrays.create("a", 10, "u1")
            lake.arrays["a"][3] = 99
    with open_lake(folder) as lake:
        assert lake.arrays["a"][3] == 99


def count_of(lake: Any) -> int:
    if "log" not in lake.arrays:
        assert list(lake.arrays) == []
        return -1
    log = lake.arrays["log"]
    return int(log[-1]) if len(log) else 0


def compare(lake: Any, state: cutting.State) -> None:
    for name, value in state.items():
        np.testing.assert_array_equal(lake.arrays[name][:], value, name)
        assert lake.arrays[name].verify() == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedded", "socket"])
def test_every_acknowledged_commit_is_there_after_a_cut(tmp_path: Path, kind: str) -> None:
    found = record(tmp_path, kind)
    assert len(found.events) > 100
    assert faults(found, tmp_path, 25) == []


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.parametrize("kind", ["embedded", "socket"])
def test_every_acknowledged_commit_is_there_after_a_cut_at_each_step(tmp_path: Path, kind: str) -> None:
    assert faults(record(tmp_path, kind), tmp_path, None) == []


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [r"\.blob$", r"/blobs/.*/0x[0-9a-f]{2}$", r"data\.fs$"])
def test_a_sync_that_is_left_out_is_found(tmp_path: Path, skipped: str) -> None:
    """The test above can fail: without syncing chunks, their folders, or the records, commits are lost."""
    assert faults(record(tmp_path, "embedded", skipped), tmp_path, 15)
