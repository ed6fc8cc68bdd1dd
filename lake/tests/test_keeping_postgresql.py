"""A lake in PostgreSQL is packed, verified and backed up like one in a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.errors import CorruptError, FormatError, PackedError
from clachan_lake.keeping.backup import backup, restore
from clachan_lake.keeping.databases import restore_into
from clachan_lake.keeping.packing import pack
from clachan_lake.keeping.verifying import verify
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake

from .postgres import Cluster
from .test_cli import cli

pytestmark = pytest.mark.slow


def opened(target: Any, **how: Any) -> LocalLake:
    lake = open_lake(target, **how)
    assert isinstance(lake, LocalLake)
    return lake


def test_pack_verify_backup_and_restore(url: str, tmp_path: Path) -> None:
    how = {"blobs": tmp_path / "blobs"}
    with opened(url, **how) as lake:
        with lake.transaction("made"):
            lake.arrays.create("a", (16, 8192), "<i8", chunk_bytes=65536)[:] = np.arange(16)[:, None]
            lake.arrays.create("tail", (0,), "<i4").append(np.arange(10))
            lake.streams.create("s").append(b"x" * 100_000)
        made = lake.tid
        with opened(url, **how) as reader:
            expected = reader.arrays["a"][:].copy()
            for row in range(15):
                with lake.transaction():
                    lake.arrays["a"][row] = 100 + row
            pack(lake, 0)
            assert list(verify(reader)) == []
            assert (reader.arrays["a"][:] == expected).all()
            with lake.at(made) as past:
                assert (past.arrays["a"][:] == expected).all()
            with lake.at(lake.tid) as now:
                assert now.arrays["a"][14, 0] == 114
        with lake.transaction():
            lake.arrays["tail"].append([10])
        pack(lake, 0)
        # but for the last row before the last commit
        assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*.blob")) <= 17 * 65536 + 102_400
        with pytest.raises(PackedError, match="packed away, expected after"):
            lake.at(made)
        assert list(verify(lake)) == []
        tid = backup(lake, tmp_path / "backup").tid
        assert tid == lake.tid
        rows = lake.arrays["a"][:].copy()
        assert rows[:, 0].tolist() == [*range(100, 115), 15]
    assert restore(tmp_path / "backup", tmp_path / "restored").tid == tid
    with opened(tmp_path / "restored") as again:
        assert (again.arrays["a"][:] == rows).all()
        assert again.arrays["tail"][:].tolist() == list(range(11))
        assert again.streams["s"].read() == b"x" * 100_000
        assert list(verify(again)) == []
        with again.transaction():
            again.arrays["tail"].append([11])


def test_a_backup_is_restored_into_a_new_database(postgres: Cluster, lake: LocalLake, tmp_path: Path) -> None:
    with lake.transaction():
        lake.arrays.create("a", (16, 8192), "<i8", chunk_bytes=65536)[:] = np.arange(16)[:, None]
        lake.streams.create("s").append(b"x" * 100_000)
    first, url = backup(lake, tmp_path / "backup"), postgres.create()
    how = {"blobs": tmp_path / "blobs"}
    restored = json.loads(cli("restore", tmp_path / "backup", url, "--blobs", how["blobs"], "--json"))[0]
    assert restored["commit"] == first.tid.hex()
    assert (restored["objects"], restored["bytes"]) == (first.objects, first.bytes)
    with opened(url, **how) as again:
        assert (again.arrays["a"][:] == lake.arrays["a"][:]).all()
        with again.transaction():
            again.arrays["a"][3] = 33
            again.arrays.create("b", 3, "f4")[:] = 1
        assert list(verify(again)) == []
        assert again.streams["s"].read() == b"x" * 100_000
        second = backup(again, tmp_path / "second")
    other, elsewhere = postgres.create(), {"blobs": tmp_path / "others"}
    cli("restore", tmp_path / "second", other, "--blobs", elsewhere["blobs"])
    with opened(other, **elsewhere) as third:
        assert third.tid >= second.tid
        assert third.arrays["a"][:, 0].tolist() == [0, 1, 2, 33, *range(4, 16)]
        assert third.arrays["b"][:].tolist() == [1, 1, 1]
    for target, blobs, message in (
        (other, tmp_path / "blobs", "folder .*blobs: has blobs, expected one for a new lake"),
        (other, tmp_path / "new", "database: has commits, expected a new one"),
    ):
        with pytest.raises(FormatError, match=message):
            restore_into(tmp_path / "second", target, blobs)
    assert "expected the folder for the blobs" in cli("restore", tmp_path / "second", other, status=2)
    blob = next((tmp_path / "second").rglob("*.blob"))
    blob.unlink()
    with pytest.raises(CorruptError, match="missing"):
        restore_into(tmp_path / "second", postgres.create(), tmp_path / "never")
    assert not (tmp_path / "never").exists()
