"""A power cut in a commit: what was acknowledged is there, what was not is gone, and damage is not taken for it."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from clachan_lake.database import LakeStorage, follow, own
from clachan_lake.errors import CorruptError
from clachan_lake.format import Piece
from clachan_lake.storage import tail

from .storing import Session

PAGE = 512
"""What a disk writes at once, at least."""


class Images:
    """A lake whose last commit was voted for: its file with that commit, and how long it was before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data.fs"
        session = Session(own(folder))
        for number in range(5):
            session.put("a", b"%d" % number)
        self.acknowledged = session.db.storage._pos
        self.index = None
        transaction = session.manager.begin()
        for name in ("a", "b", "c"):
            session.connection.root()["arrays"][name] = Piece(b"never" * 300)
        session.connection.tpc_begin(transaction)
        session.connection.commit(transaction)
        session.connection.tpc_vote(transaction)
        self.voted = self.data.read_bytes()
        session.connection.tpc_finish(transaction)
        self.finished = self.data.read_bytes()
        session.manager.abort()
        session.connection.close()
        session.db.close()

    def check(self, image: bytes) -> None:
        """The lake opens with that file: to read, to write, and again."""
        self.data.write_bytes(image)
        (self.folder / "data.fs.index").unlink(missing_ok=True)
        session = Session(own(self.folder))
        assert session.pieces == {"a": b"4"}
        assert session.db.storage._pos == self.acknowledged == self.data.stat().st_size
        session.put("d", b"new")
        session.close()
        session = Session(follow(self.folder))
        assert session.pieces == {"a": b"4", "d": b"new"}
        session.close()
        kept = [path for path in self.folder.glob("data.fs.*") if path.suffix[1:] not in {"index", "lock", "tmp"}]
        rest = image[self.acknowledged :]
        if len(rest) < 23 or rest[16:17] == b"c":
            assert kept == []
        else:
            assert [path.read_bytes() for path in kept] == [rest]
            kept[0].unlink()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("tail") / "lake")


def cuts(images: Images) -> Iterator[int]:
    """Positions in the commit: all near its ends, some between."""
    start, stop = images.acknowledged, len(images.voted)
    yield from range(start, start + 80)
    yield from range(start + 80, stop - 20, 487)
    yield from range(stop - 20, stop + 1)


def test_cut_off_anywhere(images: Images) -> None:
    for at in cuts(images):
        images.check(images.voted[:at])


def test_zeros_from_anywhere_on(images: Images) -> None:
    size = len(images.voted)
    for at in cuts(images):
        if at < size - 20 and at % 3:
            continue
        images.check(images.voted[:at] + bytes(size - at))


def test_any_pages_of_it_are_missing(images: Images) -> None:
    generator = random.Random(5)
    start, size = images.acknowledged, len(images.voted)
    first = start - start % PAGE
    for _ in range(60):
        image = bytearray(images.voted)
        for page in range(first, size, PAGE):
            if generator.random() < 0.5:
                low, high = max(page, start), min(page + PAGE, size)
                image[low:high] = bytes(high - low) if generator.random() < 0.7 else generator.randbytes(high - low)
        if bytes(image[start:]) != images.voted[start:]:
            images.check(bytes(image))


def test_a_commit_that_counts_is_kept(images: Images) -> None:
    images.data.write_bytes(images.finished)
    (images.folder / "data.fs.index").unlink()
    session = Session(own(images.folder))
    assert session.pieces == dict.fromkeys("abc", b"never" * 300)
    session.close()


@pytest.mark.parametrize("what", ["status", "length", "zeros", "cut short"])
def test_damage_is_not_cut_off(images: Images, what: str) -> None:
    """The third transaction from the end is damaged, and those behind it are whole."""
    spots = [tail.FIRST, *(whole.end for whole in _whole(images))]
    at, end = spots[-4], spots[-3]
    image = bytearray(images.finished)
    if what == "status":
        image[at + 16] = ord("x")
    elif what == "length":
        image[at + 8 : at + 16] = (10**9).to_bytes(8)
    elif what == "zeros":
        image[at : at + 100] = bytes(100)
    else:
        del image[end - 30 : end - 20]
    images.data.write_bytes(image)
    (images.folder / "data.fs.index").unlink(missing_ok=True)
    message = (
        rf"data\.fs, transaction at {at}: damaged, and whole ones behind it up to [0-9a-f]{{16}}, .*restore a backup"
    )
    for _ in range(2):
        with pytest.raises(CorruptError, match=message):
            own(images.folder)
    assert images.data.read_bytes() == image
    images.data.write_bytes(images.finished)
    own(images.folder).close()


def _whole(images: Images) -> list[tail.Whole]:
    images.data.write_bytes(images.finished)
    with images.data.open("rb") as file:
        return list(tail.whole_from(file.fileno(), tail.FIRST))


def test_a_commit_is_acknowledged_when_its_records_and_its_status_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk has after each sync, by the file's bytes at that moment."""
    session = Session(own(tmp_path / "lake"))
    session.put("a", b"1")
    start, states = session.db.storage._pos, []

    def record(_descriptor: int) -> None:
        states.append((tmp_path / "lake/data.fs").read_bytes()[start:])

    monkeypatch.setattr("clachan_lake.storage.file.os.fdatasync", record)
    session.put("b", b"2")
    monkeypatch.undo()
    assert [state[16:17] for state in states] == [b"c", b" "]
    assert states[0][:16] + b" " + states[0][17:] == states[1]
    assert isinstance(session.db.storage, LakeStorage)
    session.close()


def test_who_only_reads_says_who_can_mend_it(images: Images) -> None:
    start = images.acknowledged
    torn = images.voted[:start] + bytes(100) + images.voted[start + 100 :]
    images.data.write_bytes(torn)
    (images.folder / "data.fs.index").unlink(missing_ok=True)
    with pytest.raises(CorruptError, match="expected whole commits; open it for writing to mend it"):
        follow(images.folder)
    images.check(torn)
    images.data.write_bytes(images.voted)
    session = Session(follow(images.folder))
    assert session.pieces == {"a": b"4"}
    session.close()
    images.check(images.voted)
