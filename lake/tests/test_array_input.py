"""What is no shape, no dtype, no row, no index: numpy's own error or a clearer one, and nothing has changed."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from clachan_lake.arrays.index import plan
from clachan_lake.local import LocalLake
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

CHUNK = 4096
WHOLE = "expected whole numbers"
BYTES = r"expected at most 70368744177664 bytes: the room of a process"
SIZES = r"expected up to 64 sizes of at least 0 and some bytes"
SHAPES: list[tuple[Any, Any, type[Exception], str]] = [
    ((-1, 2), "i4", ValueError, rf"shape and dtype: \(-1, 2\) of int32, {SIZES}"),
    ((1,) * 65, "i4", ValueError, SIZES),
    (3, "V0", ValueError, SIZES),
    (3, "U0", ValueError, SIZES),
    ((1 << 46, 2), "u1", ValueError, BYTES),
    ((1 << 62, 1 << 62), "i4", ValueError, BYTES),
    ((0, 1 << 62), "i4", ValueError, BYTES),
    (1 << 70, "u1", ValueError, BYTES),
    (1.5, "i4", TypeError, rf"shape: .*1.5.*, {WHOLE}"),
    ((2, "x"), "i4", TypeError, rf"shape: \(2, 'x'\), {WHOLE}"),
    (None, "i4", TypeError, rf"shape: .*None.*, {WHOLE}"),
    (3, object, TypeError, "dtype: object, expected one without Python objects"),
    (3, [("a", "i4"), ("b", "O")], TypeError, "expected one without Python objects"),
    (3, "no such", TypeError, "data type 'no such' not understood"),
]


@pytest.fixture
def kept(lake: LocalLake) -> Iterator[LocalLake]:
    """A lake with arrays in which nothing may change."""
    with lake.transaction():
        lake.arrays.create("a", (1000, 3), "i4", chunk_bytes=CHUNK)[:] = np.arange(3000).reshape(1000, 3)
        lake.arrays.create("f", (3, 1000), "i4", chunk_bytes=CHUNK, order="F")[:] = np.arange(3000).reshape(3, 1000)
        lake.arrays.create("scalar", (), "f8")[()] = 2.5
    with lake.transaction():
        lake.arrays["a"].append([[7, 8, 9]])
    before = {name: (lake.arrays[name].shape, lake.arrays[name][...].copy()) for name in lake.arrays}
    yield lake
    for again in (False, True):
        assert list(lake.arrays) == list(before)
        for name, (shape, values) in before.items():
            assert lake.arrays[name].shape == shape
            np.testing.assert_array_equal(lake.arrays[name][...], values)
            assert lake.arrays[name].verify() == []
        if not again:
            with lake.transaction():
                lake.arrays["a"].append([[1, 1, 1]])
            before["a"] = (1002, 3), np.concatenate([before["a"][1], [[1, 1, 1]]])


def refused(lake: LocalLake, error: type[Exception], message: str, call: Any) -> None:
    """Alone in a transaction that ends by it, and inside one that goes on and commits."""

    def in_one() -> None:
        with lake.transaction():
            call()

    with pytest.raises(error, match=message):
        in_one()
    with lake.transaction(), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("shape", "dtype", "error", "message"), SHAPES)
def test_shapes_and_dtypes_that_cannot_be(
    kept: LocalLake, shape: Any, dtype: Any, error: type[Exception], message: str
) -> None:
    refused(kept, error, message, lambda: kept.arrays.create("new", shape, dtype))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes: 0, expected a multiple of 4096 up to 1073741824"),
        ({"chunk_bytes": -4096}, ValueError, "chunk_bytes: -4096, expected a multiple of 4096"),
        ({"chunk_bytes": 4097}, ValueError, "chunk_bytes: 4097, expected a multiple of 4096"),
        ({"chunk_bytes": 1 << 31}, ValueError, "chunk_bytes: 2147483648, expected a multiple of 4096"),
        ({"chunk_bytes": "4096"}, TypeError, "chunk_bytes: '4096', expected a whole number"),
        ({"order": "K"}, ValueError, "order: 'K', expected C or F"),
        ({"attrs": {"a": {1}}}, TypeError, "attributes: Object of type set is not JSON serializable"),
        ({"attrs": {"a": float("nan")}}, TypeError, "attributes: Out of range float values"),
    ],
)
def test_options_that_cannot_be(kept: LocalLake, options: Any, error: type[Exception], message: str) -> None:
    refused(kept, error, f"array new, {message}", lambda: kept.arrays.create("new", 3, "i4", **options))


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [(shape, error, message) for shape, dtype, error, message in SHAPES if dtype == "i4"],
)
def test_sizes_that_no_array_can_get(kept: LocalLake, shape: Any, error: type[Exception], message: str) -> None:
    refused(kept, error, f"array a, .*{message}", lambda: kept.arrays["a"].resize(shape))


CAST = "Cannot cast array data from dtype"


@pytest.mark.parametrize(
    ("name", "rows", "error", "message"),
    [
        ("a", 5, ValueError, r"array a, appended rows: shape \(\), expected \(n, 3\)"),
        ("a", [1, 2, 3], ValueError, r"array a, appended rows: shape \(3,\), expected \(n, 3\)"),
        ("a", [[1, 2]], ValueError, r"array a, appended rows: shape \(1, 2\), expected \(n, 3\)"),
        ("a", np.zeros((2, 3, 1), "i4"), ValueError, r"shape \(2, 3, 1\), expected \(n, 3\)"),
        ("a", [[1, 2, 3], [4]], ValueError, "inhomogeneous shape"),
        ("a", [[1.5, 2, 3]], TypeError, CAST),
        ("a", [["x", "y", "z"]], TypeError, CAST),
        ("a", [[None] * 3], TypeError, CAST),
        ("a", np.zeros((2, 3), "M8[s]"), TypeError, CAST),
        ("a", [[1 << 40] * 3], OverflowError, "out of bounds for int32"),
        ("a", np.broadcast_to(np.int32(0), (1 << 46, 3)), ValueError, BYTES),
        ("f", np.zeros((2, 1), "i4"), ValueError, r"array f, appended rows: shape \(2, 1\), expected \(3, n\)"),
        ("scalar", 1.5, ValueError, r"array scalar, appended rows: shape \(\), expected \(n\)"),
    ],
)
def test_rows_that_do_not_fit(kept: LocalLake, name: str, rows: Any, error: type[Exception], message: str) -> None:
    refused(kept, error, message, lambda: kept.arrays[name].append(rows))


STRANGE: list[Any] = [
    1001,
    -1002,
    "x",
    b"x",
    1.0,
    {},
    (0, 3),
    (0, 0, 0),
    (0, -4),
    [5000],
    [True],
    np.array([1.0]),
    np.ones(9, bool),
    slice(0, 5, 0),
    slice("a"),
    slice(1.5),
    (slice(None), [5]),
    (..., ...),
    (slice(None),) * 3,
    (..., slice(None), slice(None), slice(None)),
    (0, None, 9),
]


@pytest.mark.parametrize("key", STRANGE, ids=repr)
def test_indexes_that_numpy_refuses(kept: LocalLake, key: Any) -> None:
    """Read and written: numpy's error, by its words."""
    model = np.zeros((1001, 3), "i4")
    with pytest.raises((IndexError, TypeError, ValueError)) as expected:
        model[key]
    with pytest.raises(type(expected.value)) as raised:
        kept.arrays["a"][key]
    assert str(raised.value) == str(expected.value)
    with pytest.raises((IndexError, TypeError, ValueError)) as expected:
        model[key] = 1
    refused(kept, type(expected.value), re.escape(str(expected.value)), lambda: kept.arrays["a"].__setitem__(key, 1))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (slice(None), [1, 2], "could not be broadcast"),
        (slice(None), np.zeros((3, 1001)), "could not be broadcast"),
        (slice(0, 2), [[1, 2, 3]] * 3, "could not be broadcast"),
        (0, [1, 2], "could not broadcast"),
        (slice(None), "x", "invalid literal for int"),
        (slice(None), None, "int\\(\\) argument must be"),
        (slice(None), [[1, 2], [3]], "inhomogeneous shape"),
        (slice(None, None, 2), np.zeros(7), "could not broadcast"),
        ((slice(None), 1), np.zeros(7), "could not broadcast"),
    ],
)
def test_values_that_do_not_fit(kept: LocalLake, key: Any, value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        np.zeros((1001, 3), "i4")[key] = value
    refused(kept, type(expected.value), message, lambda: kept.arrays["a"].__setitem__(key, value))


def test_a_huge_index_names_the_row(kept: LocalLake) -> None:
    for row in (1 << 70, -(1 << 70)):
        with pytest.raises(IndexError, match=rf"index {row} is out of bounds for axis 0 with size 1001"):
            kept.arrays["a"][row]


# -- keys


KEYS = hnp.basic_indices(shape=(3, 4, 13), allow_newaxis=True, allow_ellipsis=True)


@given(key=KEYS | hnp.integer_array_indices((3, 4, 13)) | hnp.arrays(bool, (3, 4, 13)))
@settings(max_examples=300, deadline=None)
def test_the_plan_of_a_key_reads_what_numpy_reads_along_the_last_axis(key: Any) -> None:
    array = np.arange(3 * 4 * 13).reshape(3, 4, 13)
    start, stop, rest = plan(key, array.shape, 2)
    assert 0 <= start <= stop <= 13
    np.testing.assert_array_equal(array[..., start:stop][rest], array[key])
    if isinstance(key, tuple) and len(key) == 3 and isinstance(key[2], int) and Ellipsis not in key:
        assert stop == start + 1, "all rows, for one"
