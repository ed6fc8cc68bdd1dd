"""The pages in a real browser: Debian's Chromium, without a window, driven as a person would.

With CLACHAN_PICTURES=1 the pictures in docs/images are taken anew.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.opening import open_lake
from PIL import Image
from playwright.sync_api import Browser, Error, Page, sync_playwright

from .making import TOKEN, Server, wait_for, wav

PICTURES = Path(__file__).parents[2] / "docs/images"
PICTURE_BYTES = 150_000
HOSTILE = "<img src=x onerror=\"document.title='taken'\"></pre><script>document.title='taken'</script>{{7*7}}"
RATE, SECONDS = 16_000, 60
DAYS = 40
SONG = "hall/2026-03-01/song.wav"
LONG, STANDS_OUT = 40_000_000, 12_345_678
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("this machine cannot: run chromium, which is not installed")
    with sync_playwright() as playwright:
        # it opens nothing but these tests' own pages, and a container may have neither namespaces nor shared memory
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        with playwright.chromium.launch(executable_path=program, args=arguments) as browser:
            yield browser


def song() -> np.ndarray:
    """A note that rises, and a bell each six seconds."""
    at = np.arange(RATE * SECONDS) / RATE
    rising = 0.25 * np.sin(2 * np.pi * (300 * at + 25 * at * at)) * (0.6 + 0.4 * np.sin(at / 3))
    bell = 0.5 * np.sin(2 * np.pi * 2200 * at) * np.exp(-2 * (at % 6))
    noise = np.random.default_rng(4).normal(0, 0.0006, len(at))
    return np.round((rising + bell + noise) * 32767).astype("<i2")


def weather() -> np.ndarray:
    rows = np.zeros(1440 * DAYS, [("time", "M8[s]"), ("temperature", "f4"), ("wind", "f4")])
    minutes = np.arange(len(rows))
    noise = np.random.default_rng(5).normal(0, 1, (2, len(rows)))
    rows["time"] = np.datetime64("2026-03-01T00:00:00") + minutes * 60
    rows["temperature"] = 8 + minutes / 9000 - 5 * np.cos(2 * np.pi * minutes / 1440) + 0.4 * noise[0]
    rows["wind"] = np.abs(4 + 2 * np.sin(minutes / 2000) + noise[1])
    rows["temperature"][20_000:23_000] = np.nan
    return rows


@pytest.fixture(scope="module")
def filled(server: Server) -> Server:
    _record(server)
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake, lake.transaction():
        station = {"title": "Weather station", "tags": ["weather"], "owner": "Met", "units": "°C"}
        more = {"description": "Temperature and wind of the station on the roof, each minute."}
        rows = weather()
        lake.arrays.create("roof/weather", len(rows), rows.dtype, {**station, **more})[:] = rows
        log = lake.streams.create("logs/web", "raw", {"title": "Web server's log", "tags": ["logs"]})
        for number in range(50):
            log.append(b'{"time": %d, "path": "/", "status": 200}\n' % (1772323200 + number))
        about = dict.fromkeys(("title", "units", "description", "owner", HOSTILE), HOSTILE)
        lake.arrays.create(HOSTILE, 100, "f8", {**about, "tags": [HOSTILE]})
        lake.streams.create(HOSTILE, "raw", about).append(HOSTILE.encode())
        # longer than what is read as it is, so that it is drawn from its pyramid
        long = lake.arrays.create("probe/long", LONG, "<i2", {"rate": 10_000, "title": "A long one"})
        long[:] = np.tile(np.arange(-1000, 1000, dtype="<i2"), LONG // 2000)
        long[STANDS_OUT] = 30_000
    _keep_pyramid(server)
    _describe(server)
    return server


def _record(server: Server) -> None:
    """A recording comes in as a file, and a transformation makes it an array."""
    server.session.post(
        f"{server.url}/ingest/wav",
        params={"reference": SONG, "final": 1},
        data=wav(song().tobytes(), rate=RATE),
        timeout=60,
    ).raise_for_status()
    server.transformed(SONG, 60)


def _describe(server: Server) -> None:
    """The recording, as somebody does who has looked at it."""
    about = {
        "title": "Rising note and bell",
        "tags": ["sound", "hall"],
        "owner": "Acoustics",
        "license": "CC0-1.0",
        "description": "A note that rises from 300 Hz, and a bell each six seconds.",
    }
    server.session.put(
        f"{server.url}/arrays/meta", params={"name": SONG}, json={"attrs": about}, timeout=20
    ).raise_for_status()


def _keep_pyramid(server: Server) -> None:
    server.session.put(
        f"{server.url}/transformations/meta",
        params={"name": "pyramids"},
        json={"function": "minmax", "source": {"kind": "array", "pattern": "probe/.*"}},
        timeout=20,
    ).raise_for_status()
    asked = {"name": "probe/long", "width": 10}
    wait_for(lambda: server.get("/plot", **asked).json()["source"] == "pyramid", "pyramid", 60)


class Watched:
    """A browser's session. What pages complain of is kept: errors, whatever a policy refused, dialogs."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 780}, **options})
        self.complaints: list[str] = []
        self.context.on("console", lambda line: line.type in {"error", "warning"} and self.complaints.append(line.text))
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.context.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.context.expose_function("clachanRefused", lambda what: self.complaints.append(what))
        self.context.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " event => clachanRefused(`${event.violatedDirective} ${event.blockedURI}`))"
        )
        self.page = self.context.new_page()

    def enter(self, server: Server, place: str = "/") -> Page:
        self.page.goto(server.url + place)
        self.page.fill("#token", TOKEN)
        self.page.click("button[type=submit]")
        return self.page


@pytest.fixture
def session(chromium: Browser) -> Iterator[Watched]:
    watched = Watched(chromium)
    yield watched
    watched.context.close()
    assert watched.complaints == []


def picture(page: Page, name: str) -> None:
    if os.environ.get("CLACHAN_PICTURES"):
        page.mouse.move(0, 0)
        taken = Image.open(BytesIO(page.screenshot()))
        taken.quantize(96, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)
        assert (PICTURES / f"{name}.png").stat().st_size < PICTURE_BYTES


def plot(page: Any, *, sound: bool = False) -> dict[str, str]:
    """What the plot says of itself when it is drawn."""
    page.wait_for_selector("figure.plot[data-state=ready]")
    if sound:
        page.wait_for_selector(".sonogram[data-state=ready]")
    found: dict[str, str] = page.evaluate("({...document.querySelector('figure.plot').dataset})")
    return found


def changed(page: Any, before: dict[str, str]) -> dict[str, str]:
    page.wait_for_function(
        "before => { const now = document.querySelector('figure.plot').dataset;"
        " return now.state === 'ready' && (now.start !== before.start || now.stop !== before.stop); }",
        arg=before,
    )
    return plot(page)


def shown(page: Any, share: float = 0.5) -> str:
    """What the readout says when the mouse is over that part of the plot."""
    area = page.locator(".u-over").bounding_box()
    page.mouse.move(area["x"] + area["width"] * share, area["y"] + area["height"] / 2)
    return str(page.locator(".readout").text_content())


def drag(page: Page, first: float, last: float) -> None:
    area = page.locator(".u-over").bounding_box()
    assert area is not None
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] * first, middle)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * last, middle, steps=5)
    page.mouse.up()


def test_from_the_login_to_a_zoomed_plot(filled: Server, session: Watched) -> None:
    page = session.enter(filled, "/?tag=weather")
    assert page.url == f"{filled.url}/?tag=weather"
    assert page.locator(".set").count() == 1
    page.click("text=Weather station")
    before = plot(page)
    rows = weather()
    assert (before["start"], before["stop"], before["source"]) == ("0", str(len(rows)), "rows")
    assert "°C" in shown(page)
    drag(page, 0.25, 0.5)
    after = changed(page, before)
    assert int(after["start"]) == pytest.approx(len(rows) * 0.25, rel=0.02)
    assert int(after["stop"]) == pytest.approx(len(rows) * 0.5, rel=0.02)
    text = shown(page, 0.2)
    when, _, value = text.partition(": ")
    number = int((np.datetime64(when.replace(" ", "T")) - rows["time"][0]) / np.timedelta64(60, "s"))
    column = rows["temperature"][number : number + int(after["step"])]
    assert value == f"{column.min():.6g} to {column.max():.6g} °C"
    picture(page, "lake-weather")
    page.select_option("select.column", "wind")
    page.wait_for_function("() => document.querySelector('figure.plot').dataset.state === 'ready'")
    assert float(shown(page).partition(": ")[2].split()[0]) >= 0
    page.locator(".u-over").dblclick()
    assert changed(page, after)["stop"] == str(len(rows))


def test_the_wheel_zooms_to_single_rows(filled: Server, session: Watched) -> None:
    page = session.enter(filled, "/page?kind=array&name=probe/long")
    found = plot(page)
    assert (found["source"], found["stop"]) == ("pyramid", str(LONG))
    # the one value that stands out is seen from afar, and still there when it is near
    assert "30,000" in _highest(page, STANDS_OUT / LONG)
    for _ in range(30):
        # a row is then wider than a pixel
        if int(found["stop"]) - int(found["start"]) < 500:
            break
        shown(page, (STANDS_OUT - int(found["start"])) / (int(found["stop"]) - int(found["start"])))
        page.mouse.wheel(0, -300)
        found = changed(page, found)
    assert (found["source"], found["step"]) == ("rows", "1")
    assert int(found["start"]) <= STANDS_OUT < int(found["stop"])
    assert "30,000" in _highest(page, (STANDS_OUT - int(found["start"])) / (int(found["stop"]) - int(found["start"])))


def _highest(page: Page, share: float) -> str:
    """The readouts around a part of the plot, as the mouse stands on whole pixels."""
    width = page.locator(".u-over").bounding_box()["width"]  # type: ignore[index]
    return " ".join(shown(page, share + step / width) for step in range(-4, 5))


def test_buttons_move_and_zoom(filled: Server, session: Watched) -> None:
    page = session.enter(filled, "/page?kind=array&name=probe/long")
    found = plot(page)
    seen = []
    for button in ("in", "forth", "back", "out", "in", "all"):
        page.click(f"button[data-do={button}]")
        found = changed(page, found)
        seen.append((round(int(found["start"]) / 1e6), round(int(found["stop"]) / 1e6)))
    assert seen == [(10, 30), (20, 40), (10, 30), (0, 40), (10, 30), (0, 40)]


def test_a_recording_has_its_spectrogram(filled: Server, session: Watched) -> None:
    page = session.enter(filled, f"/page?kind=array&name={SONG}")
    assert page.locator("h1").text_content() == "Rising note and bell"
    assert plot(page, sound=True)["sound"] == "yes"
    # the note rises by 50 Hz a second, and so does the brightest point
    low, high = _brightest(page, [0.14, 0.86])
    assert low == pytest.approx(300 + 50 * 0.14 * SECONDS, abs=120)
    assert high == pytest.approx(300 + 50 * 0.86 * SECONDS, abs=120)
    picture(page, "lake-recording")
    lineage = page.locator(".lineage li").all_text_contents()
    assert [" ".join(one.split()) for one in lineage] == [f"{SONG} stream", "wav", f"{SONG} array"]
    drag(page, 0.4, 0.45)
    page.wait_for_function("() => document.querySelector('figure.plot').dataset.start > 0")
    assert plot(page, sound=True)["source"] == "rows"


def _brightest(page: Page, shares: list[float]) -> list[float]:
    """The frequencies of the brightest points of these columns of the spectrogram."""
    high: list[float] = page.evaluate(
        """shares => { const canvas = document.querySelector(".sonogram canvas");
        const { width, height, data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const rows = [...Array(height).keys()];
        return shares.map(share => {
            const at = row => 4 * (row * width + Math.round(width * share));
            const light = row => data[at(row)] + data[at(row) + 1] + data[at(row) + 2];
            return 1 - (rows.reduce((a, b) => light(b) > light(a) ? b : a) + 0.5) / height;
        }); }""",
        shares,
    )
    return [one * RATE / 2 for one in high]


def test_the_catalogue_is_searched(filled: Server, session: Watched) -> None:
    page = session.enter(filled)
    assert page.locator(".set").count() == 7
    page.goto(f"{filled.url}/?cursor=array+HALL")
    picture(page, "lake-catalogue")
    page.fill("input[name=query]", "station ROOF")
    page.press("input[name=query]", "Enter")
    assert page.locator(".set .name").all_text_contents() == ["Weather station"]
    page.fill("input[name=query]", "no such thing")
    page.press("input[name=query]", "Enter")
    assert "Nothing found" in str(page.locator("main").text_content())
    page.goto(f"{filled.url}/?kind=stream")
    assert page.locator(".set").count() == 3


def test_it_looks_the_same_in_the_dark_and_on_a_phone(filled: Server, chromium: Browser) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    for options in ({"color_scheme": "dark"}, phone):
        watched = Watched(chromium, **options)
        page = watched.enter(filled)
        for place in ("/", "/page?kind=array&name=roof/weather", "/page?kind=stream&name=logs/web"):
            page.goto(filled.url + place)
            if "array" in place:
                plot(page)
            # nothing sticks out to the side
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place
        assert watched.complaints == []
        watched.context.close()


def test_hostile_names_run_nothing(filled: Server, session: Watched) -> None:
    page = session.enter(filled)
    for kind in ("array", "stream"):
        page.goto(f"{filled.url}/?kind={kind}")
        page.locator(".name", has_text="taken").click()
        page.wait_for_url("**/page?*")
        if kind == "array":
            plot(page)
            shown(page)
        assert page.title() == f"{HOSTILE} · Lake"
        assert page.locator("h1").text_content() == HOSTILE
        assert page.locator("main img").count() == 0
    page.goto(f"{filled.url}/?query=%3Cscript%3Edocument.title%3D1%3C/script%3E")
    assert page.title() == "<script>document.title=1</script> · Lake"


def test_what_a_policy_refuses_is_noticed(filled: Server, chromium: Browser) -> None:
    """Else the other tests would find nothing whatever happened."""
    watched = Watched(chromium)
    page = watched.enter(filled)
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'https://example.org/x.png'}))"
    )
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    page.wait_for_timeout(200)
    told = " ".join(watched.complaints)
    for directive in ("style-src-attr", "img-src", "require-trusted-types-for"):
        assert directive in told
    watched.context.close()


# -- gadgets in other pages


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Another site's server, and the folder of its pages."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        # by another name than the lake's: cookies know sites by their names
        yield f"http://localhost:{server.server_port}", tmp_path
        server.shutdown()
        thread.join()


def embed(folder: Path, *addresses: str) -> None:
    frames = "".join(f'<iframe src="{one.replace("&", "&amp;")}"></iframe>' for one in addresses)
    style = "body{font:17px/1.5 serif;margin:2rem;max-width:46rem}iframe{width:100%;height:400px;border:0}"
    text = "<h1>The roof's weather</h1><p>What the station has measured in spring. Drag to look closer.</p>"
    (folder / "index.html").write_text(
        f'<!doctype html><link rel="icon" href="data:,"><style>{style}</style>{text}{frames}'
    )


def token_for(server: Server, scope: str) -> str:
    made = server.session.post(f"{server.url}/tokens", json={"scopes": [scope]}, timeout=20)
    assert made.ok, made.text
    return str(made.json()["token"])


def test_a_gadget_in_a_foreign_page(filled: Server, chromium: Browser, foreign: tuple[str, Path]) -> None:
    watched = Watched(chromium, viewport={"width": 820, "height": 640})
    url, folder = foreign
    token = token_for(filled, "view:array/roof/weather")
    embed(folder, f"{filled.url}/gadget?kind=array&name=roof/weather&token={token}")
    watched.page.goto(url)
    frame = watched.page.frames[1]
    before = plot(frame)
    area = frame.locator(".u-over").bounding_box()
    assert area is not None
    picture(watched.page, "lake-gadget")
    for share, press in ((0.5, watched.page.mouse.down), (0.75, watched.page.mouse.up)):
        watched.page.mouse.move(area["x"] + area["width"] * share, area["y"] + 40, steps=4)
        press()
    after = changed(frame, before)
    assert int(after["start"]) == pytest.approx(1440 * DAYS / 2, rel=0.02)
    assert watched.complaints == []
    watched.context.close()


def test_a_frame_shows_nothing_without_its_token(filled: Server, chromium: Browser, foreign: tuple[str, Path]) -> None:
    watched = Watched(chromium)
    # who is logged in, and looks at another site's page
    watched.enter(filled)
    url, folder = foreign
    gadget = f"{filled.url}/gadget?kind=array&name=roof/weather"
    other = token_for(filled, "view:array/probe/long")
    embed(
        folder,
        gadget,
        f"{gadget}&token={other}",
        f"{gadget}&token=wrong",
        f"{filled.url}/page?kind=array&name=roof/weather",
    )
    watched.page.goto(url)
    watched.page.wait_for_timeout(500)
    for frame in watched.page.frames[1:]:
        assert frame.locator("figure").count() == 0
        assert "Weather" not in frame.content()
    assert watched.page.frames[1].locator("h1").text_content() == "401"
    assert watched.page.frames[2].locator("h1").text_content() == "403"
    assert watched.page.frames[3].locator("h1").text_content() == "401"
    watched.context.close()


def test_logging_out_closes_the_pages(filled: Server, session: Watched) -> None:
    page = session.enter(filled)
    page.click("text=Log out")
    assert page.url == f"{filled.url}/login"
    page.goto(filled.url)
    assert page.url == f"{filled.url}/login?next=%2F"
