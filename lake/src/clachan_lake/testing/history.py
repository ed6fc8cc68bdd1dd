"""The past: what was, for as long as it is read or kept."""

import numpy as np

from clachan_lake.errors import LakeReadOnlyError, MissingError
from clachan_lake.keeping.packing import pack
from clachan_lake.testing.arrays import CHUNK, check, sample
from clachan_lake.testing.sessions import OpenSession, new_name, raising


class HistoryContract:
    """See the package."""

    def test_an_array_has_its_history(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            states = []
            for turn in range(4):
                with lake.transaction(f"turn {turn}"):
                    if turn == 0:
                        lake.arrays.create(name, (0,), "<i4", chunk_bytes=CHUNK)
                    lake.arrays[name].append(sample((turn * 700,), "<i4"))
                    lake.arrays[name][:1] = turn
                states.append(lake.arrays[name][:].copy())
            history = lake.arrays[name].history()
            assert [revision.note for revision in history] == ["turn 3", "turn 2", "turn 1", "turn 0"]
            assert [revision.shape for revision in history] == [state.shape for state in reversed(states)]
            for revision, state in zip(history, reversed(states), strict=True):
                check(lake.arrays[name].at(revision.id), state)
            with lake.at(history[1].id) as past:
                check(past.arrays[name], states[2])
                with raising(LakeReadOnlyError), past.transaction():
                    pass

    def test_a_snapshot_is_what_it_was(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                lake.arrays.create(name, (3000,), "<i4", chunk_bytes=CHUNK)[:] = 1
            snapshot = lake.arrays[name].snapshot()
            with lake.transaction():
                lake.arrays[name][:] = 2
                lake.arrays[name].resize(10)
            check(snapshot, np.ones(3000, "<i4"))
            check(lake.arrays[name], np.full(10, 2, "<i4"))

    def test_the_past_is_there_also_behind_a_savepoint(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                lake.arrays.create(name, (3000,), "<i4", chunk_bytes=CHUNK)[:] = 1
            made = lake.tid
            with lake.transaction():
                lake.arrays[name][:] = 2
                lake.savepoint()
                assert lake.tid == made
                check(lake.arrays[name].snapshot(), np.ones(3000, "<i4"))
                check(lake.arrays[name], np.full(3000, 2, "<i4"))

    def test_an_array_that_is_deleted_and_packed_away(self, open_session: OpenSession) -> None:
        """Under a session that has it open: the session goes on, and so does a view of what there was."""
        name, other = new_name(), new_name()
        with open_session() as lake, open_session() as reader:
            with lake.transaction():
                lake.arrays.create(name, (3000,), "<i4", chunk_bytes=CHUNK)[:] = 1
                lake.arrays.create(other, (3000,), "<i4", chunk_bytes=CHUNK)
            reader.refresh()
            kept = reader.arrays[name]
            view = kept[:]
            with lake.transaction():
                del lake.arrays[name]
            reader.refresh()
            for _ in range(2):
                pack(lake, 0)
                reader.refresh()
            assert name not in reader.arrays
            assert np.array_equal(view, np.ones(3000, "<i4"))
            with reader.transaction():
                with raising(MissingError):
                    kept[0] = 2
                reader.arrays[other][:] = 3
            lake.refresh()
            check(lake.arrays[other], np.full(3000, 3, "<i4"))

    def test_an_array_whose_deletion_is_taken_back(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                array = lake.arrays.create(name, (3000,), "<i4", chunk_bytes=CHUNK)
            lake.begin()
            array[:] = 1
            del lake.arrays[name]
            lake.abort()
            with lake.transaction():
                array[:] = 2
                point = lake.savepoint()
                array[:] = 3
                del lake.arrays[name]
                with raising(MissingError):
                    array[:] = 4
                point.rollback()
                array[5] = 5
            expected = np.full(3000, 2, "<i4")
            expected[5] = 5
            check(array, expected)
            check(lake.arrays[name], expected)
            with open_session() as again:
                check(again.arrays[name], expected)

    def test_packing_takes_nothing_that_is_there_or_being_read(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake, open_session() as reader:
            with lake.transaction():
                lake.arrays.create(name, (3000,), "<i4", chunk_bytes=CHUNK)[:] = 1
                lake.streams.create(name).append(b"x" * 100_000)
            reader.refresh()
            before = reader.arrays[name][:].copy()
            for turn in range(3):
                with lake.transaction():
                    lake.arrays[name][:] = turn
            pack(lake, 0)
            check(lake.arrays[name], np.full(3000, 2, "<i4"))
            assert lake.streams[name].read() == b"x" * 100_000
            assert np.array_equal(reader.arrays[name][:], before)
            assert reader.arrays[name].verify() == []
            check(reader.arrays[name].snapshot(), before)
            with reader.session() as again:
                again.refresh()
                check(again.arrays[name], np.full(3000, 2, "<i4"))
        with open_session() as lake:
            check(lake.arrays[name], np.full(3000, 2, "<i4"))
            assert lake.arrays[name].verify() == []
