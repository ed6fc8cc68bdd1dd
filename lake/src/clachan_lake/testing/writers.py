"""Arrays that several sessions read and write."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from ZODB.POSException import ConflictError

from clachan_lake.local import LocalLake
from clachan_lake.testing.arrays import CHUNK, check, sample
from clachan_lake.testing.sessions import OpenSession, commit, new_name, raising, side_by_side

VALUES = CHUNK // 8
"""In a chunk of float64."""


def make(open_session: OpenSession, length: int) -> str:
    name = new_name()
    with open_session() as lake, lake.transaction():
        lake.arrays.create(name, (length,), "<f8", chunk_bytes=CHUNK)
    return name


def store(name: str, key: Any, value: Any) -> Callable[[LocalLake], None]:
    def change(lake: LocalLake) -> None:
        lake.arrays[name][key] = value

    return change


def add_one(name: str, key: int) -> Callable[[LocalLake], None]:
    def change(lake: LocalLake) -> None:
        lake.arrays[name][key] += 1

    return change


def append(name: str, rows: Any) -> Callable[[LocalLake], None]:
    return lambda lake: lake.arrays[name].append(rows)


class WriterContract:
    """See the package."""

    def test_writers_of_different_chunks_both_commit(self, open_session: OpenSession) -> None:
        name = make(open_session, 4 * VALUES)
        with open_session() as one, open_session() as other:
            for turn in (1, 2):  # chunks that are not there yet, and then chunks that are
                one.begin()
                other.begin()
                one.arrays[name][0] = turn
                other.arrays[name][3 * VALUES] = turn + 0.5
                one.commit()
                other.commit()
                one.refresh()
                expected = np.zeros(4 * VALUES)
                expected[0], expected[3 * VALUES] = turn, turn + 0.5
                for lake in (one, other):
                    check(lake.arrays[name], expected)

    def test_of_two_writers_of_one_chunk_the_slower_repeats(self, open_session: OpenSession) -> None:
        name = make(open_session, 2 * VALUES)
        with open_session() as one, open_session() as other:
            for turn in (1, 2):
                one.begin()
                other.begin()
                one.arrays[name][0] = turn
                other.arrays[name][5] = turn
                one.commit()
                with raising(ConflictError):
                    other.commit()
                assert other.arrays[name][:6].tolist() == [turn, 0, 0, 0, 0, turn - 1]
                commit(other, store(name, 5, turn))
                one.refresh()
                assert one.arrays[name][:6].tolist() == [turn, 0, 0, 0, 0, turn]

    def test_appends_at_the_same_time_are_both_kept(self, open_session: OpenSession) -> None:
        name = make(open_session, 0)
        with open_session() as one, open_session() as other:
            for turn in range(3):
                one.begin()
                other.begin()
                one.arrays[name].append([1.0, turn])
                other.arrays[name].append([2.0, turn, turn])
                one.commit()
                other.commit()
                one.refresh()
            for lake in (one, other):
                check(lake.arrays[name], np.array([1.0, 0, 2, 0, 0, 1, 1, 2, 1, 1, 1, 2, 2, 2, 2]))

    def test_an_append_and_a_change_at_the_same_time_are_both_kept(self, open_session: OpenSession) -> None:
        name = make(open_session, 3 * VALUES)
        for append_first in (True, False):
            with open_session() as one, open_session() as other:
                one.begin()
                other.begin()
                one.arrays[name].append([7.0])
                other.arrays[name][VALUES] += 1
                for lake in (one, other) if append_first else (other, one):
                    lake.commit()
                one.refresh()
                other.refresh()
                for lake in (one, other):
                    assert lake.arrays[name][-1] == 7
                    assert lake.arrays[name][VALUES] == (1 if append_first else 2)
        with open_session() as lake:
            assert lake.arrays[name].shape == (3 * VALUES + 2,)
            assert lake.arrays[name].verify() == []

    def test_appends_of_several_threads_are_never_lost(self, open_session: OpenSession) -> None:
        name, writers, turns, length = make(open_session, 0), 4, 12, 50

        def write(number: int) -> None:
            with open_session() as lake:
                for turn in range(turns):
                    rows = np.full(length, number * turns + turn, "<f8")
                    commit(lake, append(name, rows))

        side_by_side(*(partial(write, number) for number in range(writers)))
        with open_session() as lake:
            found = lake.arrays[name][:].reshape(-1, length)
            assert np.all(found == found[:, :1]), "rows of one append stand together"
            assert sorted(found[:, 0]) == list(range(writers * turns))
            for number in range(writers):
                own = found[:, 0][found[:, 0] // turns == number]
                assert np.all(np.diff(own) > 0), "appends of one session stay in their order"
            assert lake.arrays[name].verify() == []

    def test_counters_that_several_threads_raise(self, open_session: OpenSession) -> None:
        name, writers, turns = make(open_session, 8 * VALUES), 3, 10

        def write(number: int) -> None:
            with open_session() as lake:
                for _ in range(turns):
                    commit(lake, add_one(name, 0))
                    commit(lake, add_one(name, (number + 1) * VALUES))

        side_by_side(*(partial(write, number) for number in range(writers)))
        with open_session() as lake:
            assert lake.arrays[name][::VALUES].tolist() == [writers * turns, *[turns] * writers, 0, 0, 0, 0]

    def test_a_view_shows_a_commit_after_the_next_boundary(self, open_session: OpenSession) -> None:
        name = make(open_session, 4 * VALUES)
        with open_session() as one, open_session() as other:
            view = other.arrays[name][:]
            part = other.arrays[name][VALUES : 2 * VALUES]
            with one.transaction():
                one.arrays[name][VALUES + 3] = 5
                one.arrays[name][0] = 4
            assert not view.any()
            other.refresh()
            assert (view[VALUES + 3], view[0], part[3]) == (5, 4, 5)
            with one.transaction():
                one.arrays[name][VALUES + 3] = 6
            with other.transaction():
                assert (view[VALUES + 3], part[3]) == (6, 6)

    def test_a_snapshot_stays_while_others_write(self, open_session: OpenSession) -> None:
        name, length = make(open_session, 6 * VALUES), 6 * VALUES
        with open_session() as reader:
            view, seen = reader.arrays[name][:], []

            def read() -> None:
                for _ in range(30):
                    seen.append(set(np.unique(view)))
                    assert reader.arrays[name].shape == (length,)

            def write() -> None:
                with open_session() as lake:
                    for number in range(1, 15):
                        commit(lake, store(name, slice(None), number))

            side_by_side(read, write)
            assert seen == [{0.0}] * 30
            reader.refresh()
            assert set(np.unique(view)) == {14.0}

    def test_a_reader_sees_only_whole_commits(self, open_session: OpenSession) -> None:
        name = make(open_session, 5 * VALUES)
        seen: list[float] = []

        def read() -> None:
            with open_session() as lake:
                for _ in range(60):
                    lake.refresh()
                    values = np.unique(lake.arrays[name][:])
                    assert len(values) == 1, values
                    seen.append(values[0])

        def write() -> None:
            with open_session() as lake:
                for number in range(20):
                    commit(lake, store(name, slice(None), number))

        side_by_side(read, write)
        assert seen == sorted(seen)

    def test_a_session_goes_on_after_a_conflict(self, open_session: OpenSession) -> None:
        name = make(open_session, 3 * VALUES)
        with open_session() as one, open_session() as other:
            rows = sample((2 * VALUES,), "<f8")
            one.begin()
            other.begin()
            one.arrays[name][0] = 1
            other.arrays[name][:] = 2
            other.arrays[name].append(rows)
            one.commit()
            with raising(ConflictError):
                other.commit()
            expected = np.zeros(3 * VALUES)
            expected[0] = 1
            check(other.arrays[name], expected)
            with other.transaction():
                other.arrays[name].append(rows)
            one.refresh()
            check(one.arrays[name], np.concatenate([expected, rows]))
