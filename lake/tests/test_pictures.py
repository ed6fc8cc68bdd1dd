"""Pictures: the numbers behind them beside numpy, and pages that stay text whatever the names are."""

import struct
from pathlib import Path

import numpy as np
import pytest
from clachan_lake.interface import Array
from clachan_lake.local import LocalLake
from clachan_lake.pictures import draw, envelope, page, peak_hz, spectrogram
from clachan_lake.transform.worker import run_pending

from .making import tone, wav


def recording(lake: LocalLake, samples: np.ndarray, name: str = "x.wav", rate: int = 8000) -> Array:
    """16 bit, samples x channels."""
    with lake.transaction():
        attrs = {"rate": rate, "channels": ["a", "b"][: samples.shape[1]], "full_scale": 32768, "silence": 0}
        array = lake.arrays.create(name, (0, samples.shape[1]), "<i2", {**attrs, "sample_format": "s16"})
        array.append(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2"))
    return array


def sine(hz: float, seconds: float, rate: int = 8000, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_440_hz_peaks_in_the_440_hz_bin(lake: LocalLake, rate: int) -> None:
    with lake.transaction():
        lake.transformations.declare("wav", function="wav", source={"kind": "stream", "policy": "wav"})
        lake.streams.create("a440.wav", "wav").append(wav(tone(440, 1.3, rate), rate=rate), final=True)
    run_pending(lake)
    array = lake.arrays["a440.wav"]
    assert peak_hz(array) == 440.0
    found = spectrogram(array)
    strongest = int(found.level.mean(axis=1).argmax())
    assert abs(strongest * found.bin_hz - 440) <= found.bin_hz / 2


def test_the_peak_is_of_the_wanted_channel(lake: LocalLake) -> None:
    array = recording(lake, np.stack([sine(440, 1), sine(1000, 1, amplitude=0.6)], 1))
    assert (peak_hz(array, 0), peak_hz(array, 1), peak_hz(array)) == (440, 1000, 1000)
    assert peak_hz(recording(lake, np.zeros((8000, 1)), "silence")) == 0
    assert peak_hz(recording(lake, np.zeros((0, 1)), "empty")) == 0
    short = recording(lake, sine(400, 0.05)[:, None], "short")
    assert peak_hz(short) == pytest.approx(400, abs=20)


@pytest.mark.parametrize("count", [1, 7, 100, 5000])
def test_the_envelope_is_minimum_and_maximum(lake: LocalLake, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(count).uniform(-1, 1, (count, 1))
    array = recording(lake, samples)
    blocks = Array.blocks
    monkeypatch.setattr(Array, "blocks", lambda self: blocks(self, 600))
    found = envelope(array, 40)
    values = np.round(samples[:, 0] * 32767) / 32768
    parts = min(40, count)
    index = np.arange(count) * parts // count
    expected = [[values[index == part].min(), values[index == part].max()] for part in range(parts)]
    np.testing.assert_allclose(found, expected)


def test_a_full_sine_is_0_db_and_time_runs_to_the_right(lake: LocalLake) -> None:
    samples = np.concatenate([sine(1000, 1, amplitude=1), np.zeros(8000), sine(2000, 1, amplitude=1)])
    found = spectrogram(recording(lake, samples[:, None]), window=400)
    assert found.bin_hz == 20
    columns = found.level.shape[1]
    assert found.column_seconds * columns == pytest.approx(3)
    low, high = found.level[50], found.level[100]
    assert low[: columns // 4] == pytest.approx(0, abs=0.1)
    assert high[-columns // 4 :] == pytest.approx(0, abs=0.5)
    assert low[columns // 2] < -60
    assert high[columns // 2] < -60


def test_blocks_do_not_show_in_the_numbers(lake: LocalLake, monkeypatch: pytest.MonkeyPatch) -> None:
    array = recording(lake, np.random.default_rng(2).uniform(-1, 1, (9000, 2)))
    whole, peak = spectrogram(array), peak_hz(array)
    blocks = Array.blocks
    monkeypatch.setattr(Array, "blocks", lambda self: blocks(self, 1234))
    np.testing.assert_allclose(spectrogram(array).level, whole.level)
    assert peak_hz(array) == peak


def test_pictures_are_png_of_the_wanted_size(lake: LocalLake) -> None:
    first = recording(lake, np.stack([sine(440, 0.3), sine(1000, 0.3)], 1), "$\\frac{x}$ & <b> \u2603")
    second = recording(lake, np.zeros((0, 1)), "empty")
    for pictured in ([first], [first, second, first]):
        data = draw(pictured, width=6, dpi=50)
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", data[16:20])[0] == 300
    with lake.transaction():
        other = lake.arrays.create("numbers", 5, "f8")
    with pytest.raises(ValueError, match=r"array numbers: shape \(5,\), rate None, expected samples x channels"):
        draw([other])


def test_a_page_is_one_file_and_shows_text_as_text(lake: LocalLake, tmp_path: Path) -> None:
    name = '<script>alert("x")</script>.wav'
    array = recording(lake, sine(440, 0.2)[:, None], name)
    with lake.transaction():
        lake.transformations.declare("wav", function="wav", source={"kind": "stream", "policy": "wav"})
        lake.streams.create("<b>bad</b>", "wav").append(b"<i>no</i>", final=True)
        lake.streams.create(name).append(b"abc")
    run_pending(lake)
    html = page("<h1>& title", [array], [stream.describe() for stream in lake.streams.values()])
    assert "<script" not in html
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;.wav" in html
    assert "&lt;h1&gt;&amp; title" in html
    assert "&lt;b&gt;bad&lt;/b&gt;" in html
    assert "<i>no" not in html
    assert "default-src 'none'" in html
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("data:image/png;base64,") == 1
    assert "440.0 Hz" in html
