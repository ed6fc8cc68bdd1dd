"""What a notebook shows: true figures, a picture of them, and nobody's markup."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from clachan_lake import display
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake

from .making import TOKEN, Server

BAD = "</b><script>alert('x')</script>\"&"


class Read(HTMLParser):
    """The tags, and the text between them; every tag must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not [name for name, _value in attrs if name.startswith("on") or name in {"href", "src"}]
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shown(thing: Any) -> list[str]:
    read = Read(thing._repr_html_())
    assert {"script", "a", "img", "style"}.isdisjoint(read.tags)
    return read.text


def points(html: str) -> Any:
    (path,) = re.findall(r' d="M([^"]*)Z"', html)
    return np.array([[float(part) for part in point.split(",")] for point in path.split(" ")])


def test_an_array(lake: LocalLake) -> None:
    with lake.transaction():
        made = lake.arrays.create("wave", (48000, 2), "int16", {"rate": 48000}, units="mV")
        made[:, 0] = 1000 * np.sin(np.arange(48000) / 48000 * 2 * np.pi)
    array = lake.arrays["wave"]
    said = shown(array)
    assert said[:7] == ["array wave", "shape", "48,000 x 2", "dtype", "int16, 187.5 KiB", "units", "mV"]
    assert said[7:] == ["rate", "48000", "-1000 to 1000 mV, column 0"]
    band = points(array._repr_html_())
    upper, lower = band[: len(band) // 2], band[len(band) // 2 :][::-1]
    assert len(upper) == display.WIDTH
    # one turn of a sine: at the top after a quarter, at the bottom after three, in the middle at both ends
    assert abs(upper[:, 1].argmin() - display.WIDTH / 4) < 9
    assert abs(lower[:, 1].argmax() - display.WIDTH * 3 / 4) < 9
    assert (upper[:, 1].min(), lower[:, 1].max()) == (2, display.HEIGHT - 2)
    assert abs(lower[0, 1] - display.HEIGHT / 2) < 2


def test_rows_with_times(lake: LocalLake) -> None:
    rows = np.zeros(90, [("when", "M8[ms]"), ("load", "f4")])
    rows["when"] = np.datetime64("2026-11-27T04:15:00.250") + np.arange(90) * np.timedelta64(60, "s")
    rows["load"] = np.arange(90)
    with lake.transaction():
        lake.arrays.create("load", 90, rows.dtype)[:] = rows
        lake.arrays.create("none", 0, rows.dtype)
    said = shown(lake.arrays["load"])
    assert said[5:] == ["times", "2026-11-27 04:15:00 to 2026-11-27 05:44:00", "0 to 89, column load"]
    assert "times" not in shown(lake.arrays["none"])


def test_a_stream_and_a_lake(lake: LocalLake) -> None:
    with lake.transaction():
        lake.streams.create("log", attrs={"title": "What was said"}).append(b"x" * 2048, final=True)
        lake.arrays.create("a", (3,), "f4", units="K")
    assert shown(lake.streams["log"]) == ["stream log", "size", "2.0 KiB", "state", "ended", "title", "What was said"]
    said = shown(lake)
    assert said == ["lake: 1 arrays, 1 streams", "a", "array of 3 float32, K", "log", "stream of 2.0 KiB"]


def test_markup_is_text(lake: LocalLake) -> None:
    with lake.transaction():
        made = lake.arrays.create(BAD, (5,), [(BAD, "f8")], {BAD: {BAD: [BAD]}, "units": BAD, "ring": "\x1b[31m"})
        made[...] = np.array([(number,) for number in range(5)], made.dtype)
        lake.streams.create(BAD, attrs={"title": BAD}).append(b"x")
    for thing in (lake, lake.arrays[BAD], lake.streams[BAD]):
        html = thing._repr_html_()
        assert "<script" not in html
        assert "\x1b" not in html
        assert any("<script>alert('x')</script>\"&" in text for text in shown(thing))


@pytest.mark.parametrize(
    ("values", "caption"),
    [
        (np.zeros(0), None),
        (np.full(9, np.nan), None),
        (np.array([b"a", b"b"]), None),
        (np.array(4.0), None),
        (np.array([1.0, np.nan, np.inf, 3.0]), "1 to 3"),
        (np.full(7, 5), "5 to 5"),
        (np.array([-1.7e308, 1.7e308]), "-1.7e+308 to 1.7e+308"),
        (np.array([True, False]), "0 to 1"),
        (np.array([3 + 4j, 0]), "0 to 5"),
    ],
)
def test_what_cannot_be_drawn_has_no_picture(lake: LocalLake, values: Any, caption: str | None) -> None:
    with lake.transaction():
        made = lake.arrays.create("a", values.shape, values.dtype)
        made[...] = values
    html = lake.arrays["a"]._repr_html_()
    assert ("<svg" in html) == (caption is not None)
    if caption:
        assert shown(lake.arrays["a"])[-1] == caption
        assert np.isfinite(points(html)).all()


def test_it_stays_short(lake: LocalLake) -> None:
    with lake.transaction():
        for number in range(60):
            lake.arrays.create(f"a{number:02}", (0,), "u1")
            lake.streams.create(f"s{number:02}")
        lake.arrays.create("many", (20 << 20,), "f8", {f"k{n:03}": "v" * 9000 for n in range(200)})
    said = shown(lake)
    assert said[0] == "lake: 61 arrays, 60 streams"
    assert said[-1] == "and 101 more"
    html = lake.arrays["many"]._repr_html_()
    assert "and 188 more attributes" in html
    assert "of a sample" in html
    assert len(html) < 40_000


def test_over_http_it_is_the_same(server: Server) -> None:
    with open_lake(server.socket, blobs=server.folder / "blobs") as near:
        with near.transaction():
            near.arrays.create("display/a", (1000,), "f4", units="V")[...] = np.arange(1000)
        wanted = near.arrays["display/a"]._repr_html_()
    with open_lake(server.url, token=TOKEN) as far:
        assert far.arrays["display/a"]._repr_html_() == wanted
        assert "display/a" in shown(far)
