"""Streams, names, and what any two sessions see of each other."""

from functools import partial

from ZODB.POSException import ConflictError

from clachan_lake.errors import ChunkError, MissingError, TakenError, TransactionError, TruncatedError
from clachan_lake.local import LocalLake
from clachan_lake.testing.sessions import OpenSession, commit, new_name, raising, side_by_side

LARGE = 100_000
"""Bytes that are kept in a blob, where there are blobs."""


class StreamContract:
    """See the package."""

    def test_a_stream_keeps_its_chunks(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                stream = lake.streams.create(name)
                assert stream.append(b"small", "first")
                assert stream.append(b"x" * LARGE, "second", final=True)
            assert lake.streams[name].read() == b"small" + b"x" * LARGE
        with open_session() as lake:
            stream = lake.streams[name]
            assert (stream.size, stream.final) == (5 + LARGE, True)
            assert stream.read(3, 4) == b"llxx"
            with lake.transaction():
                assert not stream.append(b"small", "first")
                with raising(ChunkError):
                    stream.append(b"other", "first")

    def test_names_are_taken_once_and_found(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            for things in (lake.arrays, lake.streams):
                assert name not in things
                with raising(MissingError):
                    _ = things[name]
            with lake.transaction():
                lake.streams.create(name)
                lake.arrays.create(name, (2,), "<i4")
                with raising(TakenError):
                    lake.streams.create(name)
                with raising(TakenError):
                    lake.arrays.create(name, (3,), "<i4")
            assert name in list(lake.arrays)
            assert name in list(lake.streams)
            with lake.transaction():
                del lake.arrays[name]
                del lake.streams[name]
            assert name not in lake.arrays
            assert name not in lake.streams

    def test_a_truncated_stream_keeps_the_rest_at_its_place(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                stream = lake.streams.create(name)
                stream.append(b"small")
                stream.append(b"x" * LARGE)
                stream.append(b"y" * LARGE)
            with lake.transaction():
                assert stream.truncate(LARGE) == 5
                assert stream.truncate(2 * LARGE) == LARGE
        with open_session() as lake:
            stream = lake.streams[name]
            assert (stream.start, stream.size) == (5 + LARGE, 5 + 2 * LARGE)
            assert stream.read() == b"y" * LARGE
            with raising(TruncatedError):
                stream.read(5 + LARGE - 1, 1)

    def test_documents_are_kept_with_their_bytes(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake, lake.transaction():
            lake.documents("jobs").put(name, {"n": 1}, b"z" * LARGE)
        with open_session() as lake:
            assert lake.documents("jobs")[name] == {"n": 1}
            assert lake.documents("jobs").body(name) == b"z" * LARGE

    def test_a_session_sees_a_commit_at_its_next_boundary(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as one, open_session() as other:
            with one.transaction():
                one.streams.create(name).append(b"first")
            assert name not in other.streams
            other.refresh()
            assert other.streams[name].read() == b"first"
            with one.transaction():
                one.streams[name].append(b" second")
            assert other.streams[name].read() == b"first"
            with other.transaction():
                assert other.streams[name].read() == b"first second"
            one.refresh()
            assert one.streams[name].read() == b"first second"

    def test_a_block_that_raises_changes_nothing(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with raising(ZeroDivisionError), lake.transaction():
                lake.streams.create(name).append(b"x" * LARGE)
                _ = 1 // 0
            assert name not in lake.streams
            with raising(TransactionError):
                lake.streams.create(name)
            with lake.transaction():
                lake.streams.create(name).append(b"y")
            assert lake.streams[name].read() == b"y"

    def test_two_sessions_that_add_different_names_both_commit(self, open_session: OpenSession) -> None:
        names = [new_name() for _ in range(4)]
        with open_session() as one, open_session() as other:
            one.begin()
            other.begin()
            one.streams.create(names[0]).append(b"one")
            one.arrays.create(names[1], (2,), "<i4")[:] = 1
            other.streams.create(names[2]).append(b"other")
            other.arrays.create(names[3], (2,), "<i4")[:] = 2
            one.commit()
            commit_or_again(other, names)
            one.refresh()
            for lake in (one, other):
                assert [lake.streams[name].read() for name in names[::2]] == [b"one", b"other"]
                assert [lake.arrays[name][0] for name in names[1::2]] == [1, 2]

    def test_of_two_sessions_that_add_one_name_the_slower_repeats(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as one, open_session() as other:
            one.begin()
            other.begin()
            one.streams.create(name).append(b"one")
            other.streams.create(name).append(b"other")
            one.commit()
            with raising(ConflictError):
                other.commit()
            with other.transaction():
                assert other.streams[name].read() == b"one"

    def test_of_two_sessions_that_append_to_one_stream_the_slower_repeats(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as one, open_session() as other:
            with one.transaction():
                one.streams.create(name)
            one.begin()
            other.begin()
            one.streams[name].append(b"one")
            other.streams[name].append(b"x" * LARGE)
            one.commit()
            with raising(ConflictError):
                other.commit()
            assert other.streams[name].read() == b"one"
            commit(other, lambda lake: lake.streams[name].append(b"x" * LARGE))
            one.refresh()
            assert one.streams[name].read() == b"one" + b"x" * LARGE

    def test_streams_that_grow_at_the_same_time_lose_nothing(self, open_session: OpenSession) -> None:
        shared, chunks = new_name(), 10
        with open_session() as lake, lake.transaction():
            lake.streams.create(shared)

        def write(letter: bytes) -> None:
            with open_session() as lake:
                for _ in range(chunks):
                    commit(lake, lambda found: found.streams[shared].append(letter * 3))

        side_by_side(*(partial(write, letter) for letter in (b"a", b"b", b"c")))
        with open_session() as lake:
            data = lake.streams[shared].read()
        assert sorted(data[at : at + 3] for at in range(0, len(data), 3)) == sorted(
            letter * 3 for letter in (b"a", b"b", b"c") for _ in range(chunks)
        )


def commit_or_again(lake: LocalLake, names: list[str]) -> None:
    """Two names are merged, but where a bucket of the index was split at the same time: then one does it again."""
    try:
        lake.commit()
    except ConflictError:
        with lake.transaction():
            lake.streams.create(names[2]).append(b"other")
            lake.arrays.create(names[3], (2,), "<i4")[:] = 2
