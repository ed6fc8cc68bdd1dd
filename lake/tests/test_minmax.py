"""Pyramids: the extremes of an array at every level, whatever was appended, changed or missing."""

import numpy as np
import pytest
from clachan_lake.local import LocalLake
from clachan_lake.transform import minmax
from clachan_lake.transform.worker import run_pending
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def lake(lake: LocalLake) -> LocalLake:
    with lake.transaction():
        lake.transformations.declare("plots", function="minmax", source={"kind": "array"})
    return lake


def check(lake: LocalLake, name: str) -> list[int]:
    """Every level against numpy's own; the factors that there are."""
    values = np.moveaxis(lake.arrays[name][:], lake.arrays[name].axis, 0)
    factors = []
    for level in minmax.pyramid(lake.arrays, name):
        count = len(values) // level.factor
        whole = values[: count * level.factor].reshape(count, level.factor, *values.shape[1:])
        found = level.array[:]
        assert found.shape == (count, 2, *values.shape[1:])
        for field in found.dtype.names or (None,):
            part, kept = (whole, found) if field is None else (whole[field], found[field])
            np.testing.assert_array_equal(kept[:, 0], np.fmin.reduce(part, axis=1))
            np.testing.assert_array_equal(kept[:, 1], np.fmax.reduce(part, axis=1))
        factors.append(level.factor)
    expected = [256**n for n in range(1, 6) if len(values) >= 256**n]
    assert factors == expected
    return factors


@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8", "bool", "M8[us]", "m8[s]", "u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_levels_are_the_extremes(lake: LocalLake, dtype: str, order: str) -> None:
    values = np.random.default_rng(1).integers(0, 100, (3, 70_000)).astype(dtype)
    with lake.transaction():
        array = lake.arrays.create("x", (3, 0) if order == "F" else (0, 3), dtype, order=order)
        array.append(values if order == "F" else values.T)
    run_pending(lake)
    assert check(lake, "x") == [256, 65_536]
    level = lake.arrays["~minmax/x/256"]
    assert (level.attrs["factor"], level.attrs["source"], level.attrs["transformation"]) == (256, "x", "plots")


def test_nan_is_passed_over(lake: LocalLake) -> None:
    values = np.arange(1024, dtype="f8")
    values[[0, 255, 300]] = np.nan
    values[512:768] = np.nan
    with lake.transaction():
        lake.arrays.create("x", (0,), "f8").append(values)
        lake.arrays.create("t", (0,), "M8[s]").append(values.astype("M8[s]"))
    run_pending(lake)
    found = lake.arrays["~minmax/x/256"][:].tolist()
    assert found[:2] == [[1, 254], [256, 511]]
    assert str(found[2]) == "[nan, nan]"
    assert np.isnat(lake.arrays["~minmax/t/256"][2]).all()
    check(lake, "x")


def test_fields_that_are_numbers(lake: LocalLake) -> None:
    dtype = [("t", "M8[us]"), ("cpu", "f4"), ("host", "S4"), ("place", "f4", (2,))]
    rows = np.zeros(600, dtype)
    rows["cpu"] = np.arange(600)
    with lake.transaction():
        lake.arrays.create("x", (0,), dtype).append(rows)
        lake.arrays.create("texts", (0,), "S4").append(np.zeros(600, "S4"))
    run_pending(lake)
    level = lake.arrays["~minmax/x/256"]
    assert level.dtype.names == ("t", "cpu")
    assert level[:]["cpu"].tolist() == [[0, 255], [256, 511]]
    assert minmax.pyramid(lake.arrays, "texts") == []
    (found,) = [one for one in lake.transformations.positions("plots") if one["source"] == "texts"]
    assert (found["message"], found["position"]) == ("", 600)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 40_000)),
            st.tuples(st.just("write"), st.integers(0, 10**6)),
            st.tuples(st.just("resize"), st.integers(0, 50_000)),
            st.tuples(st.just("run"), st.just(0)),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_changes_it_is_the_arrays(lake: LocalLake, steps: list[tuple[str, int]]) -> None:
    name = f"x{len(lake.arrays)}"
    random = np.random.default_rng(len(steps))
    with lake.transaction():
        lake.arrays.create(name, (0,), "i4")
    for what, number in steps:
        array = lake.arrays[name]
        if what == "run":
            run_pending(lake)
            check(lake, name)
            continue
        with lake.transaction():
            if what == "append":
                array.append(random.integers(-1000, 1000, number, dtype="i4"))
            elif what == "resize":
                array.resize(number)
            elif len(array):
                array[number % len(array)] = number
    run_pending(lake)
    check(lake, name)


def test_an_append_adds_only_what_is_new(lake: LocalLake) -> None:
    with lake.transaction():
        array = lake.arrays.create("x", (0,), "i4")
        array.append(np.zeros(300_000, "i4"))
    run_pending(lake)
    before = len(lake.arrays["~minmax/x/256"].history())
    for _ in range(3):
        with lake.transaction():
            lake.arrays["x"].append(np.ones(100, "i4"))
        assert run_pending(lake) == 1
    assert len(lake.arrays["~minmax/x/256"].history()) <= before + 2
    (found,) = lake.transformations.positions("plots")
    assert (found["position"], found["lag_bytes"], found["state"]) == (300_300, 0, "waiting")


def test_its_arrays_have_none_themselves(lake: LocalLake) -> None:
    with lake.transaction():
        lake.arrays.create("x", (0,), "i4").append(np.zeros(70_000, "i4"))
    run_pending(lake)
    assert run_pending(lake) == 0
    assert sorted(one for one in lake.arrays if one.startswith("~")) == ["~minmax/x/256", "~minmax/x/65536"]
