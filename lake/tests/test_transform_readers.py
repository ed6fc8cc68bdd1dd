"""csv, jsonl and msgpack: right rows wherever chunks are cut, clear errors for what are none, whatever the bytes."""

import csv as csv_module
import io
import json
import math
import struct
from datetime import UTC, datetime
from typing import Any

import msgpack as packer
import numpy as np
import pytest
from clachan_lake.transform import csv, jsonl, msgpack
from clachan_lake.transform.options import READERS
from clachan_lake.transform.records import RecordError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .reading_records import COLUMNS, Transform, read

ROWS = [
    {"time": 1_700_000_000.25, "cpu": 0.5, "count": 7, "host": "a"},
    {"time": "2024-02-29T12:00:00.5Z", "cpu": None, "count": -32768, "host": "münch"},
    {"time": None, "cpu": 1e308, "count": 32767.0, "host": None, "more": [1, {"deep": [2]}]},
    {"count": "12", "cpu": "-inf", "time": "2024-02-29T13:30:00+01:30"},
]
EXPECTED = np.array(
    [
        (np.datetime64("2023-11-14T22:13:20.250000"), 0.5, 7, b"a"),
        (np.datetime64("2024-02-29T12:00:00.500000"), np.nan, -32768, "münch".encode()),
        (np.datetime64("NaT"), 1e308, 32767, b""),
        (np.datetime64("2024-02-29T12:00:00"), -np.inf, 12, b""),
    ],
    [("time", "<M8[us]"), ("cpu", "<f8"), ("count", "<i2"), ("host", "S8")],
)
JSON = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
MSGPACK = b"".join(packer.packb(row) for row in ROWS)
CUTS = st.lists(st.integers(1, 400), max_size=8)


def same(rows: np.ndarray, expected: np.ndarray = EXPECTED) -> None:
    assert rows.dtype == expected.dtype
    for name in expected.dtype.names or ():
        np.testing.assert_array_equal(rows[name], expected[name])


@given(cuts=CUTS)
@settings(max_examples=60, deadline=None)
def test_records_are_rows_wherever_chunks_are_cut(cuts: list[int]) -> None:
    same(read(jsonl.transform, JSON, cuts).rows)
    same(read(jsonl.transform, JSON.rstrip(), cuts).rows)
    same(read(msgpack.transform, MSGPACK, cuts).rows)


@pytest.mark.parametrize("repeat", [1, 4096, 5000])
def test_any_number_of_objects_in_any_chunks(repeat: int) -> None:
    one = packer.packb([5, {"count": 1}])
    columns = [{"name": "time", "dtype": "int64", "key": "@time"}, {"name": "count", "dtype": "int64"}]
    for cuts in ([], [len(one) * repeat - 1], list(range(0, len(one) * repeat, 977))):
        rows = read(msgpack.transform, one * repeat, cuts, columns=columns).rows
        assert (len(rows), int(rows["time"].sum()), int(rows["count"].sum())) == (repeat, 5 * repeat, repeat)


def test_fluentds_events_have_their_times() -> None:
    events = [
        [1_700_000_000, {"message": b"\xff\x00raw"}],
        [packer.ExtType(0, struct.pack(">II", 1_700_000_000, 123_456_789)), {"message": "text"}],
        {"message": "no event"},
        [-1, {"message": ""}],
    ]
    columns = [
        {"name": "when", "dtype": "datetime64[ns]", "key": "@time"},
        {"name": "message", "dtype": "S8"},
    ]
    rows = read(msgpack.transform, b"".join(map(packer.packb, events)), columns=columns).rows
    times = [1_700_000_000_000_000_000, 1_700_000_000_123_456_789, "NaT", -1_000_000_000]
    np.testing.assert_array_equal(rows["when"], np.array(times, "M8[ns]"))
    assert rows["message"].tolist() == [b"\xff\x00raw", b"text", b"no event", b""]


def test_keys_lead_into_records() -> None:
    data = b'{"a":{"b":{"c":3}}}\n{"a":{}}\n{"a":null}\n'
    columns = [{"name": "c", "dtype": "f4", "key": ["a", "b", "c"]}]
    assert str(read(jsonl.transform, data, columns=columns).rows["c"].tolist()) == "[3.0, nan, nan]"
    with pytest.raises(RecordError, match="record 0 of 1: key a: a value, expected a record"):
        read(jsonl.transform, b'{"a":5}', columns=columns)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"cpu": "abc"}, "column cpu: 'abc', expected float64"),
        ({"cpu": [1]}, "column cpu: [1], expected float64"),
        ({"cpu": {}}, "column cpu: {}, expected float64"),
        ({"count": None}, "column count: None, expected int16"),
        ({"count": 1.5}, "column count: 1.5, expected int16"),
        ({"count": 32768}, "column count: 32768, expected int16"),
        ({"count": 10**30}, "column count: 1000000000000000000000000000000, expected int16"),
        ({"count": 1e300}, "column count: 1e+300, expected int16"),
        ({"count": "x"}, "column count: 'x', expected int16"),
        ({"count": [1, 2]}, "column count: [1, 2], expected int16"),
        ({"host": "123456789"}, "column host: text of 9 bytes, expected at most 8"),
        ({"host": "ééééé"}, "column host: text of 10 bytes, expected at most 8"),
        ({"host": {"a": 1}}, "{'a': 1}, expected text"),
        ({"time": "yesterday"}, "column time: 'yesterday', expected a time in ISO 8601"),
        ({"time": 1e30}, "column time: 1e+30, expected a time"),
        ({"time": 10**19}, "column time: 10000000000000000000, expected a time"),
        ({"time": True}, "column time: True, expected a time"),
        ([1, 2, 3], "[1, 2, 3], expected a record"),
        ("text", "'text', expected a record"),
        (None, "None, expected a record"),
    ],
)
def test_a_record_that_does_not_fit_is_named_or_skipped(record: Any, message: str) -> None:
    good = {"time": 0, "cpu": 0, "count": 0, "host": ""}
    bad = {**good, **record} if isinstance(record, dict) else record
    for transform, pack in ((jsonl.transform, _json), (msgpack.transform, packer.packb)):
        try:
            data = pack(good) + pack(bad) + pack(good)
        except OverflowError:
            continue  # msgpack has no such number
        with pytest.raises(RecordError) as caught:
            read(transform, data)
        if isinstance(record, list) or (isinstance(record, dict) and [1, 2] in record.values()):
            assert "expected" in str(caught.value)  # msgpack's are tuples
        elif pack is _json or "[1]" not in message:
            assert message.removeprefix("column cpu: ") in str(caught.value)
        assert "record 1 of 3" in str(caught.value)
        kept = read(transform, data, bad="skip")
        assert len(kept.rows) == 2
        assert kept.warnings[0].startswith("record left out: ")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def test_narrow_floats_and_booleans_and_unsigned() -> None:
    columns = [{"name": name, "dtype": dtype} for name, dtype in (("f", "f4"), ("b", "bool"), ("u", "u8"), ("t", "U3"))]
    rows = read(jsonl.transform, b'{"f":1.5,"b":true,"u":18446744073709551615,"t":"\xc3\xa9a"}', columns=columns).rows
    assert rows.tolist() == [(1.5, True, 2**64 - 1, "éa")]
    for record, message in (
        ('{"f":1e39,"b":true,"u":1,"t":""}', "column f: a number too great, expected float32"),
        ('{"f":1,"b":1,"u":1,"t":""}', "column b: 1, expected bool"),
        ('{"f":1,"b":true,"u":-1,"t":""}', "column u: -1, expected uint64"),
        ('{"f":1,"b":true,"u":1,"t":"abcd"}', "column t: text of 4 characters, expected at most 3"),
    ):
        with pytest.raises(RecordError, match=message.replace("[", r"\[")):
            read(jsonl.transform, record.encode(), columns=columns)


@pytest.mark.parametrize(
    ("transform", "data", "message"),
    [
        (jsonl.transform, b'{"a":1}\n{"a":\n', "line 1: b'{\"a\":', expected JSON"),
        (jsonl.transform, b"[" * 100_000 + b"\n", "line 0: "),
        (jsonl.transform, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "line 0: "),
        (jsonl.transform, b'{"host":"\xff"}\n', "expected JSON"),
        (jsonl.transform, b'{"cpu":NaN}\n', "expected JSON"),
        (msgpack.transform, b"\xc1", "expected msgpack objects"),
        (msgpack.transform, b"\x91" * 100_000 + b"\x01", "expected msgpack objects"),
        (msgpack.transform, b"\x81\xa1a" * 100_000 + b"\x01", "expected msgpack objects"),
        (msgpack.transform, b"\xdd\xff\xff\xff\xff", "expected msgpack objects"),
        (msgpack.transform, (b"\xdd\x00\x00\x40\x01" * 3), "expected msgpack objects"),
        (msgpack.transform, b"\xdf\xff\xff\xff\xff", "expected msgpack objects"),
        (msgpack.transform, b"\xc9\xff\xff\xff\xff\x00", "expected msgpack objects"),
        (msgpack.transform, b"\x81\x80\x01", "expected msgpack objects"),
    ],
)
def test_what_is_none_is_an_error_that_says_so(transform: Transform, data: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        read(transform, data)
    assert message in str(caught.value)


def test_what_has_no_end_is_not_kept_for_ever() -> None:
    with pytest.raises(RecordError, match="line: 2000 bytes without an end, expected at most 1000"):
        read(jsonl.transform, b"x" * 3000, [2000], line_bytes=1000)
    with pytest.raises(RecordError, match="object: 1500 bytes without an end, expected at most 1000"):
        read(msgpack.transform, b"\xdc\x10\x00" + b"\xc0" * 3000, [1500], record_bytes=1000)
    kept = read(msgpack.transform, packer.packb(ROWS[0]) + b"\x81")
    assert kept.warnings == ["object left out: 1 bytes at the end, expected more of them"]
    kept = read(msgpack.transform, b"\xdb\xff\xff\xff\xff")
    assert (len(kept.rows), kept.warnings) == (0, ["object left out: 5 bytes at the end, expected more of them"])


def table(rows: list[list[str]], **kind: Any) -> bytes:
    out = io.StringIO(newline="")
    csv_module.writer(out, lineterminator="\n", **kind).writerows(rows)
    return out.getvalue().encode()


FIELDS = [
    ["host", "time", "other", "count", "cpu"],
    ["a", "1700000000.25", 'with "quotes"', "7", "0.5"],
    ["münch", "2024-02-29T12:00:00.5Z", "two\nlines, one field", "-32768", ""],
    ["", "", "", "32767", "1e308"],
    ["", "2024-02-29T13:30:00+01:30", "x", "12", "-inf"],
]


@given(cuts=CUTS)
@settings(max_examples=40, deadline=None)
def test_fields_are_rows_wherever_chunks_are_cut(cuts: list[int]) -> None:
    same(read(csv.transform, table(FIELDS), cuts).rows)
    same(read(csv.transform, table(FIELDS[1:], delimiter=";"), cuts, delimiter=";", header=FIELDS[0]).rows)


def test_without_a_header_the_columns_are_the_fields() -> None:
    rows = read(csv.transform, b"0,1,2,a\r\n\r\n3.5,2,3\r\n", header=False).rows
    assert rows["count"].tolist() == [2, 3]
    assert rows["host"].tolist() == [b"a", b""]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,2\n", "header: ['a', 'b'], expected time among its names"),
        (b"time,cpu,count,host\n1,2,3,a,b\n", "5 fields, expected at most 4"),
        (b"time,cpu,count,host\n1,x,3,a\n", "column cpu: 'x', expected float64"),
        (b"time,cpu,count,host\n1,1,,a\n", "column count: None, expected int16"),
        (b"time,cpu,count,host\n1,1,1.5,a\n", "column count: '1.5', expected int16"),
        (b"time,cpu,count,host\n1,1,99999,a\n", "column count: 99999, expected int16"),
        (b"time,cpu,count,host\n1,1,1,123456789\n", "column host: text of 9 bytes, expected at most 8"),
        (b"time,cpu,count,host\nnow,1,1,a\n", "column time: 'now', expected a time in ISO 8601"),
    ],
)
@pytest.mark.parametrize("filler", [0, 2000])
def test_fields_that_do_not_fit_are_named(data: bytes, message: str, filler: int) -> None:
    """Also when pandas' parser comes first."""
    head, line = data.split(b"\n")[:2]
    long = head + b"\n" + b"1,1,1,a\n" * filler + line + b"\n"
    with pytest.raises(RecordError) as caught:
        read(csv.transform, long)
    if filler == 0 or "99999" not in message:
        assert message in str(caught.value)


CELLS = st.sampled_from(
    [
        "",
        "0",
        "1",
        "-3",
        "7.0",
        "1e3",
        " 5",
        "0x10",
        "1_0",
        "nan",
        "NaN",
        "inf",
        "NA",
        "null",
        "true",
        "12345",
        '"',
        "é",
    ]
)
LINES = st.lists(st.lists(CELLS, min_size=1, max_size=5), min_size=1, max_size=6)


@given(lines=LINES, repeat=st.sampled_from([1, 400]))
@example(lines=[["", "", "true"]], repeat=1)
@example(lines=[["False", "", "1"], ["", "x", "0"]], repeat=1)
@settings(max_examples=60, deadline=None)
def test_both_parsers_of_fields_agree(lines: list[list[str]], repeat: int) -> None:
    """pandas' for much, Python's for little."""
    data = table(lines)
    columns = [{"name": "a", "dtype": "f8"}, {"name": "b", "dtype": "S4"}, {"name": "c", "dtype": "i4"}]
    few = _outcome(data, columns)
    many = _outcome(data * max(repeat, -(-5000 // len(data))), columns)
    if isinstance(few, str) or isinstance(many, str):
        assert (type(few), type(many)) == (str, str)
    else:
        np.testing.assert_array_equal(many["a"][: len(few)], few["a"])
        assert many["b"][: len(few)].tolist() == few["b"].tolist()
        assert many["c"][: len(few)].tolist() == few["c"].tolist()


def _outcome(data: bytes, columns: list[dict[str, Any]]) -> Any:
    try:
        return read(csv.transform, data, header=False, columns=columns).rows
    except RecordError as error:
        return str(error)


@given(data=st.binary(max_size=300), cuts=CUTS, skip=st.booleans())
@settings(max_examples=120, deadline=None)
@pytest.mark.parametrize("function", ["csv", "jsonl", "msgpack"])
def test_any_bytes_are_rows_or_a_record_error(function: str, data: bytes, cuts: list[int], skip: bool) -> None:
    transform = {"csv": csv.transform, "jsonl": jsonl.transform, "msgpack": msgpack.transform}[function]
    options = {"bad": "skip" if skip else "refuse", **({"header": False} if function == "csv" else {})}
    try:
        rows = read(transform, data, cuts, **options).rows
    except RecordError:
        return
    assert rows.dtype == EXPECTED.dtype


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("time", "cpu", "count", "host"), VALUES)), max_size=5
)


@given(records=RECORDS, cuts=CUTS, flips=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=3))
@settings(max_examples=80, deadline=None)
def test_any_records_are_rows_or_a_record_error(
    records: list[dict[str, Any]], cuts: list[int], flips: list[tuple[int, int]]
) -> None:
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in records)
    for transform, data in ((jsonl.transform, lines), (msgpack.transform, b"".join(map(packer.packb, records)))):
        changed = bytearray(data)
        for place, value in flips:
            if changed:
                changed[place % len(changed)] = value
        try:
            kept = read(transform, bytes(changed), cuts, bad="skip")
        except RecordError:
            assert transform is msgpack.transform
            continue
        if not flips:
            assert len(kept.rows) + len(kept.warnings) == len(records)


@given(values=st.lists(st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False), max_size=5))
@settings(max_examples=40, deadline=None)
def test_numbers_are_exact(values: list[float]) -> None:
    data = b"".join(packer.packb({"v": value, "i": value}) for value in values)
    columns = [{"name": "v", "dtype": "f8"}]
    assert read(msgpack.transform, data, columns=columns).rows["v"].tolist() == [float(value) for value in values]
    whole = [value for value in values if isinstance(value, int)]
    data = b"".join(json.dumps({"i": value}).encode() + b"\n" for value in whole)
    rows = read(jsonl.transform, data, columns=[{"name": "i", "dtype": "i8"}]).rows
    assert rows["i"].tolist() == whole


@given(moment=st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1)))
@settings(max_examples=50, deadline=None)
def test_times_as_text_and_as_numbers(moment: datetime) -> None:
    when = moment.replace(tzinfo=UTC)
    expected = np.datetime64(moment, "us")
    columns = [{"name": "t", "dtype": "datetime64[us]", "unit": "us"}]
    number = int(expected.astype("int64"))
    for value in (when.isoformat(), moment.isoformat(), number):
        rows = read(jsonl.transform, _json({"t": value}), columns=columns).rows
        assert rows["t"][0] == expected
        rows = read(csv.transform, f"{value}\n".encode(), header=False, columns=columns).rows
        assert rows["t"][0] == expected


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("jsonl", {}, "options, key columns: missing, expected a value"),
        ("jsonl", {"columns": []}, "options, key columns: [], expected a list of 1 to 1024 columns"),
        ("jsonl", {"columns": [{"name": "a"}]}, "column {'name': 'a'}, expected {name, dtype, key, unit}"),
        ("jsonl", {"columns": [{"name": "a", "dtype": "O"}]}, "column a, dtype: 'O', expected bool, an int"),
        ("jsonl", {"columns": [{"name": "a", "dtype": "f4,f4"}]}, "column a, dtype: 'f4,f4', expected bool, an int"),
        ("jsonl", {"columns": [{"name": "a", "dtype": "S0"}]}, "column a, dtype: 'S0', expected"),
        ("jsonl", {"columns": [{"name": "a", "dtype": "S99999999"}]}, "column a, dtype: 'S99999999', expected"),
        ("jsonl", {"columns": [{"name": "a", "dtype": "c16"}]}, "column a, dtype: 'c16', expected"),
        ("jsonl", {"columns": [{"name": "a", "dtype": "M8[D]"}]}, "column a, dtype: 'M8[D]', expected"),
        ("jsonl", {"columns": [{"name": "a", "dtype": 7}]}, "column a, dtype: 7, expected"),
        ("jsonl", {"columns": [COLUMNS[0], COLUMNS[0]]}, "['time', 'time'], expected each name once"),
        ("jsonl", {"columns": [{"name": "a\n", "dtype": "f8"}]}, "expected 1-200 printable characters"),
        ("jsonl", {"columns": [{"name": "a", "dtype": "f8", "key": []}]}, "column a, key: [], expected text or"),
        ("jsonl", {"columns": [{"name": "a", "dtype": "f8", "unit": "h"}]}, "column a, unit: 'h', expected one of s"),
        ("jsonl", {"columns": COLUMNS, "bad": "no"}, "options, key bad: 'no', expected refuse or skip"),
        ("jsonl", {"columns": COLUMNS, "header": True}, "options, key header: unknown, expected one of columns, bad"),
        ("csv", {"columns": COLUMNS, "delimiter": ",,"}, "options, key delimiter: ',,', expected one ASCII character"),
        ("csv", {"columns": COLUMNS, "quote": ","}, "options, key quote: ',', expected another character"),
        ("csv", {"columns": COLUMNS, "header": []}, "options, key header: [], expected true, false or a list"),
        ("csv", {"columns": COLUMNS, "header": ["a"]}, "options, key columns: column time, key: time, expected one of"),
        ("csv", {"columns": [{"name": "a", "dtype": "f8", "key": ["b", "c"]}]}, "expected text for csv"),
        ("msgpack", {"columns": COLUMNS, "record_bytes": 1}, "options, key record_bytes: 1, expected a whole number"),
        ("wav", {"x": 1}, "options, key x: unknown, expected one of "),
        ("minmax", [], "options: list, expected an object"),
    ],
)
def test_what_is_wrong_with_options_is_named(function: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match="options") as caught:
        READERS[function](options)
    assert message in str(caught.value)


def test_nothing_is_lost_of_great_values() -> None:
    """No float on the way."""
    rows = read(jsonl.transform, b'{"v":9007199254740993}\n', columns=[{"name": "v", "dtype": "i8"}]).rows
    assert rows["v"][0] == 2**53 + 1
    assert math.isclose(EXPECTED["cpu"][2], 1e308)
