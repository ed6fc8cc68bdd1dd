"""Several processes on one lake, through its server's socket: nothing is lost, and snapshots stay."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clachan_lake.errors import TransactionError
from clachan_lake.opening import open_lake

from .making import Server, end

APPENDING = """
import sys
import numpy as np
from clachan_lake import open_lake

who, rounds = int(sys.argv[3]), int(sys.argv[4])
with open_lake(sys.argv[1], blobs=sys.argv[2]) as lake:
    array = lake.arrays["a"]
    for number in range(rounds):
        with lake.transaction():
            array.append(np.full(400_000 if number % 10 == 9 else 1024, who * 1000 + number, "<i8"))
"""


@pytest.mark.slow
def test_appends_of_two_processes_are_both_kept(own_server: Server, tmp_path: Path) -> None:
    """Small ones and ones of several chunks, without one conflict; a reader beside them sees whole commits, and what
    it saw does not change under it. Nor does ZEO complain of anything: see `storage.serving`."""
    own_server.start()
    blobs = own_server.folder / "blobs"
    rounds = 40
    with open_lake(own_server.socket, blobs=blobs) as lake:
        with lake.transaction():
            array = lake.arrays.create("a", (0,), "<i8")
        with (tmp_path / "errors").open("w+") as errors:
            words = [sys.executable, "-c", APPENDING, str(own_server.socket), str(blobs)]
            writers = [subprocess.Popen([*words, str(who), str(rounds)], stderr=errors) for who in (1, 2)]
            try:
                while any(writer.poll() is None for writer in writers):
                    lake.refresh()
                    view = array[:]
                    total = int(view.sum())
                    time.sleep(0.05)
                    assert int(view.sum()) == total
            finally:
                for writer in writers:
                    end(writer)
            errors.seek(0)
            assert errors.read() == ""
        assert [writer.returncode for writer in writers] == [0, 0]
        lake.refresh()
        values, counts = np.unique(array[:], return_counts=True)
        assert values.tolist() == [who * 1000 + number for who in (1, 2) for number in range(rounds)]
        assert counts.tolist() == [400_000 if value % 10 == 9 else 1024 for value in values]
        in_order = array[:][np.concatenate([[True], np.diff(array[:]) != 0])]
        for who in (1, 2):
            own = [value for value in in_order.tolist() if value // 1000 == who]
            assert own == sorted(own)
        assert array.verify() == []  # type: ignore[attr-defined]


FORKING = """
import os, sys
from clachan_lake import open_lake
from clachan_lake.errors import TransactionError

with open_lake(sys.argv[1]) as lake:
    view = lake.arrays["a"][:]
    child = os.fork()
    if not child:
        try:
            assert view.sum() == 6, view
            with lake.transaction():
                os._exit(1)
        except TransactionError as error:
            print(error, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with lake.transaction():
        lake.arrays["a"].append([4])
"""


def test_a_fork_reads_and_must_open_anew(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        lake.arrays.create("a", (0,), "i8").append([1, 2, 3])
    words = [sys.executable, "-c", FORKING, str(tmp_path / "lake")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "expected to be opened anew by its fork" in done.stdout
    with open_lake(tmp_path / "lake") as lake:
        assert lake.arrays["a"][:].tolist() == [1, 2, 3, 4]


def test_a_closed_lake_leaves_its_views(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction():
            lake.arrays.create("a", (0,), "i8").append(range(1000))
        view = lake.arrays["a"][10:20]
        kept = lake.arrays["a"]
    assert view.tolist() == list(range(10, 20))
    with pytest.raises(TransactionError):
        kept.append([1])
