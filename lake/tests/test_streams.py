"""Streams: what was appended is read, an id counts once, an end is an end until more comes."""

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
from clachan_lake.errors import ChunkError, CorruptError, TakenError, TransactionError
from clachan_lake.format import BLOCK, PIECE_BYTES
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.streams.chunk import Digester
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


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
        lengths = [length for _start, length in lake.streams["s"].chunks()]
        assert lengths == [len(part) for part in parts]
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


def test_more_after_the_end_opens_the_stream_again(lake: LocalLake) -> None:
    with lake.transaction():
        stream = lake.streams.create("s", "wav", "wav")
        stream.append(b"a", "1", final=True)
    assert stream.final
    assert stream.describe()["transformation"]["state"] == "pending"
    assert list(lake.root()["pending"]) == ["s"]
    with lake.transaction():
        stream.append(b"b", "2")
    assert (stream.final, stream.describe()["transformation"]["state"]) == (False, "waiting")
    assert list(lake.root()["pending"]) == []
    with lake.transaction():
        stream.append(b"b", "2", final=True)
    assert (stream.final, stream.read(), stream.describe()["ended_by"]) == (True, b"ab", "sender")
    assert list(lake.root()["pending"]) == ["s"]


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
