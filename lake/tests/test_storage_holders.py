"""Files that become blobs, and sessions that are closed: what they leave, in folders and in memory."""

import asyncio
import gc
import os
from pathlib import Path

import pytest
from clachan_lake import database
from clachan_lake.format import PIECE_BYTES
from clachan_lake.ingest import committer
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.streams.chunk import Chunk, Digester

from . import ingesting

DATA = os.urandom(PIECE_BYTES + 1)


def chunk(folder: Path) -> Chunk:
    """In a file, as one that was received."""
    path = folder / "incoming" / "one"
    path.write_bytes(DATA)
    digester = Digester()
    digester.update(DATA)
    return Chunk(digester.length, digester.sha256, digester.checksums, path)


def test_a_file_becomes_a_blob_and_stays_the_senders(lake: LocalLake, tmp_path: Path) -> None:
    given = chunk(tmp_path / "lake")
    for name in ("a", "b"):
        with lake.transaction():
            lake.streams.create(name).append_chunk(given)
    assert lake.streams["a"].read() == lake.streams["b"].read() == DATA
    blobs = list((tmp_path / "lake/blobs").rglob("*.blob"))
    assert len(blobs) == 2
    assert {path.stat().st_ino for path in blobs} == {(tmp_path / "lake/incoming/one").stat().st_ino}
    assert list((tmp_path / "lake/blobs/tmp").iterdir()) == []


def test_a_file_of_a_transaction_that_is_given_up_leaves_nothing(lake: LocalLake, tmp_path: Path) -> None:
    given = chunk(tmp_path / "lake")
    for _ in range(2):
        lake.begin()
        lake.streams.create("a").append_chunk(given)
        assert len(list((tmp_path / "lake/blobs/tmp").iterdir())) == 1
        lake.abort()
        gc.collect()
        assert list((tmp_path / "lake/blobs/tmp").iterdir()) == []
    with lake.transaction():
        lake.streams.create("a").append_chunk(given)
    assert lake.streams["a"].read() == DATA


def test_closed_sessions_do_not_note_for_ever_what_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_SECONDS", 0.0)
    with open_lake(tmp_path / "lake") as lake:
        assert isinstance(lake, LocalLake)
        instances = lake._db._mvcc_storage._instances
        before = len(instances)
        sessions = [lake.session() for _ in range(10)]
        assert len(instances) == before + 10
        for session in sessions:
            session.close()
        lake.session().close()
        gc.collect()
        assert len(instances) <= before + 1


async def _send(folder: Path, count: int) -> None:
    async with ingesting.service(folder) as send:
        for number in range(count):
            await send(number)


def test_the_writer_lets_go_of_what_it_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    forget = committer.Committer._forget

    def counted(self: committer.Committer) -> None:
        forget(self)
        kept.append(self._lake.root()._p_jar._cache.cache_non_ghost_count)

    monkeypatch.setattr(committer.Committer, "_forget", counted)
    monkeypatch.setattr(committer, "REMEMBERED", 10)
    asyncio.run(_send(tmp_path / "lake", 60))
    assert len(kept) == 60
    assert max(kept[-10:]) <= max(kept[10:20]) + 2
