"""Looking at data: the first plot of an array of 10^9 samples and zooming into it, over HTTP and in a real browser; the
catalogue of many streams.

`bench_pages.py plot`, `catalogue` run one part; all do by default. SAMPLES (10^9, or the environment's) of 16 bit are
written to the disk, every one of them; the transformation `minmax` makes the pyramid. Cold: the kernel's pages of the
lake's files are dropped before each request. STREAMS (10,000). Needs 3 GiB of disk below /var/tmp. Medians.
"""

import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import requests
from clachan_lake import open_lake
from measured import ROOT, header, row, wait_until

sys.path.insert(0, str(ROOT / "lake"))
from tests.making import TOKEN, Server

SAMPLES = int(float(os.environ.get("SAMPLES", "1e9")))
STREAMS = int(os.environ.get("STREAMS", "10000"))
BLOCK = 1 << 24
ROUNDS = 15


@contextmanager
def served() -> Iterator[Server]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"clachan-bench-pages-{os.getpid()}-", dir="/var/tmp"))
    server = Server(folder, worker_seconds=60)
    try:
        yield server.start()
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def goal(found: float, limit: float) -> str:
    return f"<= {limit * 1000:g} ms {'ok' if found <= limit else 'MISSED'}"


def ms(time_: float) -> str:
    return f"{time_ * 1000:.0f} ms"


def median(work: Callable[[], float], rounds: int = ROUNDS) -> float:
    return statistics.median(work() for _ in range(rounds))


def fetch(server: Server, path: str, **query: object) -> float:
    """Seconds until the whole answer is there."""
    began = time.perf_counter()
    answer = server.session.get(server.url + path, params=query, timeout=60)
    took = time.perf_counter() - began
    answer.raise_for_status()
    return took


def chill(server: Server) -> None:
    """Drop what the kernel has of the lake's files."""
    for path in server.folder.rglob("*.blob"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def memory(server: Server) -> float:
    """MiB of the process's own, without the mapped files that it shares with the kernel."""
    assert server.process is not None
    found = psutil.Process(server.process.pid).memory_full_info()
    return float(found.uss) / (1 << 20)


# -- a long array


def fill(server: Server) -> None:
    """A slow wave with noise on it, and one value that stands out."""
    noise = np.random.default_rng(1).integers(-3000, 3000, BLOCK, "<i2")
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
        with lake.transaction():
            lake.arrays.create("long", 0, "<i2", {"rate": 96_000, "title": "A long one"})
        for first in range(0, SAMPLES, BLOCK):
            wave = 8000 * np.sin(np.arange(first, first + BLOCK, 1024) / 3e7)
            block = np.repeat(wave.astype("<i2"), 1024) + np.roll(noise, first // 1000)
            if first == 0:
                block[1_234_567] = 32_000
            with lake.transaction():
                lake.arrays["long"].append(block[: SAMPLES - first])


def keep_pyramid(server: Server) -> float:
    document = {"function": "minmax", "source": {"kind": "array", "pattern": "long"}}
    began = time.perf_counter()
    path = f"{server.url}/transformations/meta"
    server.session.put(path, params={"name": "pyramids"}, json=document, timeout=60).raise_for_status()

    def done() -> bool:
        found = server.get("/arrays", prefix="~minmax/long/256", hidden=1).json()["items"]
        return bool(found) and found[0]["shape"][0] == SAMPLES // 256

    wait_until("pyramid", 600, done, 0.2)
    wait_until("its upper levels", 60, lambda: plot(server)["source"] == "pyramid", 0.2)
    return time.perf_counter() - began


def plot(server: Server, **query: object) -> dict:
    answer = server.session.get(f"{server.url}/plot", params={"name": "long", **query}, timeout=60)
    answer.raise_for_status()
    found: dict = answer.json()
    return found


def plots(server: Server) -> None:
    header("")
    began = time.perf_counter()
    fill(server)
    row(f"{SAMPLES:.0e} samples of 16 bit written, synced", f"{time.perf_counter() - began:.1f} s")
    sampled = median(lambda: fetch(server, "/plot", name="long"), 5)
    row("a plot of all before there is a pyramid, a sample", ms(sampled))
    row("the pyramid made by the worker", f"{keep_pyramid(server):.1f} s")
    found = plot(server)
    assert (found["source"], max(found["high"])) == ("pyramid", 32_000), "the value that stands out"
    everything = median(lambda: fetch(server, "/plot", name="long"))
    row("first plot, over HTTP", ms(everything), goal=goal(everything, 1))
    cold = median(lambda: (chill(server), fetch(server, "/plot", name="long"))[1], 5)
    row("first plot, cold", ms(cold), goal=goal(cold, 1))
    for length in (SAMPLES // 10, SAMPLES // 100, SAMPLES // 1000, 10_000):
        starts = iter(np.random.default_rng(length).integers(0, SAMPLES - length, 2 * ROUNDS).tolist())

        def zoom(
            prepare: Callable[[], None] = lambda: None, length: int = length, starts: Iterator[int] = starts
        ) -> float:
            prepare()
            start = next(starts)
            return fetch(server, "/plot", name="long", start=start, stop=start + length)

        warm, cold = median(zoom), median(lambda zoom=zoom: zoom(lambda: chill(server)), 5)
        source = plot(server, start=5, stop=5 + length)["source"]
        row(f"zoom to {length:,} samples ({source}); cold", f"{ms(warm)}; {ms(cold)}", goal=goal(max(warm, cold), 0.3))
    tile = iter(range(ROUNDS + 5))
    row(
        "a tile of a spectrogram, 256 x 256",
        ms(median(lambda: fetch(server, "/spectrogram", name="long", zoom=12, tile=next(tile)))),
    )
    in_browser(server)
    row("server's own memory afterwards", f"{memory(server):.0f} MiB")


def in_browser(server: Server) -> None:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        row("in a browser", "no chromium here")
        return
    arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=arguments) as browser,
    ):
        page = browser.new_page()
        page.goto(server.url)
        page.fill("#token", TOKEN)
        page.click("button[type=submit]")
        firsts, zooms = [], []
        for _ in range(5):
            began = time.perf_counter()
            page.goto(f"{server.url}/page?kind=array&name=long")
            page.wait_for_selector("figure[data-state=ready]")
            firsts.append(time.perf_counter() - began)
            for _ in range(8):
                before = page.evaluate("() => document.querySelector('figure').dataset.stop")
                began = time.perf_counter()
                page.click("button[data-do=in]")
                page.wait_for_function(
                    "stop => { const now = document.querySelector('figure').dataset;"
                    " return now.state === 'ready' && now.stop !== stop }",
                    arg=before,
                )
                zooms.append(time.perf_counter() - began)
        first, zoom = statistics.median(firsts), statistics.median(zooms)
        row("in Chromium: from the address to the plot", ms(first), goal=goal(first, 1))
        row("in Chromium: from the click to the zoomed plot", ms(zoom), goal=goal(zoom, 0.3))


# -- many streams


def catalogue(server: Server) -> None:
    header("")
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
        for first in range(0, STREAMS, 1000):
            with lake.transaction():
                for number in range(first, min(STREAMS, first + 1000)):
                    about = {"title": f"Sensor {number}", "tags": [f"site{number % 50}", "sensor"], "owner": "Met"}
                    lake.streams.create(f"site{number % 50}/sensor{number}", "raw", about).append(b"1,2,3\n" * 20)
    fetch(server, "/catalogue", limit=50)
    before = memory(server)
    for what, query in (
        ("first page of 50", {"limit": 50}),
        ("a page of 500", {"limit": 500}),
        ("a page from the middle", {"limit": 50, "cursor": "stream site30/sensor30"}),
        ("a search that finds 50 soon", {"query": "sensor 1", "limit": 50}),
    ):
        row(
            f"catalogue of {STREAMS:,} streams: {what}",
            ms(median(lambda query=query: fetch(server, "/catalogue", **query))),
        )
    row("  a search that finds one, all of it", ms(median(lambda: search(server, f"sensor{STREAMS - 1} Met"), 5)))
    row("  the page in HTML", ms(median(lambda: fetch(server, "/"))))
    row("  all as JSON-LD", ms(median(lambda: fetch(server, "/catalogue.jsonld"), 3)))
    row("server's own memory before; after", f"{before:.0f}; {memory(server):.0f} MiB")


def search(server: Server, query: str) -> float:
    """Page by page, to the end."""
    began, cursor, found = time.perf_counter(), "", 0
    while cursor is not None:
        answer: requests.Response = server.get("/catalogue", query=query, cursor=cursor)
        found += len(answer.json()["items"])
        cursor = answer.json()["cursor"]
    assert found == 1, found
    return time.perf_counter() - began


def main() -> None:
    parts = {"plot": plots, "catalogue": catalogue}
    for name in sys.argv[1:] or parts:
        with served() as server:
            parts[name](server)
        print(flush=True)


if __name__ == "__main__":
    main()
