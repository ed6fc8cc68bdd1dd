"""WAV files: right arrays beside the standard library's reader, clear errors for what is none."""

import io
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.interface import Array
from clachan_lake.local import LocalLake
from clachan_lake.transform import riff
from clachan_lake.transform.wav import decode
from clachan_lake.transform.worker import run_pending
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .making import tone, wav

GUID = bytes.fromhex("000000001000800000aa00389b71")


def extensible(code: int, valid: int, mask: int) -> bytes:
    return struct.pack("<HHIH", 22, valid, mask, code) + GUID


@pytest.fixture
def lake(lake: LocalLake) -> LocalLake:
    """With the transformation of this file."""
    with lake.transaction():
        lake.transformations.declare("wav", function="wav", source={"kind": "stream", "policy": "wav"})
    return lake


def outcome(lake: LocalLake, name: str = "x.wav") -> dict[str, Any]:
    (found,) = lake.streams[name].describe()["transformations"]
    return dict(found)


def transform(lake: LocalLake, data: bytes, name: str = "x.wav") -> Array:
    with lake.transaction():
        stream = lake.streams.create(name, "wav")
        for start in range(0, len(data), 50_000):
            stream.append(data[start : start + 50_000])
        stream.end()
    run_pending(lake)
    return lake.arrays[name]


def failure(lake: LocalLake, data: bytes) -> str:
    with pytest.raises(KeyError):
        transform(lake, data)
    found = outcome(lake)
    assert found["state"] == "failed"
    return str(found["message"])


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_pcm_is_what_the_standard_library_reads(lake: LocalLake, width: int, channels: int) -> None:
    frames = np.random.default_rng(width).integers(0, 256, 1000 * channels * width, dtype="u1").tobytes()
    out = io.BytesIO()
    with wave.open(out, "wb") as written:
        written.setnchannels(channels)
        written.setsampwidth(width)
        written.setframerate(44100)
        written.writeframes(frames)
    array = transform(lake, out.getvalue())
    with wave.open(io.BytesIO(out.getvalue())) as read:
        data = read.readframes(read.getnframes())
        assert array.shape == (read.getnframes(), read.getnchannels())
        assert array.attrs["rate"] == read.getframerate()
    expected = [
        data[at] if width == 1 else int.from_bytes(data[at : at + width], "little", signed=True)
        for at in range(0, len(data), width)
    ]
    assert array[:].reshape(-1).tolist() == expected
    assert array.attrs["sample_format"] == {1: "u8", 2: "s16", 3: "s24", 4: "s32"}[width]
    assert len(array.attrs["channels"]) == channels


@pytest.mark.parametrize(("bits", "dtype"), [(32, "<f4"), (64, "<f8")])
def test_float_is_kept(lake: LocalLake, bits: int, dtype: str) -> None:
    samples = np.linspace(-1, 1, 300).astype(dtype)
    array = transform(lake, wav(samples.tobytes(), 3, 96000, bits, 3))
    np.testing.assert_array_equal(array[:], samples.reshape(-1, 3))
    assert (array.dtype, array.attrs["rate"], array.attrs["full_scale"]) == (np.dtype(dtype), 96000, 1)


def test_extensible_names_its_channels(lake: LocalLake) -> None:
    frames = np.arange(600, dtype="<i4") << 8
    data = wav(frames.tobytes(), 6, 48000, 32, 0xFFFE, extra=extensible(1, 24, 0x3F))
    array = transform(lake, data)
    assert array.attrs["channels"] == [
        *("front left", "front right", "front centre", "low frequency", "back left", "back right")
    ]
    assert (array.attrs["valid_bits"], array.shape) == (24, (100, 6))
    np.testing.assert_array_equal(array[:].reshape(-1), frames)


def test_rf64_has_long_sizes(lake: LocalLake) -> None:
    frames = tone(440, 0.1)
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    long = struct.pack("<QQQI", 0, len(frames), 0, 0)
    data = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", len(long)) + long
    data += b"fmt " + struct.pack("<I", 16) + form + b"data\xff\xff\xff\xff" + frames + b"LIST\x04\0\0\0junk"
    array = transform(lake, data)
    assert (array.shape, array.attrs["warnings"]) == ((800, 1), [])
    assert array[:].tobytes() == frames


def test_other_chunks_are_skipped_and_padded(lake: LocalLake) -> None:
    data = wav(tone(440, 0.1), before=b"LIST\x03\0\0\0abc\0", after=b"id3 \x02\0\0\0xx")
    assert transform(lake, data).shape == (800, 1)


@pytest.mark.parametrize(
    ("data", "frames", "warning"),
    [
        (wav(tone(440, 0.1))[:-101], 749, "1600 bytes, expected the 1499 that are there: truncated"),
        (wav(tone(440, 0.1), data_size=10**9), 800, "1000000000 bytes, expected the 1600 that are there: truncated"),
        (wav(tone(440, 0.1), data_size=0xFFFFFFFF), 800, "its length was never written, 1600 bytes taken"),
        (wav(tone(440, 0.1), data_size=0, riff_size=0), 800, "its length was never written, 1600 bytes taken"),
        (wav(b"123"), 1, "1 bytes of an incomplete last frame, left out"),
        (wav(tone(440, 0.1), data_size=100), 50, None),
        (wav(b"", after=b"LIST\x10\0\0\0" + b"x" * 16), 0, None),
        (wav(b""), 0, None),
    ],
)
def test_files_that_lie_give_what_is_there(lake: LocalLake, data: bytes, frames: int, warning: str | None) -> None:
    array = transform(lake, data)
    assert array.shape == (frames, 1)
    found = outcome(lake)
    assert found["state"] == "done"
    assert found["warnings"] == array.attrs["warnings"]
    assert all(warning and warning in text for text in found["warnings"][:1])
    assert bool(found["warnings"]) == bool(warning)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file: empty, expected a WAV file"),
        (b"hello", "file: begins with b'hello', expected RIFF....WAVE"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "expected RIFF....WAVE"),
        (b"RIFF\x04\0\0\0WAVE", "12 bytes without a chunk fmt, expected one (the file may be truncated)"),
        (wav(b"")[:30], "chunk fmt: 10 bytes, expected at least 16"),
        (wav(b"")[:36], "36 bytes without a chunk data"),
        (b"RIFF\x0c\0\0\0WAVEdata\x04\0\0\0abcd", "chunk data: before a chunk fmt"),
        (wav(b"x" * 8, code=7, bits=8), "chunk fmt: mu-law, 8 bits"),
        (wav(b"x" * 8, code=0x1234), "format 0x1234"),
        (wav(b"x" * 8, channels=0), "chunk fmt: 0 channels at 8000 Hz, expected at least 1 of each"),
        (wav(b"x" * 8, rate=0), "chunk fmt: 1 channels at 0 Hz"),
        (wav(b"x" * 8, bits=0), "0 bits in frames of 0 bytes for 1 channels"),
        (wav(b"x" * 8, bits=40), "40 bits in frames of 5 bytes"),
        (wav(b"x" * 8, code=0xFFFE), "chunk fmt: 16 bytes, expected at least 40 for WAVE_FORMAT_EXTENSIBLE"),
        (wav(b"x" * 8, code=0xFFFE, extra=extensible(1, 16, 0)[:-1] + b"\0"), "expected PCM or IEEE float"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 10_001, "more than 10000 chunks"),
    ],
)
def test_what_is_no_wav_is_an_error_that_says_why(lake: LocalLake, data: bytes, message: str) -> None:
    assert message in failure(lake, data)


def test_one_bad_file_does_not_hold_up_the_rest(lake: LocalLake) -> None:
    with lake.transaction():
        for number in range(6):
            stream = lake.streams.create(f"{number}.wav", "wav")
            stream.append(wav(tone(440, 0.1)) if number % 2 else b"broken")
            stream.end()
    assert run_pending(lake) == 3
    states = [outcome(lake, name)["state"] for name in lake.streams]
    assert states == ["failed", "done"] * 3
    assert run_pending(lake) == 0


def test_a_stream_that_went_on_is_made_again(lake: LocalLake) -> None:
    whole = wav(tone(440, 0.2))
    transform(lake, whole[:1000])
    with lake.transaction():
        lake.streams["x.wav"].append(whole[1000:])
        lake.streams["x.wav"].end()
    run_pending(lake)
    assert lake.arrays["x.wav"].shape == (1600, 1)
    assert outcome(lake)["position"] == len(whole)


def test_an_array_of_others_is_left_alone(lake: LocalLake) -> None:
    with lake.transaction():
        lake.arrays.create("x.wav", 3, "i4")
    with lake.transaction():
        stream = lake.streams.create("x.wav", "wav")
        stream.append(wav(tone(440, 0.1)), final=True)
    run_pending(lake)
    assert "array 'x.wav': exists" in outcome(lake)["message"]
    assert lake.arrays["x.wav"].shape == (3,)


def test_large_files_go_block_by_block(lake: LocalLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clachan_lake.transform.wav.BLOCK_BYTES", 1000)
    frames = np.random.default_rng(3).integers(-(2**23), 2**23, 3000, dtype="<i4")
    packed = frames.view("u1").reshape(-1, 4)[:, :3].tobytes()
    np.testing.assert_array_equal(transform(lake, wav(packed, 3, bits=24))[:].reshape(-1), frames)


MUTATIONS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=6)
SEEDS = [
    wav(tone(440, 0.01)),
    wav(tone(440, 0.01), 2, bits=24, code=0xFFFE, extra=extensible(1, 24, 3)),
    wav(tone(440, 0.01), before=b"LIST\x03\0\0\0abc\0"),
]


@given(seed=st.sampled_from(SEEDS), changes=MUTATIONS, cut=st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_an_array_or_a_wav_error(seed: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[place % len(data)] = value
    _parse(bytes(data[: len(data) - cut % len(data)]))


@given(data=st.binary(max_size=200))
@settings(max_examples=80, deadline=None)
def test_random_bytes_are_an_array_or_a_wav_error(data: bytes) -> None:
    _parse(data)
    _parse(b"RIFF\0\0\0\0WAVE" + data)


def _parse(data: bytes) -> None:
    try:
        found = riff.parse(lambda offset, count: data[offset : offset + count], len(data))
    except riff.WavError:
        return
    assert found.offset + found.frames * found.format.frame_bytes <= len(data)
    assert len(riff.channel_names(found.format)) == found.format.channels
    rows = sum(len(block) for block in decode(lambda offset, count: data[offset : offset + count], found))
    assert rows == found.frames


@given(frames=st.binary(max_size=2000), channels=st.integers(1, 9), width=st.sampled_from([1, 2, 3, 4]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pcm_round_trips(lake: LocalLake, frames: bytes, channels: int, width: int) -> None:
    name = f"{len(lake.streams)}.wav"
    array = transform(lake, wav(frames, channels, bits=8 * width), name)
    whole = len(frames) // (channels * width)
    assert array.shape == (whole, channels)
    data = array[:].reshape(-1)
    if width == 3:
        data = data.view("u1").reshape(-1, 4)[:, :3]
    assert data.tobytes() == frames[: whole * channels * width]


def test_the_real_files_of_this_machine(lake: LocalLake) -> None:
    """Recordings that other programs wrote, where there are any."""
    found = sorted(Path("/usr/share/sounds").rglob("*.wav"))[:5] if Path("/usr/share/sounds").is_dir() else []
    if not found:
        pytest.skip("this machine cannot: no WAV files below /usr/share/sounds, expected those of alsa-utils")
    for path in found:
        array = transform(lake, path.read_bytes(), path.name)
        with wave.open(str(path)) as read:
            assert array.shape == (read.getnframes(), read.getnchannels())
            assert array[:].tobytes() == read.readframes(read.getnframes())
