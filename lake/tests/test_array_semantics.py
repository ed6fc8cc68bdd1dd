"""What wendelin.core's ZBigArray promises, on arrays of a lake; docs/arrays.md names the test of each promise."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from ZODB.POSException import ConflictError

CHUNK = 4096
NUMBERS = CHUNK // 4
"""Of `<u4` in a chunk."""


@pytest.fixture
def other(lake: LocalLake) -> Iterator[LocalLake]:
    with lake.session() as opened:
        yield opened


def make(lake: LocalLake, shape: Any, dtype: Any = "<u4", **more: Any) -> Any:
    with lake.transaction():
        return lake.arrays.create("a", shape, dtype, chunk_bytes=CHUNK, **more)


def indexes(length: int) -> list[Any]:
    return [slice(None), 0, -1, length // 2, slice(1, -1), slice(length // 4, -1, 2), slice(-1, 0, -3), slice(5, 5)]


def test_it_has_the_attributes_of_an_ndarray(lake: LocalLake) -> None:
    array, plain = make(lake, (10, 3), "<i4"), np.zeros((10, 3), "<i4")
    for name in ("shape", "dtype", "ndim", "size", "nbytes"):
        assert getattr(array, name) == getattr(plain, name), name
    assert len(array) == 10
    assert array.dtype.itemsize == 4
    assert array[:].strides == plain.strides


@pytest.mark.parametrize(
    ("given", "shape"), [([1, 4, 3], (1, 4, 3)), (42, (42,)), ((4, 4), (4, 4)), (np.int64(5), (5,))]
)
def test_a_shape_is_a_number_or_a_sequence(lake: LocalLake, given: Any, shape: tuple[int, ...]) -> None:
    assert make(lake, given).shape == shape


@pytest.mark.parametrize("order", ["C", "F"])
def test_slices_are_what_numpy_slices(lake: LocalLake, order: str) -> None:
    shape = (11, 7, 13)
    array, plain = make(lake, shape, order=order), np.arange(1001, dtype="<u4").reshape(shape, order=order)
    with lake.transaction():
        array[...] = plain
    for key in itertools.product(*(indexes(length) for length in shape)):
        found, expected = np.asarray(array[key]), np.asarray(plain[key])
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        # of what has no elements, or one, numpy's strides say nothing
        assert found.strides == expected.strides or found.size < 2
        assert found.size == 0 or np.shares_memory(found, array[...]) or found.ndim == 0


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_index_outside_raises_and_a_slice_outside_is_empty(lake: LocalLake, order: str) -> None:
    shape = (5, 6, 7)
    array = make(lake, shape, order=order)
    for axis, length in enumerate(shape):
        key: list[Any] = [0, 0, 0]
        for wrong in (length, -length - 1):
            key[axis] = wrong
            with pytest.raises(IndexError, match=f"out of bounds for axis {axis} with size {length}"):
                array[tuple(key)]
        key[axis] = slice(length, length + 1)
        assert array[tuple(key)].size == 0
    with pytest.raises(IndexError, match="too many indices"):
        array[0, 0, 0, 0]


def test_masks_lists_and_new_axes_are_numpys(lake: LocalLake) -> None:
    """The reference refuses lists and masks: they copy, and so they do here."""
    array, plain = make(lake, (50, 3)), np.arange(150, dtype="<u4").reshape(50, 3)
    with lake.transaction():
        array[:] = plain
        array[[3, 5]] = 9
        plain[[3, 5]] = 9
    for key in ([4, 1, 1], plain % 2 == 0, (np.newaxis, 3), (Ellipsis, 1), (slice(2), [0, 2])):
        np.testing.assert_array_equal(array[key], plain[key])
    picked = array[[0, 1]]
    picked[:] = 77
    np.testing.assert_array_equal(array[:], plain)


def test_slices_overlap_and_write_through(lake: LocalLake) -> None:
    array = make(lake, 10 * NUMBERS)
    with lake.transaction():
        whole, late, odd = array[:], array[4 * NUMBERS :], array[4 * NUMBERS + 3 : 9 * NUMBERS - 3]
        back, steps = array[9 * NUMBERS : 4 * NUMBERS : -1], array[4 * NUMBERS + 3 : 9 * NUMBERS - 3 : 7]
        whole[5 * NUMBERS] = 1
        assert late[NUMBERS] == 1
        odd[0], odd[-1], odd[7] = 3, 99, 8
        assert (late[3], whole[9 * NUMBERS - 4], back[4], steps[1]) == (3, 99, 99, 8)
        back[0] = 11
        assert whole[9 * NUMBERS] == 11
        array[2 * NUMBERS + 1 : 3 * NUMBERS + 2] = 5
        assert (whole[2 * NUMBERS : 2 * NUMBERS + 3].tolist(), whole[3 * NUMBERS + 2]) == ([0, 5, 5], 0)
        array[2 * NUMBERS + 2 : 2 * NUMBERS + 5] = [6, 7, 8]
        assert whole[2 * NUMBERS : 2 * NUMBERS + 7].tolist() == [0, 5, 6, 7, 8, 5, 5]
        with pytest.raises(ValueError, match="broadcast"):
            array[:4] = range(5)
    assert array[5 * NUMBERS] == 1
    np.testing.assert_array_equal(array[:], whole)


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_appended_along_the_growing_axis(lake: LocalLake, order: str) -> None:
    def rows(first: int, stop: int) -> Any:
        plain = np.arange(first * 6, stop * 6).reshape(stop - first, 3, 2)
        return plain if order == "C" else plain.T

    array = make(lake, rows(0, 0).shape, "<i8", order=order)
    with lake.transaction():
        array.append(rows(0, 2))
        array.append(rows(2, 3))
        array.append(rows(3, 4).tolist())
        for wrong in (np.arange(3), rows(0, 1)[0], rows(0, 1)[:, :1]):
            with pytest.raises(ValueError, match="appended rows: shape"):
                array.append(wrong)
        with pytest.raises((TypeError, ValueError)):
            array.append(rows(0, 1).astype(object) * "abc")
        np.testing.assert_array_equal(array[:], rows(0, 4))
    np.testing.assert_array_equal(array[:], rows(0, 4))


def test_it_grows_with_zeros_and_views_stay_parts_of_it(lake: LocalLake) -> None:
    array = make(lake, (10, 3))
    with lake.transaction():
        array[:] = np.arange(30).reshape(10, 3)
        before = array[:]
        array.resize((11, 3))
        after = array[:]
        assert (after.shape, before.shape) == ((11, 3), (10, 3))
        np.testing.assert_array_equal(after[:10], before)
        assert after[10].tolist() == [0, 0, 0]
        before[0, 0] = 7
        after[9, 2] = 8
        assert (after[0, 0], before[9, 2]) == (7, 8)
        with pytest.raises(IndexError):
            before[10]
    assert (array[0, 0], array[9, 2]) == (7, 8)
    with lake.transaction():
        array.resize(2, 3)
        array.resize(4, 3)
    assert array[:].tolist() == [[7, 1, 2], [3, 4, 5], [0, 0, 0], [0, 0, 0]]


def test_it_becomes_a_list_or_an_ndarray_without_a_copy(lake: LocalLake) -> None:
    array = make(lake, 10, "u1")
    assert list(array) == [0] * 10
    found = np.asarray(array)
    np.testing.assert_array_equal(found, np.zeros(10, "u1"))
    assert not found.flags.owndata


def test_more_than_memory_is_one_ndarray(lake: LocalLake) -> None:
    array = make(lake, 1 << 40, "u1")
    whole = np.asarray(array)
    assert isinstance(whole, np.ndarray)
    assert whole.nbytes == 1 << 40
    assert whole[-1] == 0


@pytest.mark.parametrize("power", [47, 48, 62, 64, 80])
def test_more_than_the_address_space_is_refused_when_it_is_made(lake: LocalLake, power: int) -> None:
    with pytest.raises(ValueError, match="expected at most 70368744177664 bytes: the room of a process"):
        make(lake, (1 << power) - 1, "u1")


def test_an_abort_is_seen_in_every_view(lake: LocalLake) -> None:
    array = make(lake, 16 << 20, "u1")
    lake.begin()
    one = array[:]
    one[[1, 3, 5, -1]] = 1, 3, 5, 99
    two = array[:]
    assert (two[:6].tolist(), two[-1]) == ([0, 1, 0, 3, 0, 5], 99)
    lake.abort()
    assert not one.any()
    assert not two.any()
    assert not array[:].any()


def test_views_are_used_in_the_next_transaction(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake:
        array = make(lake, 16 << 20, "u1")
        with lake.transaction():
            view = array[:]
            view[33] = 33
        with lake.transaction():
            view[-2] = 98
        assert (view[33], view[-2], view[-1]) == (33, 98, 0)
    with open_lake(tmp_path / "lake") as lake:
        found = lake.arrays["a"][:]
        assert (found[33], found[-2], int(found.sum())) == (33, 98, 131)


def test_a_view_writes_after_the_cache_was_emptied(tmp_path: Path) -> None:
    with open_lake(tmp_path / "lake") as lake:
        array = make(lake, 1 << 20, "u1")
        lake.begin()
        view = array[:]
        view[0] = 1
        lake._connection.cacheMinimize()
        view[-1] = 99
        lake.commit()
    with open_lake(tmp_path / "lake") as lake:
        assert (lake.arrays["a"][0], lake.arrays["a"][-1]) == (1, 99)


def test_another_connection_sees_it_at_its_next_boundary(lake: LocalLake, other: LocalLake) -> None:
    array = make(lake, 10 * NUMBERS)
    other.refresh()
    theirs = other.arrays["a"]
    view = theirs[:]
    far = view[9 * NUMBERS :]
    with lake.transaction():
        array[0] = 2
        array[9 * NUMBERS] = 3
    assert (view[0], far[0], theirs[0]) == (0, 0, 0)
    other._connection.cacheMinimize()
    assert (view[0], far[0], other.arrays["a"][0]) == (0, 0, 0)
    other.refresh()
    assert (view[0], far[0], theirs[0]) == (2, 3, 2)


def test_only_changed_chunks_are_mapped_anew(
    lake: LocalLake, other: LocalLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clachan_lake.arrays import pages

    array = make(lake, 10 * NUMBERS)
    with lake.transaction():
        array[:] = 1
    other.refresh()
    view = other.arrays["a"][:]
    assert int(view.sum()) == 10 * NUMBERS
    with lake.transaction():
        array[3 * NUMBERS] = 5
    mapped: list[tuple[int, int]] = []
    real = pages.map_private
    monkeypatch.setattr(
        pages,
        "map_private",
        lambda address, length, *rest: (mapped.append((address, length)), real(address, length, *rest))[1],
    )
    other.refresh()
    assert view[3 * NUMBERS] == 5
    base = view.__array_interface__["data"][0]
    assert mapped == [(base + 3 * CHUNK, CHUNK)]


def test_another_shape_is_seen_at_the_next_boundary(lake: LocalLake, other: LocalLake) -> None:
    array = make(lake, 10)
    other.refresh()
    theirs = other.arrays["a"]
    assert theirs.shape == (10,)
    with lake.transaction():
        array.append([123])
        assert (array.shape, array[10]) == ((11,), 123)
    assert theirs.shape == (10,)
    other.refresh()
    assert (theirs.shape, theirs[10]) == ((11,), 123)


def test_the_slower_of_two_writers_gets_a_conflict_and_goes_on(lake: LocalLake, other: LocalLake) -> None:
    array = make(lake, 10)
    other.refresh()
    theirs = other.arrays["a"]
    for session, own, value in ((lake, array, 11), (other, theirs, 12)):
        session.begin()
        own[0] = value
    lake.commit()
    with pytest.raises(ConflictError):
        other.commit()
    assert theirs[0] == 11
    with other.transaction():
        theirs[0] = 13
    assert array[0] == 11
    lake.refresh()
    assert array[0] == 13


def test_the_slower_of_two_resizes_gets_a_conflict(lake: LocalLake, other: LocalLake) -> None:
    array = make(lake, 10)
    other.refresh()
    theirs = other.arrays["a"]
    lake.begin()
    other.begin()
    array.resize(11)
    theirs.resize(12)
    lake.commit()
    with pytest.raises(ConflictError):
        other.commit()
    assert len(theirs) == 11
    with other.transaction():
        theirs.resize(13)
    assert len(array) == 11
    lake.refresh()
    assert len(array) == 13


def test_it_is_used_before_the_first_commit_without_one(lake: LocalLake, other: LocalLake) -> None:
    before = lake.tid
    lake.begin()
    array = lake.arrays.create("a", (0, 2), "<i4")
    array.append([[1, 2]])
    view = array[:]
    view[0, 1] = 5
    array.resize(3, 2)
    assert array[:].tolist() == [[1, 5], [0, 0], [0, 0]]
    other.refresh()
    assert "a" not in other.arrays
    assert other.tid == before
    lake.abort()
    assert "a" not in lake.arrays
    lake.refresh()
    assert lake.tid == before


def test_a_connection_that_is_used_again_brings_no_stores_along(lake: LocalLake) -> None:
    array = make(lake, 10)
    with lake.transaction():
        array[0] = 11
    one = lake.session()
    one.begin()
    one.arrays["a"][0] = 21
    one.close()
    with lake.session() as two:
        two.begin()
        two.commit()
        assert two.arrays["a"][0] == 11
        with two.transaction():
            two.arrays["a"][0] = 22
    lake.refresh()
    assert array[0] == 22


def test_a_value_with_leading_axes_of_one_is_stored_as_numpy_does(lake: LocalLake) -> None:
    array, plain = make(lake, 3), np.zeros(3, "<u4")
    with lake.transaction():
        array[0:3] = np.ones((1, 3))
        plain[0:3] = np.ones((1, 3))
    np.testing.assert_array_equal(array[:], plain)


def test_stores_far_apart_in_one_transaction(lake: LocalLake) -> None:
    with lake.transaction():
        array = lake.arrays.create("a", 1 << 40, "u1")
        array[0] = 1
        view = array[:10]
        array[-1] = 2
        view[1] = 3
    assert (array[0], array[1], array[-1]) == (1, 3, 2)
