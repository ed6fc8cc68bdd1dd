"""Plots: minimum and maximum beside numpy's own, whatever they are read from; tiles of spectrograms as a reader of PNG
sees them."""

import json
from io import BytesIO

import matplotlib.image
import numpy as np
import pytest
from clachan_lake.errors import MissingError
from clachan_lake.interface import AnyArray, Array
from clachan_lake.local import LocalLake
from clachan_lake.plots import envelope as envelopes
from clachan_lake.plots import spectrogram
from clachan_lake.plots.document import RangeError, plot
from clachan_lake.plots.series import SeriesError, find, names

from .drawn import keep_pyramid


def made(lake: LocalLake, values: AnyArray, order: str = "C", **attrs: object) -> Array:
    with lake.transaction():
        array = lake.arrays.create("a", values.shape, values.dtype, attrs, order=order)
        array[...] = values
    return array


def expected(values: AnyArray, found: dict) -> tuple[list, list]:
    """By numpy, column by column."""
    low, high = [], []
    for first in range(found["start"], found["stop"], found["step"]):
        part = values[first : min(first + found["step"], found["stop"])].astype(float)
        part = part[~np.isnan(part)]
        low.append(part.min() if len(part) else None)
        high.append(part.max() if len(part) else None)
    return low, high


def check(lake: LocalLake, values: AnyArray, source: str, **asked: object) -> dict:
    found = plot(lake.arrays, "a", **asked)
    assert (found["low"], found["high"]) == expected(values, found)
    assert (found["source"], found["exact"]) == (source, source != "sample")
    return found


@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8", ">i4", "?", "f2"])
@pytest.mark.parametrize("rows", [1, 7, 1000, 12_345])
def test_short_ranges_are_read_as_they_are(lake: LocalLake, dtype: str, rows: int) -> None:
    values = np.random.default_rng(rows).integers(0, 2 if dtype == "?" else 200, rows).astype(dtype)
    made(lake, values)
    found = check(lake, values, "rows", width=100)
    assert (found["start"], found["stop"], found["rows"]) == (0, rows, rows)
    assert len(found["low"]) <= max(200, 1)
    check(lake, values, "rows", start=rows // 3, stop=rows // 2 + 1, width=10)
    assert plot(lake.arrays, "a", start=rows, stop=rows)["low"] == []


def test_a_pyramid_says_what_the_rows_say(lake: LocalLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "BUDGET", 40_000)
    values = np.random.default_rng(3).normal(0, 1, 300_000).astype("f4")
    values[5000:5600] = np.nan
    values[7] = 99
    array = made(lake, values)
    assert check_sample(lake)["source"] == "sample"
    keep_pyramid(lake, "a")
    found = check(lake, values, "pyramid", width=300)
    assert found["step"] % 256 == 0
    assert found["high"][0] == 99
    part = check(lake, values, "pyramid", start=100_001, stop=200_001, width=50)
    assert part["start"] <= 100_001
    assert part["stop"] >= 200_001
    check(lake, values, "rows", start=100_001, stop=100_777, width=50)
    more = np.concatenate([values, np.arange(3000, dtype="f4")])
    with lake.transaction():
        array.append(more[300_000:])
    # what was appended since is not in the pyramid yet
    assert check(lake, more, "pyramid", width=300)["high"][-1] == 2999
    with lake.transaction():
        array.append(np.zeros(100_000, "f4"))
    assert plot(lake.arrays, "a")["source"] == "sample"


def check_sample(lake: LocalLake) -> dict:
    """Of a sample every number is one of its column."""
    found = plot(lake.arrays, "a", width=20)
    values = lake.arrays["a"][:]
    low, high = expected(values, found)
    pairs = zip(found["low"], found["high"], low, high, strict=True)
    assert all(a is None or c <= a <= b <= d for a, b, c, d in pairs)
    return found


@pytest.mark.parametrize("order", ["C", "F"])
def test_each_number_of_a_row_is_a_series(lake: LocalLake, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "BUDGET", 30_000)
    shape = (2000, 3, 2) if order == "C" else (3, 2, 2000)
    values = np.random.default_rng(5).integers(-99, 99, shape).astype("i4")
    made(lake, values, order)
    keep_pyramid(lake, "a")
    rows = values if order == "C" else np.moveaxis(values, 2, 0)
    assert [one["name"] for one in names(lake.arrays["a"])] == ["0", "1", "2", "3", "4", "5"]
    for number in range(6):
        one = rows.reshape(2000, 6)[:, number]
        check(lake, one, "rows", column=str(number), start=3, stop=900, width=20)
        check(lake, one, "pyramid", column=str(number), width=3)


def test_fields_are_series_and_times_the_axis(lake: LocalLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "BUDGET", 20_000)
    values = np.zeros(3000, [("at", "M8[s]"), ("x", "f4"), ("pair", "i2", (2,)), ("name", "U4"), ("z", "c8")])
    values["at"] = np.datetime64("2026-01-01T00:00:00") + np.arange(3000) * 10
    values["at"][0] = "NaT"
    values["x"], values["pair"][:, 1], values["z"] = np.arange(3000), 5, 3 + 4j
    made(lake, values, units="V")
    keep_pyramid(lake, "a")
    found = check(lake, values["x"], "pyramid", width=4)
    assert (found["x_kind"], found["x_label"], found["units"], found["column"]) == ("time", "at", "V", "x")
    assert [one["name"] for one in found["columns"]] == ["x", "pair.0", "pair.1", "z"]
    assert found["x"][1] == 1767225600_000 + found["step"] * 10_000
    assert plot(lake.arrays, "a", column="pair.1", stop=10)["low"] == [5.0] * 10
    assert plot(lake.arrays, "a", column="z", stop=2)["high"] == [5.0, 5.0]
    near = plot(lake.arrays, "a", column="at", stop=3)
    assert near["x"] == [1767225610_000, 1767225610_000, 1767225620_000]
    assert near["low"] == [None, 1767225610.0, 1767225620.0]


def test_a_rate_makes_seconds(lake: LocalLake) -> None:
    made(lake, np.zeros(100, "i2"), rate=50)
    found = plot(lake.arrays, "a", start=10, stop=20)
    assert (found["x_kind"], found["x"][0], found["x"][-1]) == ("seconds", 0.2, 0.38)


def test_without_a_rate_rows_are_counted(lake: LocalLake) -> None:
    made(lake, np.zeros(100, "i2"), rate="fast")
    assert plot(lake.arrays, "a", start=10, stop=13)["x"] == [10, 11, 12]


def test_what_is_odd_is_still_json(lake: LocalLake) -> None:
    values = np.zeros(3, [("at", "M8[Y]"), ("x", "f8")])
    values["at"] = np.array([-(2**40), 0, 2**40]).astype("M8[Y]")
    made(lake, values, rate=1e300, units="\ud800", channels=["\udfff"])
    found = plot(lake.arrays, "a")
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    assert found["x"] == sorted(found["x"])
    assert max(map(abs, found["x"])) <= 8.64e15


def test_infinity_and_nothing_are_null(lake: LocalLake) -> None:
    made(lake, np.array([np.inf, -np.inf, np.nan, 1.0]))
    assert plot(lake.arrays, "a")["low"] == [None, None, None, 1.0]


def test_what_cannot_be_drawn_is_named(lake: LocalLake) -> None:
    with lake.transaction():
        lake.arrays.create("text", 3, "U8")
        lake.arrays.create("one", (), "f8")
        lake.arrays.create("pair", (4, 2), "f8")
        lake.arrays.create("wide", (4, 0), "f8")
    for name, column, message in (
        ("text", "", "array 'text', dtype: <U8, expected numbers to draw"),
        ("one", "", "array 'one': without axes, expected rows to draw"),
        ("pair", "2", "array 'pair', column: '2', expected one of 0, 1"),
        ("pair", "-1", "array 'pair', column: '-1', expected one of 0, 1"),
        ("pair", "0.1", "array 'pair', column: '0.1', expected one of 0, 1"),
        ("wide", "", "array 'wide', dtype: float64, expected numbers to draw"),
    ):
        with pytest.raises(SeriesError) as error:
            plot(lake.arrays, name, column=column)
        assert str(error.value) == message
    with pytest.raises(RangeError) as wrong:
        plot(lake.arrays, "pair", 3, 9)
    assert str(wrong.value) == "array 'pair', rows: 3 to 9, expected inside 0 to 4"
    with pytest.raises(MissingError):
        plot(lake.arrays, "none")


# -- spectrograms


def tone(lake: LocalLake, hz: float, seconds: float = 4, rate: int = 8000) -> spectrogram.Sound:
    samples = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    array = made(lake, np.round(samples[:, None] * 32767).astype("i2"), rate=rate, full_scale=32768, silence=0)
    assert spectrogram.is_sound(array)
    return spectrogram.sound(array, find(array))


def seen(of: spectrogram.Sound, zoom: int, number: int) -> AnyArray:
    """Red, green, blue and opacity, the lowest frequency first."""
    return np.asarray(matplotlib.image.imread(BytesIO(spectrogram.tile(of, zoom, number)), "png"))[::-1]


@pytest.mark.parametrize("hz", [440, 1000, 3000])
@pytest.mark.parametrize("zoom", [3, 6, 9])
def test_a_tone_is_the_brightest_row(lake: LocalLake, hz: float, zoom: int) -> None:
    of = tone(lake, hz)
    tile = seen(of, zoom, 0)
    assert tile.shape == (256, 256, 4)
    columns = min(256, -(-32_000 // (1 << zoom)))
    bright = tile[:, : columns - 1, :3].sum(axis=2).mean(axis=1)
    # a bin of the transform is two rows high
    assert abs(int(bright.argmax()) - hz / 4000 * 256) < 3
    assert (tile[:, :columns, 3] == 1).all()
    assert (tile[:, columns:, 3] == 0).all()


def test_behind_the_end_there_is_nothing(lake: LocalLake) -> None:
    assert (seen(tone(lake, 440), 6, 99)[:, :, 3] == 0).all()


def test_silence_and_what_is_no_number_are_dark(lake: LocalLake) -> None:
    array = made(lake, np.full(8000, np.nan, "f4"), rate=8000)
    tile = seen(spectrogram.sound(array, find(array)), 5, 0)
    assert tile[:, :200, :3].max() < 0.1


def test_a_recording_is_samples_at_a_rate(lake: LocalLake) -> None:
    array = made(lake, np.zeros((5, 2), "i2"), rate=0.5)
    with pytest.raises(SeriesError) as error:
        spectrogram.sound(array, find(array))
    assert str(error.value) == "array 'a': shape (5, 2), rate 0.5, expected samples at a rate: sound"
