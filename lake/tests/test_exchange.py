"""Arrays in other formats: what goes out and comes back is the same; what is wrong is named and leaves nothing."""

import io
import struct
import tracemalloc
import wave
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from clachan_lake.errors import CorruptError, TakenError
from clachan_lake.exchange import blocks
from clachan_lake.exchange.npy import from_npy, to_npy
from clachan_lake.exchange.wav import to_wav
from clachan_lake.exchange.zarr import from_zarr, to_zarr
from clachan_lake.local import LocalLake
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

ANY = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIELDS = np.dtype([("t", "<i8"), ("v", ">f4", (2,)), ("größe", "u1")])
PADDED = np.dtype({"names": ["a", "b"], "formats": ["u1", "<i4"], "offsets": [0, 4], "itemsize": 12})
DTYPES = ["?", "i1", "<u2", ">i4", "<i8", "f2", "<f4", ">f8", "c16", "S3", "<U2", ">U2", "M8[ms]", "m8[s]"]
IN_ZARR = ["?", "i1", "<u2", ">i4", "<i8", "f2", "<f4", ">f8", "c16", "S3", "<U2", "M8[ms]", "m8[s]"]
NUMBERS = count()


def arrays(dtypes: list[Any]) -> st.SearchStrategy[np.ndarray]:
    """Arrays of up to four axes, also empty ones, in both orders."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)
    made = st.sampled_from(dtypes).flatmap(lambda one: hnp.arrays(np.dtype(one), shapes))
    return st.tuples(made, st.booleans()).map(lambda pair: np.asfortranarray(pair[0]) if pair[1] else pair[0])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small arrays have many."""
    for module in ("blocks", "npy", "zarr"):
        monkeypatch.setattr(f"clachan_lake.exchange.{module}.BLOCK_BYTES", 100)
    monkeypatch.setattr("clachan_lake.exchange.zarr.CHUNK_BYTES", 60)


def content(array: np.ndarray) -> list[bytes]:
    """The bytes of each field, without what lies between them."""
    names = array.dtype.names
    return [array[name].tobytes() for name in names] if names else [array.tobytes()]


@ANY
@given(array=arrays([*DTYPES, FIELDS, PADDED]))
def test_npy_there_and_back(lake: LocalLake, tmp_path: Path, small_blocks: None, array: np.ndarray) -> None:
    name = f"a{next(NUMBERS)}"
    np.save(tmp_path / "in.npy", array)
    with lake.transaction():
        from_npy(lake.arrays, name, tmp_path / "in.npy")
    made = lake.arrays[name]
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    assert (made.shape, made.dtype, made.order) == (array.shape, array.dtype, "F" if fortran else "C")
    assert content(made[...]) == content(array)
    size = to_npy(made, tmp_path / "out.npy")
    assert (tmp_path / "out.npy").stat().st_size == size
    read = np.load(tmp_path / "out.npy")
    assert (read.shape, read.dtype, read.flags.f_contiguous) == (array.shape, array.dtype, array.flags.f_contiguous)
    assert content(read) == content(array)


@ANY
@given(array=arrays([*IN_ZARR, np.dtype([("t", "<i8"), ("v", "<f4")])]))
@example(array=np.array((0, -0.0), [("t", "<i8"), ("v", "<f4")]))
@example(array=np.array([0.0, -0.0]))
def test_zarr_there_and_back(lake: LocalLake, tmp_path: Path, small_blocks: None, array: np.ndarray) -> None:
    name, order = f"a{next(NUMBERS)}", "F" if array.ndim > 1 and array.flags.f_contiguous else "C"
    attrs = {"rate": 48000, "names": ["x", {"y": None}], "units": "V"}
    with lake.transaction():
        lake.arrays.create(name, array.shape, array.dtype, attrs, order=order)[...] = array
    folder = tmp_path / f"{name}.zarr"
    lake.arrays[name].to_zarr(folder)
    with lake.transaction():
        lake.arrays.from_zarr(f"{name}/back", folder)
    back = lake.arrays[f"{name}/back"]
    assert (back.shape, back.dtype, back.order) == (array.shape, array.dtype.newbyteorder("="), order)
    assert (dict(back.attrs), back.units) == (attrs, "V")
    assert np.asarray(back[...]).tobytes() == array.astype(back.dtype).tobytes()


def test_zarr_reads_what_we_wrote(lake: LocalLake, tmp_path: Path) -> None:
    rows = np.arange(3_000_000, dtype="i4").reshape(-1, 3)
    with lake.transaction():
        lake.arrays.create("c", (0, 3), "i4", {"rate": 8000}, units="V").append(rows)
        lake.arrays.create("f", (3, 0), "i4", order="F").append(rows.T)
    for name in ("c", "f"):
        lake.arrays[name].to_zarr(tmp_path / name)
    c, f = (zarr.open_array(tmp_path / name, mode="r") for name in ("c", "f"))
    np.testing.assert_array_equal(c[:], rows)
    np.testing.assert_array_equal(f[:], rows.T)
    assert (c.metadata.zarr_format, c.attrs.asdict()) == (3, {"rate": 8000, "units": "V"})
    # about 2 MiB, long along what lies together
    assert (c.chunks, f.chunks) == ((174762, 3), (3, 174762))


@pytest.mark.parametrize("form", [2, 3])
def test_zarr_of_others_is_read(lake: LocalLake, tmp_path: Path, form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fill value, chunks that are as long as the array, groups, format 2."""
    monkeypatch.setattr("clachan_lake.exchange.zarr.BAND_BYTES", 4000)
    values = np.arange(9000, dtype="f8").reshape(1000, 9)
    group = zarr.create_group(tmp_path / "g", zarr_format=form)
    group.create_array("wide", data=values, chunks=(1000, 2))
    group.create_array("empty", shape=(5, 2), chunks=(2, 2), dtype="i2", fill_value=7)
    if form == 2:
        group.create_array("f", data=values, chunks=(10, 9), order="F")
    with lake.transaction():
        for name in group.array_keys():
            from_zarr(lake.arrays, name, tmp_path / "g" / name)
    np.testing.assert_array_equal(lake.arrays["wide"][:], values)
    assert lake.arrays["empty"][:].tolist() == [[7, 7]] * 5
    if form == 2:
        assert lake.arrays["f"].order == "F"
        np.testing.assert_array_equal(lake.arrays["f"][:], values)
    with lake.transaction(), pytest.raises(ValueError, match=r"a group with .*wide, expected one Zarr array"):
        from_zarr(lake.arrays, "group", tmp_path / "g")


def test_what_zarr_has_not_is_refused(lake: LocalLake, tmp_path: Path) -> None:
    with lake.transaction():
        for name, dtype in (("fields", FIELDS), ("padded", PADDED), ("long", "g")):
            lake.arrays.create(name, 3, dtype)
    for name in ("fields", "padded", "long"):
        with pytest.raises(TypeError, match=f"array {name}, dtype: .*, expected one that Zarr has; use .npy"):
            to_zarr(lake.arrays[name], tmp_path / "out.zarr")
    with lake.transaction():
        lake.arrays.create("a", 3, "i2")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match=r"folder .*there: exists, expected a new name"):
        to_zarr(lake.arrays["a"], tmp_path / "there")
    zarr.create_array(tmp_path / "texts", shape=3, dtype=str)
    with lake.transaction():
        with pytest.raises(TypeError, match=r"texts, dtype: .*, expected one of a fixed size, without Python objects"):
            from_zarr(lake.arrays, "texts", tmp_path / "texts")
        with pytest.raises(ValueError, match=r"zarr .*none: no folder, expected a Zarr array"):
            from_zarr(lake.arrays, "none", tmp_path / "none")
        with pytest.raises(ValueError, match=r"zarr .*there: .*, expected a Zarr array"):
            from_zarr(lake.arrays, "there", tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "texts", "there"]


def test_a_torn_chunk_of_zarr_leaves_no_array(lake: LocalLake, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "z", data=np.arange(1000.0), chunks=100)
    (tmp_path / "z" / "c" / "7").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"zarr .*z: .*, expected chunks that can be read"), lake.transaction():
        from_zarr(lake.arrays, "a", tmp_path / "z")
    assert list(lake.arrays) == []


def with_header(text: str | bytes, version: int = 1, data: bytes = b"") -> bytes:
    """A .npy file, byte by byte, so that it may also lie."""
    head = text if isinstance(text, bytes) else text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(head)) + head + data


GOOD = "{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }\n"


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", ValueError, "begins with b'', expected b'.x93NUMPY'"),
        (b"\x80\x04K\x01.", ValueError, "begins with b'.x80.x04K.x01.', expected"),
        (b"\x93NUMPY\x04\0" + bytes(100), ValueError, "format: version 4.0, expected 1.0, 2.0 or 3.0"),
        (b"\x93NUMPY\x01\0\xff", ValueError, "header: cut after 0 bytes"),
        (with_header(GOOD)[:-5], ValueError, "header: cut after 53 bytes, expected 58"),
        (b"\x93NUMPY\x02\0\xff\xff\xff\xff", ValueError, "header: 4294967295 bytes, expected at most 1048576"),
        (with_header(GOOD, data=b"12345"), ValueError, r"5 bytes of data, expected 6 for \(3,\) of int16"),
        (with_header(GOOD, data=b"1234567"), ValueError, "7 bytes of data, expected 6"),
        (with_header("__import__('os').system('touch canary')"), ValueError, "header: ValueError: .*, expected descr"),
        (with_header("{" * 5000), ValueError, "expected descr, fortran_order and shape"),
        (with_header("-" * 60000 + "1"), ValueError, "expected descr, fortran_order and shape"),
        (with_header("[1, 2]"), ValueError, "expected descr, fortran_order and shape"),
        (with_header(GOOD.replace("(3,)", "(-3,)")), ValueError, r"shape \(-3,\), expected descr"),
        (with_header(GOOD.replace("(3,)", "3")), ValueError, "other keys or types"),
        (with_header(GOOD.replace("False", "0")), ValueError, "other keys or types"),
        (with_header(GOOD.replace("<i2", "nope")), ValueError, "expected descr"),
        (with_header(GOOD.replace("(3,)", f"({1 << 62},)")), ValueError, f"0 bytes of data, expected {1 << 63}"),
        (
            with_header(GOOD.replace("<i2", "|O"), data=b"x"),
            TypeError,
            "dtype: object, expected one without Python obj",
        ),
    ],
)
def test_what_is_no_npy_is_named(
    lake: LocalLake, tmp_path: Path, content: bytes, kind: type[Exception], message: str
) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(kind, match=f"^file .*x.npy[,:] ?{message}|^file .*x.npy.*{message}"), lake.transaction():
        lake.arrays.from_npy("a", tmp_path / "x.npy")
    assert list(lake.arrays) == []
    assert not Path("canary").exists()


def test_versions_of_npy(lake: LocalLake, tmp_path: Path) -> None:
    long = np.dtype([(f"field {number} {'x' * 40}", "u1") for number in range(1500)])
    for number, (dtype, version) in enumerate([(np.dtype("i2"), 1), (long, 2), (np.dtype([("☃", "i2")]), 3)]):
        with lake.transaction():
            lake.arrays.create(f"v{number}", 3, dtype)
        to_npy(lake.arrays[f"v{number}"], tmp_path / "v.npy")
        content = (tmp_path / "v.npy").read_bytes()
        assert content[6] == version
        assert len(content) % 64 == (3 * dtype.itemsize) % 64
        assert np.load(tmp_path / "v.npy", allow_pickle=True).dtype == dtype
        with lake.transaction():
            assert lake.arrays.from_npy(f"back{number}", tmp_path / "v.npy").dtype == dtype


def test_a_stream_that_ends_early_leaves_nothing(lake: LocalLake, small_blocks: None) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    whole = io.BytesIO()
    np.save(whole, np.arange(1000))
    with lake.transaction():
        assert from_npy(lake.arrays, "whole", Pipe(whole.getvalue())).shape == (1000,)
    with pytest.raises(ValueError, match="file npy: 7990 bytes of data, expected 8000"), lake.transaction():
        from_npy(lake.arrays, "cut", Pipe(whole.getvalue()[:-10]))
    with pytest.raises(TakenError, match="array 'whole': exists"), lake.transaction():
        from_npy(lake.arrays, "whole", Pipe(whole.getvalue()))
    assert list(lake.arrays) == ["whole"]


def test_it_goes_block_by_block(lake: LocalLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB pass through a fraction of that memory."""
    for module in ("blocks", "npy", "zarr"):
        monkeypatch.setattr(f"clachan_lake.exchange.{module}.BLOCK_BYTES", 1 << 20)
    zarr.create_array(tmp_path / "warm", data=np.zeros(10))[:]
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 1 << 60, (1 << 17, 64)))
    told: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        with lake.transaction():
            from_npy(lake.arrays, "a", tmp_path / "in.npy", lambda done, total: told.append((done, total)))
        to_npy(lake.arrays["a"], tmp_path / "out.npy")
        to_zarr(lake.arrays["a"], tmp_path / "out.zarr")
        with lake.transaction():
            from_zarr(lake.arrays, "b", tmp_path / "out.zarr")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20
    assert told[0] == (1 << 20, 64 << 20)
    assert (told[-1], len(told)) == ((64 << 20, 64 << 20), 64)
    np.testing.assert_array_equal(lake.arrays["a"][:], lake.arrays["b"][:])


def test_a_chunk_that_is_not_what_it_was_is_not_exported(lake: LocalLake, tmp_path: Path) -> None:
    with lake.transaction():
        array = lake.arrays.create("a", (100_000, 1), "i4", {"sample_format": "s32", "rate": 8000})
        array[:] = 1
    blob = max((tmp_path / "lake" / "blobs").rglob("*.blob"), key=lambda path: path.stat().st_size)
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    for write, target in ((to_npy, "a.npy"), (to_zarr, "a.zarr")):
        with pytest.raises(CorruptError, match=r"array a, chunk 0.*; nothing was written"):
            write(lake.arrays["a"], tmp_path / target)
    with pytest.raises(CorruptError, match="array a, chunk 0"):
        to_wav(lake.arrays["a"], io.BytesIO())
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]


def test_a_failed_export_leaves_what_was_there(lake: LocalLake, tmp_path: Path) -> None:
    with lake.transaction():
        lake.arrays.create("a", 100_000, "i4")

    def fail(_done: int, _total: int) -> None:
        raise OSError("the disk is full")

    (tmp_path / "a.npy").write_bytes(b"before")
    for write, target in ((to_npy, "a.npy"), (to_zarr, "a.zarr")):
        with pytest.raises(OSError, match="the disk is full"):
            write(lake.arrays["a"], tmp_path / target, fail)
    assert (tmp_path / "a.npy").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "lake"]


def test_sound(lake: LocalLake) -> None:
    values = np.array([[1, -2], [3, -(1 << 22)]])
    with lake.transaction():
        for name, width in (("s16", 2), ("s24", 3), ("s32", 4)):
            attrs = {"sample_format": name, "rate": 8000}
            dtype = "<i2" if width == 2 else "<i4"
            lake.arrays.create(name, (2, 2), dtype, attrs)[:] = values % (1 << 15)
        lake.arrays.create("f32", (2, 2), "f4", {"sample_format": "f32"})
    for name, width in (("s16", 2), ("s24", 3), ("s32", 4)):
        out = io.BytesIO()
        size = to_wav(lake.arrays[name], out)
        with wave.open(io.BytesIO(out.getvalue())) as sound:
            assert (sound.getnchannels(), sound.getsampwidth(), sound.getnframes()) == (2, width, 2)
            frames = sound.readframes(9)
        read = [int.from_bytes(frames[at : at + width], "little") for at in range(0, len(frames), width)]
        assert read == (values % (1 << 15)).reshape(-1).tolist()
        assert size == len(out.getvalue())
    with pytest.raises(ValueError, match=r"array f32, sample format: f32, expected one of u8, s16, s24, s32; use .npy"):
        to_wav(lake.arrays["f32"], io.BytesIO())


def test_blocks_are_as_long_as_they_are_asked_to_be(lake: LocalLake) -> None:
    with lake.transaction():
        lake.arrays.create("a", (10, 3), "i8")[:] = np.arange(30).reshape(10, 3)
        lake.arrays.create("none", (0, 3), "i8")
    found = list(blocks.rows_of(lake.arrays["a"], 50, 2, start=1, stop=8))
    assert [(first, rows.shape) for first, rows in found] == [(1, (2, 3)), (3, (2, 3)), (5, (2, 3)), (7, (1, 3))]
    assert list(blocks.rows_of(lake.arrays["none"])) == []
