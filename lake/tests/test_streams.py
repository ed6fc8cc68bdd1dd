"""Streams: what was appended is read, an id counts once, an end is an end until more comes."""

import hashlib
import time
from itertools import pairwise
from pathlib import Path

import pytest
from clachan_lake.errors import ChunkError, CorruptError, MissingError, TakenError, TransactionError, TruncatedError
from clachan_lake.following import caught_up
from clachan_lake.format import BLOCK, PIECE_BYTES
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.streams.chunk import Digester
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ZODB.POSException import ConflictError


def test_a_stream_keeps_bytes_chunks_and_digest(tmp_path: Path) -> None:
    parts = [b"small", b"x" * (PIECE_BYTES + 1), bytes(range(256)) * 9000, b"end"]
    whole = b"".join(parts)
    with open_lake(tmp_path / "lake") as lake:
        with lake.transaction():
            stream = lake.streams.create("s")
            for number, part in enumerate(parts):
                assert stream.append(part, f"id{number}")
        assert not stream.final
    with open_lake(tmp_path / "lake") as lake:
        stream = lake.streams["s"]
        assert isinstance(lake, LocalLake)
        assert (stream.size, len(stream)) == (len(whole), len(whole))
        assert stream.read() == whole
        assert b"".join(stream.blocks(1000)) == whole
        assert stream.sha256() == hashlib.sha256(whole).hexdigest()
        chunks = list(stream.chunks())
        assert [length for _start, length, _when in chunks] == [len(part) for part in parts]
        starts = [sum(map(len, parts[:number])) for number in range(len(parts))]
        assert [start for start, _length, _when in chunks] == starts
        assert abs(time.time() - chunks[0][2] / 1000) < 60
        assert list(stream.chunks(starts[2] + 1)) == chunks[2:]
        assert list(stream.chunks(len(whole))) == []
        assert stream.read(len(whole), 10) == b""
        with pytest.raises(ValueError, match="stream s, offset and count: -1, 5, expected at least 0"):
            stream.read(-1, 5)


def test_an_id_counts_once(lake: LocalLake) -> None:
    with lake.transaction():
        stream = lake.streams.create("s")
        assert stream.append(b"abc", "one")
        assert not stream.append(b"abc", "one")
        assert stream.append(b"abc", "two")
        assert stream.append(b"abc")
    assert stream.read() == b"abcabcabc"
    with lake.transaction(), pytest.raises(ChunkError, match=r"stream s, chunk one: 3 bytes .* expected the 3 bytes"):
        stream.append(b"xyz", "one")
    with lake.transaction(), pytest.raises(TakenError, match=r"chunk id: .* expected 1-256 bytes of printable text"):
        stream.append(b"xyz", "\n")
    assert stream.read() == b"abcabcabc"


FOLLOWERS = {"each": "chunk", "whole": "end"}


def follow(lake: LocalLake) -> None:
    """Transformations that wait for a chunk and for the end of streams whose names begin with s."""
    for name, wants in FOLLOWERS.items():
        document = {"function": "csv", "source": {"kind": "stream", "pattern": "s.*"}, "on": wants}
        lake.documents("transformations").put(name, document)


def due(lake: LocalLake) -> list[str]:
    return [transformation for _kind, _source, transformation in lake.root()["due"]]


def test_what_follows_a_stream_is_due_when_something_came(lake: LocalLake) -> None:
    with lake.transaction():
        follow(lake)
        stream = lake.streams.create("s")
        lake.streams.create("other").append(b"x", final=True)
        lake.streams.create("~s").append(b"x", final=True)
    assert [one["name"] for one in stream.describe()["transformations"]] == ["each", "whole"]
    assert due(lake) == []
    with lake.transaction():
        stream.append(b"a", "1")
    assert due(lake) == ["each"]
    with lake.transaction():
        stream.append(b"", final=True)
    assert due(lake) == ["each", "whole"]
    with lake.transaction():
        for name in FOLLOWERS:
            caught_up(stream.record, lake.root()["due"], name)
    assert due(lake) == []
    with lake.transaction():
        stream.append(b"", "2", final=True)
    assert due(lake) == []


def test_more_after_the_end_opens_the_stream_again(lake: LocalLake) -> None:
    with lake.transaction():
        follow(lake)
        stream = lake.streams.create("s")
        stream.append(b"a", "1", final=True)
    assert stream.final
    assert due(lake) == ["each", "whole"]
    with lake.transaction():
        stream.append(b"b", "2")
    assert not stream.final
    assert due(lake) == ["each"]
    with lake.transaction():
        stream.append(b"b", "2", final=True)
    assert (stream.final, stream.read(), stream.describe()["ended_by"]) == (True, b"ab", "sender")
    assert due(lake) == ["each", "whole"]


def test_an_append_and_who_has_caught_up_do_not_miss_each_other(lake: LocalLake) -> None:
    with lake.transaction():
        follow(lake)
        lake.streams.create("s").append(b"a")
    with lake.session() as other:
        for first, second in ((lake, other), (other, lake)):
            lake.begin()
            other.begin()
            lake.streams["s"].append(b"b")
            caught_up(other.streams["s"].record, other.root()["due"], "each")
            first.commit()
            with pytest.raises(ConflictError):
                second.commit()
            with lake.transaction():
                lake.streams["s"].append(b"c")
            assert due(lake) == ["each"]


def test_a_deleted_stream_has_no_followers(lake: LocalLake) -> None:
    with lake.transaction():
        follow(lake)
        lake.streams.create("s").append(b"a", final=True)
    with lake.transaction():
        del lake.streams["s"]
    assert ("s" in lake.streams, due(lake), list(lake.documents("positions"))) == (False, [], [])
    with lake.transaction(), pytest.raises(MissingError, match="stream 's': none of this name"):
        del lake.streams["s"]


def test_of_a_truncated_stream_the_rest_is_read_at_its_place(lake: LocalLake) -> None:
    parts = [bytes([65 + number]) * 10 for number in range(6)]
    with lake.transaction():
        stream = lake.streams.create("s")
        for number, part in enumerate(parts):
            stream.append(part, f"id{number}")
    whole = b"".join(parts)
    with lake.transaction():
        assert stream.truncate(9) == 0
        assert stream.truncate(25) == 20
        assert stream.truncate(20) == 0
    assert (stream.start, stream.size, stream.describe()["chunks"]) == (20, 60, 4)
    assert stream.read() == b"".join(stream.blocks(7)) == whole[20:]
    assert stream.read(20, 15) == whole[20:35]
    assert next(stream.chunks())[:2] == (20, 10)
    with pytest.raises(TruncatedError, match="stream s, offset: 19, expected at least 20: what was before is not kept"):
        stream.read(19, 5)
    with pytest.raises(TruncatedError, match="offset: 0, expected at least 20"):
        stream.sha256()
    with lake.transaction():
        assert not stream.append(parts[0], "id0")
        assert stream.truncate(60) == 40
        stream.append(b"new")
        with pytest.raises(ValueError, match="stream s, before: 64, expected at most its size 63"):
            stream.truncate(64)
    assert (stream.start, stream.read(), stream.verify()) == (60, b"new", [])


def test_ids_are_recognised_until_they_are_forgotten(lake: LocalLake) -> None:
    with lake.transaction():
        stream = lake.streams.create("s")
        for number in range(5):
            stream.append(b"x", f"id{number}")
        assert stream.forget_ids(0) == 0
        assert stream.forget_ids(1 << 60) == 5
    with lake.transaction():
        assert stream.append(b"x", "id0")
        assert not stream.append(b"x", "id0")
    assert stream.read() == b"x" * 6


def test_attributes_of_a_stream(lake: LocalLake) -> None:
    with lake.transaction():
        stream = lake.streams.create("s", "raw", {"title": "<b>", "tags": ["a"]})
        stream.attrs["owner"] = "ada"
    assert dict(stream.attrs) == {"title": "<b>", "tags": ["a"], "owner": "ada"}
    assert stream.describe()["attrs"] == dict(stream.attrs)
    with pytest.raises(TransactionError, match="stream s: set attributes: outside a transaction"):
        stream.attrs["owner"] = "eve"
    with lake.transaction(), pytest.raises(TypeError, match=r"stream t, attributes: .* expected JSON values"):
        lake.streams.create("t", "raw", {"a": object()})


def test_the_end_may_come_without_bytes(lake: LocalLake) -> None:
    with lake.transaction():
        stream = lake.streams.create("s")
        stream.append(b"", "only", final=True)
    assert (stream.final, stream.size, stream.read(), stream.describe()["chunks"]) == (True, 0, b"", 0)


def test_a_corrupt_chunk_is_named(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        stream = lake.streams.create("s")
        stream.append(b"a" * 40_000)
        stream.append(b"b" * (BLOCK + 5))
    blob = max((tmp_path / "lake/blobs").rglob("*.blob"), key=lambda path: path.stat().st_size)
    blob.chmod(0o600)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with open_lake(tmp_path / "lake") as lake:
        stream = lake.streams["s"]
        assert stream.read(0, 40_000 + BLOCK) == b"a" * 40_000 + b"b" * BLOCK
        with pytest.raises(CorruptError, match="stream s, chunk at 40000, block 1: another checksum"):
            stream.read()
        assert isinstance(lake, LocalLake)
        assert len(lake.streams["s"].verify()) == 1


def test_streams_are_checked_and_many(lake: LocalLake) -> None:
    with lake.transaction():
        for number in range(500):
            lake.streams.create(f"s{number:04}").append(b"%d" % number)
    assert len(lake.streams) == 500
    assert list(lake.streams)[-1] == "s0499"
    assert lake.streams["s0123"].read() == b"123"
    with lake.transaction(), pytest.raises(TakenError, match="stream 's0001': exists"):
        lake.streams.create("s0001")
    with pytest.raises(TransactionError, match="stream s0001: append: outside a transaction"):
        lake.streams["s0001"].append(b"x")


@given(
    parts=st.lists(st.binary(max_size=30), max_size=8),
    reads=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 250)), max_size=5),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_is_what_was_appended(lake: LocalLake, parts: list[bytes], reads: list[tuple[int, int]]) -> None:
    name = f"p{len(lake.streams)}"
    with lake.transaction():
        stream = lake.streams.create(name)
        for part in parts:
            stream.append(part)
    whole = b"".join(parts)
    for offset, count in reads:
        assert stream.read(offset, count) == whole[offset : offset + count]


@given(data=st.binary(max_size=50), cuts=st.lists(st.integers(0, 50), max_size=5))
def test_digests_do_not_depend_on_how_bytes_come(data: bytes, cuts: list[int]) -> None:
    whole, parts = Digester(), Digester()
    data = data * (BLOCK // 40)
    whole.update(data)
    edges = [0, *sorted(cut * BLOCK // 20 for cut in cuts), len(data)]
    for start, stop in pairwise(edges):
        parts.update(data[start:stop])
    assert (whole.length, whole.sha256, whole.checksums) == (parts.length, parts.sha256, parts.checksums)
    assert len(whole.checksums) == 4 * -(-len(data) // BLOCK)
