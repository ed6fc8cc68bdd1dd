"""Arrays of one session, beside numpy's."""

from itertools import product
from typing import Any

import numpy as np
from ZODB.POSException import ConflictError

from clachan_lake.errors import MissingError, TransactionError
from clachan_lake.testing.sessions import OpenSession, new_name, raising

CHUNK = 4096
DTYPES = ("<i2", ">f8", "<c16", "?", "S5", [("t", "<i8"), ("v", "<f4", (3,))])
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (7,), (5000,), (0, 3), (1300, 3), (30, 20, 9))


def sample(shape: tuple[int, ...], dtype: Any) -> Any:
    """Bytes that differ from each other."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    data = np.random.default_rng(count).integers(0, 2 if kind.kind == "b" else 120, count, np.uint8)
    return np.frombuffer(data.tobytes(), kind).reshape(shape)


class ArrayContract:
    """See the package."""

    def test_what_is_stored_is_read_again(self, open_session: OpenSession) -> None:
        made = {
            new_name(): (sample(shape, dtype), order) for dtype, shape, order in product(DTYPES, SHAPES, ("C", "F"))
        }
        with open_session() as lake:
            with lake.transaction():
                for name, (values, order) in made.items():
                    array = lake.arrays.create(name, values.shape, values.dtype, order=order, chunk_bytes=CHUNK)
                    array[...] = values
            for name, (values, _order) in made.items():
                check(lake.arrays[name], values)
        with open_session() as lake:
            for name, (values, order) in made.items():
                check(lake.arrays[name], values)
                assert lake.arrays[name].order == order
                assert lake.arrays[name].verify() == []

    def test_it_is_zero_where_nothing_was_stored(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                lake.arrays.create(name, (10_000, 10), "<f4", chunk_bytes=CHUNK)[5000] = 1
            array = lake.arrays[name]
            assert array[:].sum() == 10
            assert array[5000].tolist() == [1] * 10
            assert not array[:5000].any()

    def test_attributes_and_units(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake, lake.transaction():
            array = lake.arrays.create(name, (1,), "<i4", {"rate": 48000, "names": ["a", "b"]}, units="V")
            array.attrs["more"] = {"x": None}
            del array.attrs["rate"]
        with open_session() as lake:
            assert dict(lake.arrays[name].attrs) == {"names": ["a", "b"], "units": "V", "more": {"x": None}}
            assert lake.arrays[name].units == "V"

    def test_stores_through_views_are_kept(self, open_session: OpenSession) -> None:
        name, expected = new_name(), np.zeros((3000, 4), "<i4")
        with open_session() as lake:
            with lake.transaction():
                array = lake.arrays.create(name, expected.shape, "<i4", chunk_bytes=CHUNK)
                for values in (array[:], expected):
                    values[::7, 1] = 5
                    values[10:20] += 3
                    values.T[2, 100] = 9
            check(lake.arrays[name], expected)
        with open_session() as lake:
            check(lake.arrays[name], expected)

    def test_views_are_for_reading_outside_a_transaction(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                lake.arrays.create(name, (10,), "<i4")[:] = 1
            array = lake.arrays[name]
            with raising(ValueError):
                array[:][0] = 2
            with raising(TransactionError):
                array.append([1])
            with raising(TransactionError):
                array.resize(2)
            with raising(TransactionError):
                array[0] = 1
            assert array[:].tolist() == [1] * 10

    def test_it_grows_and_is_cut(self, open_session: OpenSession) -> None:
        for order in ("C", "F"):
            name = new_name()
            with open_session() as lake:
                expected = np.zeros((0, 3), "<i8") if order == "C" else np.zeros((3, 0), "<i8")
                with lake.transaction():
                    lake.arrays.create(name, expected.shape, "<i8", order=order, chunk_bytes=CHUNK)
                for count in (1, 2, 700, 5, 0, 3000):
                    rows = sample((count, 3), "<i8") if order == "C" else sample((3, count), "<i8")
                    expected = np.concatenate([expected, rows], axis=0 if order == "C" else 1)
                    with lake.transaction():
                        lake.arrays[name].append(rows)
                    check(lake.arrays[name], expected)
                for length in (2000, 2500, 10, 0, 4000):
                    shape = (length, 3) if order == "C" else (3, length)
                    flat = np.zeros(length * 3, "<i8")
                    kept = min(length * 3, expected.size)
                    flat[:kept] = expected.ravel(order)[:kept]
                    expected = flat.reshape(shape, order=order)
                    with lake.transaction():
                        lake.arrays[name].resize(*shape)
                    check(lake.arrays[name], expected)
            with open_session() as lake:
                check(lake.arrays[name], expected)

    def test_an_abort_forgets_all_of_it(self, open_session: OpenSession) -> None:
        name, expected = new_name(), sample((2000, 2), "<i4")
        with open_session() as lake:
            with lake.transaction():
                lake.arrays.create(name, (2000, 2), "<i4", {"a": 1}, chunk_bytes=CHUNK)[:] = expected
            view = lake.arrays[name][:]
            lake.begin()
            array = lake.arrays[name]
            array[5:1500] = 0
            array.append([[1, 2]] * 1000)
            array.attrs["a"] = 2
            lake.arrays.create(name + "-new", (1,), "<i4")
            lake.abort()
            check(lake.arrays[name], expected)
            assert np.array_equal(view, expected)
            assert dict(lake.arrays[name].attrs) == {"a": 1}
            with raising(MissingError):
                _ = lake.arrays[name + "-new"]
            with lake.transaction():
                lake.arrays[name].append([[3, 4]])
            check(lake.arrays[name], np.concatenate([expected, np.array([[3, 4]], "<i4")]))

    def test_a_savepoint_is_where_it_goes_back_to(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                array = lake.arrays.create(name, (3000,), "<i4", chunk_bytes=CHUNK)
                array[:10] = 1
                point = lake.savepoint()
                array[5:2000] = 2
                array.append([7, 8])
                lake.arrays.create(name + "-new", (1,), "<i4")
                point.rollback()
                assert array.shape == (3000,)
                array[20] = 3
            expected = np.zeros(3000, "<i4")
            expected[:10], expected[20] = 1, 3
            check(lake.arrays[name], expected)
            assert name + "-new" not in lake.arrays
        with open_session() as lake:
            check(lake.arrays[name], expected)

    def test_savepoints_one_behind_the_other(self, open_session: OpenSession) -> None:
        """Each is gone back to, the last first, and then the transaction is aborted."""
        name = new_name()
        with open_session() as lake:
            with lake.transaction():
                array = lake.arrays.create(name, (3000,), "<i4", chunk_bytes=CHUNK)
            lake.begin()
            points, expected = [], [np.zeros(3000, "<i4")]
            for turn, key in enumerate((80, slice(2000, 2900), slice(0, 3000, 7), slice(None)), 1):
                points.append(lake.savepoint())
                array[key] = turn
                expected.append(array[:].copy())
            lake.savepoint()
            for point, state in zip(reversed(points), expected[-2::-1], strict=True):
                point.rollback()
                check(array, state)
            array[:] = 9
            lake.savepoint()
            points[0].rollback()
            lake.abort()
            check(array, expected[0])

    def test_a_new_array_is_used_before_it_is_committed(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as lake, open_session() as other:
            lake.begin()
            array = lake.arrays.create(name, (2,), "<i4")
            array[:] = [1, 2]
            array.append([3])
            assert array[:].tolist() == [1, 2, 3]
            other.refresh()
            assert name not in other.arrays
            lake.commit()
            other.refresh()
            assert other.arrays[name][:].tolist() == [1, 2, 3]

    def test_a_deleted_array_that_another_writes_to_is_a_conflict(self, open_session: OpenSession) -> None:
        name = new_name()
        with open_session() as one, open_session() as other:
            with one.transaction():
                one.arrays.create(name, (10,), "<i4")[:] = 1
            one.begin()
            other.begin()
            del one.arrays[name]
            other.arrays[name][0] = 2
            one.commit()
            with raising(ConflictError):
                other.commit()
            other.refresh()
            assert name not in other.arrays


def check(array: Any, expected: Any) -> None:
    """Shape, dtype, and every byte."""
    found = array[...]
    assert array.shape == found.shape == expected.shape
    assert array.dtype == found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()
