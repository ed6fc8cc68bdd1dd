"""The twin in memory does what an array of a lake does."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clachan_lake
import numpy as np
import pytest
from clachan_lake import MemoryArray
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

CALLS = ("get", "set", "append", "resize", "attribute", "rows", "blocks", "view")
DTYPES = st.sampled_from(["<i4", ">f8", "|u1", "U2", "M8[s]"])


@pytest.fixture(scope="module")
def opened() -> Iterator[LocalLake]:
    with tempfile.TemporaryDirectory() as folder, open_lake(Path(folder) / "lake") as lake:
        assert isinstance(lake, LocalLake)
        yield lake


def outcome(call: Any, *arguments: Any, **more: Any) -> Any:
    """What it gives, or the kind of its error."""
    try:
        return call(*arguments, **more)
    except Exception as error:
        return type(error)


def do(array: Any, call: str, data: dict[str, Any]) -> Any:
    """One call, and what can be seen of its result."""
    if call == "get":
        return np.array(array[data["key"]])
    if call == "set":
        array[data["key"]] = data["value"]
    elif call == "append":
        array.append(data["rows"])
    elif call == "resize":
        array.resize(data["shape"])
    elif call == "attribute":
        array.attrs[data["name"]] = data["json"]
        return dict(array.attrs), array.units
    elif call == "rows":
        return np.array(array.read_rows(0, array.rows)), array.size, array.nbytes, array.ndim, array.rows
    elif call == "blocks":
        return [(at, rows.copy()) for at, rows in array.blocks(64)]
    else:
        array[...][data["key"]] = data["value"]
    return None


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return bool(one == other)


def drawn(data: st.DataObject, shape: tuple[int, ...], axis: int, dtype: str) -> dict[str, Any]:
    """Arguments for any of the calls; not all of them fit."""
    grown = [data.draw(st.integers(0, 4), "rows") if at == axis else length for at, length in enumerate(shape)]
    if data.draw(st.integers(0, 4), "fits") == 0:
        grown = [*grown, 1]
    return {
        "key": data.draw(hnp.basic_indices(shape, allow_ellipsis=True) | st.integers(-9, 9), "key"),
        "value": data.draw(st.integers(0, 9), "value"),
        "rows": np.arange(int(np.prod(grown)), dtype="u1").reshape(grown).astype(dtype),
        "shape": data.draw(st.integers(-1, 9) | st.tuples(st.integers(0, 5), st.integers(0, 3)), "shape"),
        "name": data.draw(st.sampled_from(["units", "x"]), "name"),
        "json": data.draw(st.sampled_from(["m/s", [1, 2], {"a": None}, {1, 2}, float("nan")]), "json"),
    }


@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    dtype=DTYPES,
    order=st.sampled_from("CF"),
    data=st.data(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_same_calls_have_the_same_results(
    opened: LocalLake, shape: tuple[int, ...], dtype: str, order: str, data: st.DataObject
) -> None:
    twin = MemoryArray(shape, dtype, order, {"rate": 8})
    opened.begin()
    try:
        kept = opened.arrays.create("a", shape, dtype, {"rate": 8}, order=order)
        for call in data.draw(st.lists(st.sampled_from(CALLS), max_size=12), "calls"):
            given = drawn(data, twin.shape, twin.axis, dtype)
            expected, found = outcome(do, kept, call, given), outcome(do, twin, call, given)
            assert alike(expected, found), (call, given, expected, found)
            assert (kept.shape, kept.dtype, kept.order) == (twin.shape, twin.dtype, twin.order)
            assert kept[...].tobytes("A") == twin[...].tobytes("A"), (call, given)
    finally:
        opened.abort()


@pytest.mark.parametrize(
    "arguments", [(3, object), ((-1, 2), "i4"), (3, "S0"), ("x", "i4"), (1 << 50, "i8"), (3, "i4", "A")]
)
def test_what_cannot_be_an_array_is_refused_alike(opened: LocalLake, arguments: tuple[Any, ...]) -> None:
    with opened.transaction():
        expected = outcome(opened.arrays.create, "a", *arguments[:2], order=(*arguments, "C")[2])
    with pytest.raises(expected) as raised:
        MemoryArray(*arguments)
    assert "array memory, " in str(raised.value)


def test_views_stay_parts_of_it_while_it_grows() -> None:
    array = MemoryArray((2, 3), "i4")
    view = array[:]
    array.append(np.ones((1000, 3), "i4"))
    view[0] = 7
    assert array[0].tolist() == [7, 7, 7]
    array.resize(1, 3)
    array.resize(2, 3)
    assert array[:].tolist() == [[7, 7, 7], [0, 0, 0]]


def test_zeros_take_no_memory() -> None:
    array = MemoryArray(10**11, "f8")
    array[10**10] = 1
    assert array[10**10 - 1 : 10**10 + 2].tolist() == [0, 1, 0]


def test_it_is_exported() -> None:
    assert clachan_lake.MemoryArray is MemoryArray
    assert repr(MemoryArray(3, "i4")) == "<array 'memory' (3,) int32>"
    array = MemoryArray(3, "i4")
    array.units = "V"
    assert (array.units, dict(array.attrs)) == ("V", {"units": "V"})
    array.units = None
    assert array.attrs == {}
