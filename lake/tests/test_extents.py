"""Chunks that share a file: where they are, who may change it, and what becomes of what is not stored."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clachan_lake.ingest.spool import Spool, each
from clachan_lake.keeping import backup as backups
from clachan_lake.keeping.backup import backup, restore
from clachan_lake.keeping.packing import pack
from clachan_lake.keeping.verifying import verify
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.streams import extents
from clachan_lake.streams.chunk import Chunk
from clachan_lake.streams.extents import Extents

from .making import Server

LENGTH = 100_000
BLOCK = 4096
ROOM = -(-LENGTH // BLOCK) * BLOCK


def data(number: int, length: int = LENGTH) -> bytes:
    return bytes([number % 256]) * length


async def parts(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 30_000):
        yield body[at : at + 30_000]


class Sender:
    """Stores bodies as the service does, without HTTP around it and in transactions of their own."""

    def __init__(self, lake: LocalLake, folder: Path) -> None:
        self.lake = lake
        self.extents = Extents(folder, shared=True)

    @contextmanager
    def received(self, number: int, *, digest: bool = False) -> Iterator[Chunk]:
        """A body that is here and not stored."""
        with Spool(self.extents, 1 << 20, digest=digest) as spool:
            yield asyncio.run(spool.receive(each(parts(data(number)))))

    def append(self, chunk: Chunk, name: str = "s") -> None:
        stream = self.lake.streams.find(name) or self.lake.streams.create(name)
        stream.append_chunk(chunk)

    def store(self, number: int, name: str = "s") -> None:
        with self.received(number) as chunk, self.lake.transaction():
            self.append(chunk, name)


@pytest.fixture
def sender(lake: LocalLake, tmp_path: Path) -> Sender:
    return Sender(lake, tmp_path / "lake" / "incoming")


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.blob"))


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


def growing(lake: LocalLake) -> int:
    return len(lake.root()["growing"].extents)


def content(lake: LocalLake, name: str = "s") -> list[int]:
    """The numbers of the bodies that the stream still has."""
    stream = lake.streams[name]
    numbers = []
    for start, length, _when in stream.chunks():
        body = stream.read(start, length)
        assert body == data(body[0])
        numbers.append(body[0])
    return numbers


def test_chunks_share_a_file_and_each_begins_at_a_block(sender: Sender, tmp_path: Path) -> None:
    for number in range(4):
        sender.store(number, f"s{number % 2}")
    [file] = files(tmp_path)
    assert file.stat().st_size == 3 * ROOM + LENGTH
    assert [content(sender.lake, name) for name in ("s0", "s1")] == [[0, 2], [1, 3]]
    record = sender.lake.streams["s1"].record
    assert [entry[5] for entry in record.chunks.values()] == [ROOM, 3 * ROOM]
    assert list(verify(sender.lake)) == []
    assert list((tmp_path / "lake" / "incoming").iterdir()) == []


def test_a_byte_that_is_wrong_is_the_chunks_whose_it_is(sender: Sender, tmp_path: Path) -> None:
    for number in range(3):
        sender.store(number)
    [file] = files(tmp_path)
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.seek(ROOM + 5)
        opened.write(b"?")
    [fault] = verify(sender.lake)
    assert fault.startswith(f"stream s, chunk at {LENGTH}, block 0: checksum ")
    [fault] = sender.lake.streams["s"].verify()
    assert fault.startswith(f"stream s, chunk at {LENGTH}, block 0: another checksum, expected ")


@pytest.mark.parametrize("digest", [False, True])
def test_bodies_at_the_same_time_are_in_files_of_their_own(sender: Sender, tmp_path: Path, digest: bool) -> None:
    with sender.received(1, digest=digest) as one, sender.received(2, digest=digest) as two, sender.lake.transaction():
        sender.append(two)
        sender.append(one)
    assert len(files(tmp_path)) == growing(sender.lake) == 2
    sender.store(3)
    assert len(files(tmp_path)) == 2
    assert content(sender.lake) == [2, 1, 3]


def test_what_is_not_stored_leaves_nothing(sender: Sender, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def begin(number: int) -> None:
        with sender.received(number) as chunk, sender.lake.transaction():
            sender.append(chunk)
            raise StopError

    def fail(number: int) -> None:
        with pytest.raises(StopError):
            begin(number)

    fail(1)
    assert (files(tmp_path / "lake" / "blobs"), growing(sender.lake)) == ([], 0)
    assert list((tmp_path / "lake" / "incoming").iterdir()) == []
    sender.store(2)
    fail(3)
    with sender.received(4):
        pass
    [file] = files(tmp_path)
    assert file.stat().st_size <= ROOM
    sender.store(5)
    assert file.stat().st_size == ROOM + LENGTH
    assert content(sender.lake) == [2, 5]


def test_a_chunk_that_must_be_stored_again_is_stored_once(sender: Sender, tmp_path: Path) -> None:
    sender.store(1)
    for number in (2, 3):
        with sender.received(number) as chunk:
            with sender.lake.session() as other:
                sender.lake.begin()
                sender.append(chunk)
                sender.lake.abort()
                with other.transaction():
                    other.streams["s"].append(data(9))
            with sender.lake.transaction():
                sender.append(chunk)
    assert content(sender.lake) == [1, 9, 2, 9, 3]
    assert max(file.stat().st_size for file in files(tmp_path)) == 2 * ROOM + LENGTH


def test_bytes_that_the_disk_has_lost_are_not_stored_by_a_second_sync(
    sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a write that failed once: the next sync of the file finds nothing wrong."""
    sync, failing = os.fdatasync, [True]

    def once(number: int) -> None:
        if failing and "/incoming/" in os.readlink(f"/proc/self/fd/{number}"):
            failing.clear()
            raise OSError(errno.EIO, "Input/output error")
        sync(number)

    sender.store(1)
    [file] = files(tmp_path)
    monkeypatch.setattr(os, "fdatasync", once)
    with sender.received(2) as chunk:
        for _ in range(2):
            sender.lake.begin()
            sender.append(chunk)
            with pytest.raises(OSError, match="Input/output error"):
                sender.lake.commit()
    assert not failing
    assert file.stat().st_size == ROOM
    sender.store(3)
    # not in the file that the disk has failed
    assert len(files(tmp_path)) == 2
    assert content(sender.lake) == [1, 3]
    assert list(verify(sender.lake)) == []


def test_a_full_one_is_followed_by_another(sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "EXTENT_BYTES", 2 * ROOM)
    for number in range(5):
        sender.store(number)
    assert sorted(file.stat().st_size for file in files(tmp_path)) == [LENGTH, ROOM + LENGTH, ROOM + LENGTH]
    assert growing(sender.lake) == 1
    assert content(sender.lake) == [0, 1, 2, 3, 4]


def test_no_pack_takes_what_is_on_its_way(sender: Sender, tmp_path: Path) -> None:
    for number in range(3):
        sender.store(number)
    [file] = files(tmp_path)
    full = used(file)
    with sender.received(3) as chunk:
        with sender.lake.transaction():
            sender.lake.streams["s"].truncate(2 * LENGTH)
        pack(sender.lake, 0)
        assert used(file) <= full - 2 * (ROOM - BLOCK) + ROOM
        with sender.lake.transaction():
            sender.append(chunk)
    assert content(sender.lake) == [2, 3]
    assert list(verify(sender.lake)) == []


def test_one_that_grows_stays_when_all_its_chunks_are_gone(sender: Sender, tmp_path: Path) -> None:
    sender.store(1)
    with sender.lake.transaction():
        sender.lake.streams["s"].truncate(LENGTH)
    pack(sender.lake, 0)
    assert len(files(tmp_path)) == 1
    sender.store(2)
    assert content(sender.lake) == [2]
    with sender.lake.transaction():
        sender.lake.streams["s"].truncate(2 * LENGTH)
        # as the process that serves the lake does when it begins
        sender.lake.root()["growing"].extents = ()
    pack(sender.lake, 0)
    assert files(tmp_path) == []


def test_what_a_killed_server_had_begun_is_given_back(own_server: Server, tmp_path: Path) -> None:
    own_server.start()
    for number in range(2):
        assert own_server.post(data(number), reference="s").status_code == 204
    own_server.kill()
    [file] = files(own_server.folder)
    file.chmod(0o600)
    with file.open("ab") as opened:
        opened.write(data(7, 8 * ROOM))
    own_server.start()
    assert own_server.post(data(2), reference="s").status_code == 204
    own_server.stop()
    assert len(files(own_server.folder)) == 2
    with open_lake(own_server.folder) as lake:
        assert isinstance(lake, LocalLake)
        assert growing(lake) == 1
        assert content(lake) == [0, 1, 2]
        pack(lake, 0)
        assert used(file) <= 2 * ROOM
        assert content(lake) == [0, 1, 2]


def test_a_backup_has_what_is_stored_and_grows_with_it(sender: Sender, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    sender.store(1)
    backup(sender.lake, target)
    sender.store(2)
    with sender.received(3):
        backup(sender.lake, target)
    [copy] = files(target)
    # not what was on its way
    assert copy.stat().st_size == ROOM + LENGTH
    inode = copy.stat().st_ino
    backup(sender.lake, target)
    assert copy.stat().st_ino == inode
    restore(target, tmp_path / "restored")
    with open_lake(tmp_path / "restored") as restored:
        assert isinstance(restored, LocalLake)
        assert content(restored) == [1, 2]
        assert list(verify(restored)) == []
        later = Sender(restored, tmp_path / "restored" / "incoming")
        later.store(4)
        assert content(restored) == [1, 2, 4]


def test_the_former_backup_keeps_what_the_lake_has_given_back(
    sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup"
    for number in range(2):
        sender.store(number)
    backup(sender.lake, target)
    with sender.lake.transaction():
        sender.lake.streams["s"].truncate(LENGTH)
    pack(sender.lake, 0)
    sender.store(2)

    def killed(_target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(backups, "_swap", killed)
        with pytest.raises(KeyboardInterrupt):
            backup(sender.lake, target)
    [copy] = files(target)
    assert copy.stat().st_size == 2 * ROOM + LENGTH
    with open_lake(target, read_only=True) as former:
        assert isinstance(former, LocalLake)
        assert content(former) == [0, 1]
        assert list(verify(former)) == []
    backup(sender.lake, target)
    with open_lake(target, read_only=True) as new:
        assert isinstance(new, LocalLake)
        assert content(new) == [1, 2]
        assert list(verify(new)) == []
