"""The verbs that keep a lake, as a user types them."""

import io
import json
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from clachan_lake.cli.keeping import duration
from clachan_lake.cli.meter import PATIENCE_SECONDS, Meter
from clachan_lake.opening import open_lake
from rich.console import Console
from typer import BadParameter

from .making import Server
from .test_cli import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction("made"):
            lake.arrays.create("a", (0, 2), "<i4")
            lake.streams.create("s").append(b"x" * 100_000)
        for number in range(3):
            with lake.transaction(f"[bold]row {number}"):  # type: ignore[call-arg]
                lake.arrays["a"].append([[number, number]])
    return tmp_path / "lake"


def test_history(folder: Path) -> None:
    shown = cli("history", folder, "a")
    assert [line for line in shown.splitlines() if "[bold]row 2" in line and "3 x 2" in line]
    items = json.loads(cli("history", folder, "a", "--json"))
    assert [item["note"] for item in items] == ["[bold]row 2", "[bold]row 1", "[bold]row 0", "made"]
    assert [item["shape"] for item in items] == [[3, 2], [2, 2], [1, 2], [0, 2]]
    assert [len(item["id"]) for item in items] == [16] * 4
    times = [datetime.fromisoformat(item["time"]) for item in items]
    assert times == sorted(times, reverse=True)
    assert len(json.loads(cli("history", folder, "a", "--json", "--limit", "2"))) == 2
    assert "array 'b': none of this name" in cli("history", folder, "b", status=1)
    with open_lake(folder) as lake, lake.at(items[1]["id"]) as past:  # type: ignore[attr-defined]
        assert past.arrays["a"].shape == (2, 2)


def test_pack_merges_scattered_chunks(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction():
            array = lake.arrays.create("scattered", 30 * 4096, "u1", chunk_bytes=4096)
        for number in range(30):
            with lake.transaction():
                array[number * 4096 : (number + 1) * 4096] = number
    cli("pack", tmp_path / "lake", "--keep", "0s")
    assert len(list((tmp_path / "lake/blobs").rglob("*.blob"))) == 30
    cli("pack", tmp_path / "lake", "--keep", "0s", "--merge")
    assert len(list((tmp_path / "lake/blobs").rglob("*.blob"))) == 1
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        assert lake.arrays["scattered"][::4096].tolist() == list(range(30))


def test_pack(folder: Path) -> None:
    with open_lake(folder) as lake, lake.transaction():
        lake.arrays["a"].append(np.zeros((300_000, 2), "<i4"))
    with open_lake(folder) as lake, lake.transaction():
        lake.arrays["a"][:] = 1
    kept = json.loads(cli("pack", folder, "--keep", "7d", "--json"))[0]
    assert kept["before_bytes"] == pytest.approx(kept["after_bytes"], abs=2000)
    packed = json.loads(cli("pack", folder, "--keep", "0s", "--json"))[0]
    assert packed["before_bytes"] - packed["after_bytes"] > 2_000_000
    assert datetime.fromisoformat(packed["history_from"]) > datetime.fromisoformat(kept["history_from"])
    assert "MB before, " in cli("pack", folder, "--keep", "90m")
    assert "lake: opened for reading" not in cli("verify", folder)
    with open_lake(folder) as lake:
        assert (lake.arrays["a"][:] == 1).all()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("12h", 43_200), ("7d", 604_800), ("1.5h", 5400), ("0s", 0), ("2w", 1_209_600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1e9d", "7 days", "inf", "7dd", "٧d x"])
def test_what_is_no_duration_is_said(text: str, folder: Path) -> None:
    with pytest.raises(BadParameter, match="expected a number with s, m, h, d or w, as in 90m, 12h or 7d"):
        duration(text)
    said = cli("pack", folder, f"--keep={text}", status=2)
    assert "90m, 12h" in said


def test_backup_and_restore(folder: Path, tmp_path: Path) -> None:
    first = json.loads(cli("backup", folder, tmp_path / "backup", "--json"))[0]
    assert first.keys() == {"commit", "time", "objects", "bytes"}
    assert f"(commit {first['commit']})" in cli("backup", folder, tmp_path / "backup")
    with open_lake(folder) as lake, lake.transaction():
        lake.arrays["a"].append([[9, 9]])
        assert "records, " in cli("backup", folder, tmp_path / "backup")
    again = json.loads(cli("restore", tmp_path / "backup", tmp_path / "again", "--json"))[0]
    assert again["commit"] == first["commit"]
    with open_lake(tmp_path / "again") as lake:
        assert lake.arrays["a"].shape == (3, 2)
        assert lake.streams["s"].read() == b"x" * 100_000
    assert "again: not empty, expected a new or empty one" in cli(
        "restore", tmp_path / "backup", tmp_path / "again", status=1
    )
    assert "lake: a lake, expected a backup" in cli("restore", folder, tmp_path / "third", status=1)
    assert "lake: a lake, expected a backup" in cli("backup", tmp_path / "again", folder, status=1)
    assert "does not exist" in cli("restore", tmp_path / "none", tmp_path / "third", status=2)
    assert "expected a folder, a socket or a URL" in cli("backup", tmp_path / "none", tmp_path / "third", status=1)
    assert not (tmp_path / "third").exists()


def test_verify_names_each_fault(folder: Path) -> None:
    assert cli("verify", folder) == "every checksum holds\n"
    assert cli("verify", folder, "--json") == "[]\n"
    blob = next((folder / "blobs").rglob("*.blob"))
    blob.chmod(0o600)
    blob.write_bytes(b"y" + blob.read_bytes()[1:])
    said = cli("verify", folder, status=1)
    assert "stream s, chunk at 0, block 0: checksum " in said
    blob.unlink()
    faults = json.loads(cli("verify", folder, "--json", status=1))
    assert len(faults) == 1
    assert "stream s, chunk at 0, block 0: its file or record" in faults[0]["fault"]
    with open_lake(folder) as lake:
        assert lake.arrays["a"].shape == (3, 2)


def test_of_a_lake_that_is_served(own_server: Server, tmp_path: Path) -> None:
    own_server.start()
    blobs = ["--blobs", own_server.folder / "blobs"]
    with open_lake(own_server.socket, blobs=own_server.folder / "blobs") as lake, lake.transaction():
        lake.arrays.create("a", 3, "f8")[:] = 1
    for target in ([own_server.socket, *blobs], [own_server.folder]):
        assert cli("verify", *target) == "every checksum holds\n"
        assert len(json.loads(cli("history", *target, "a", "--json"))) == 1
        assert "records" in cli("backup", *target, tmp_path / "backup")
    assert "history from" in cli("pack", own_server.socket, *blobs, "--keep", "0s")
    assert "open in another process" in cli("pack", own_server.folder, "--keep", "0s", status=1)
    for verb in (["pack", own_server.url, "--keep", "1d"], ["backup", own_server.url, tmp_path / "b"]):
        assert "over HTTP, expected its folder or socket" in cli(*verb, status=1)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("verb", ["history", "pack", "backup", "restore", "verify"])
def test_help(verb: str) -> None:
    assert f"clachan-lake {verb} " in cli(verb, "--help")


def test_progress_is_shown_when_it_takes_longer_than_a_moment() -> None:
    written = {}
    for seconds in (0.0, PATIENCE_SECONDS + 0.5):
        out = io.StringIO()
        with Meter(Console(file=out, force_terminal=True, width=100)) as meter:
            meter("verify", 1_000_000, 4_000_000)
            time.sleep(seconds)
        written[seconds] = out.getvalue()
    assert written.pop(0.0) == ""
    assert "verify" in (shown := written.popitem()[1])
    assert "1.0/4.0 MB" in shown
    out = io.StringIO()
    with Meter(Console(file=out)) as meter:
        meter("verify", 0, None)
        time.sleep(PATIENCE_SECONDS + 0.2)
    assert out.getvalue() == ""
