"""The lab's notebooks `consumption` and `page`, run in a lab that its role made, on a real lake; their numbers are
checked, and what they leave."""

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from clachan.cli import platform_notebooks
from clachan.cli.errors import CommandError
from clachan_lake.opening import open_lake
from PIL import Image

from .making import TOKEN, Server, wait_for
from .test_forward import Forwarder
from .test_forward_records import USAGE_TOKEN, Controller, controller
from .test_lab import PROXIES, Running, make_lab, running

__all__ = ["controller", "make_lab", "running"]
ODD = "guest.$\\frac{<b>"
MIDNIGHT = 24 * 60
pytestmark = pytest.mark.slow


def at(minute: int) -> str:
    """Of 2026-11-26 and the days after it."""
    return f"2026-11-{26 + minute // MIDNIGHT}T{minute // 60 % 24:02}:{minute % 60:02}:00.000Z"


def record(path: str, meter: str, quantity: int, start: int, minutes: int = 1, **more: Any) -> dict[str, Any]:
    """In the form of the controller's `GET /api/v1/usage`."""
    return {
        "id": f"{path}-{meter}-{start}-{quantity}",
        "node": "here",
        "instance": "00000000-0000-4000-8000-000000000001",
        "path": path,
        "tenant": "home",
        "account": "home",
        "meter": meter,
        "window_start": at(start),
        "window_end": at(start + minutes),
        "quantity": quantity,
        "billable": True,
        **more,
    }


def consumption() -> list[dict[str, Any]]:
    """Ten minutes on each side of midnight."""
    first = MIDNIGHT - 10
    found = []
    for minute in range(first, first + 20):
        # at midnight the agent was started anew: that window was counted in two parts
        parts = (2999, 3001) if minute == MIDNIGHT else (6000,)
        found += [record("home.lake", "cpu_milliseconds", part, minute) for part in parts]
        found += [
            record("home.lake", "memory_mib_seconds", 12_000, minute),
            record("home.lake", "instance_seconds", 60, minute),
        ]
    # this node was asleep
    found += [
        record("home.forwarder", "cpu_milliseconds", 1_200_000, first, 20),
        record("home.forwarder", "memory_mib_seconds", 60_000, first, 20),
    ]
    return [*found, record(ODD, "cpu_milliseconds", 30_000, MIDNIGHT - 1, billable=False)]


@pytest.fixture
def forwarder(server: Server, controller: str, tmp_path: Path) -> Iterator[Forwarder]:
    """Ships what `Controller.records` holds."""
    made = Forwarder(tmp_path, server, usage_url=controller, usage_seconds=0.1, records_flush_seconds=0.1)
    (tmp_path / "usage-token").write_text(USAGE_TOKEN)
    made.config["usage_token_file"] = str(tmp_path / "usage-token")
    del made.config["directory"]
    yield made
    made.stop()


def shipped(server: Server) -> bool:
    return server.get("/streams/data", name="usage").content.count(b"\n") == len(Controller.records)


PRICES = ("cpu_hour=6", "gib_hour=1024")
LAKE, SHIPPER = (0.2 + 200 / 3) / 2, (2 + 50 / 3) / 2
"""What each costs in half of the time."""


def test_consumption(running: Running, server: Server, forwarder: Forwarder, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="lake: no stream usage, expected a forwarder that ships usage records"):
        running.run("consumption", folder=tmp_path)
    Controller.records = consumption()
    forwarder.start()
    wait_for(lambda: shipped(server), "records")
    found = running.run("consumption", *PRICES, folder=tmp_path)
    assert (found["records"], found["minutes"]) == (len(Controller.records), 1)
    assert found["instances"] == [ODD, "home.forwarder", "home.lake"]
    assert found["cpu_hours"] == pytest.approx({ODD: 1 / 120, "home.forwarder": 1 / 3, "home.lake": 1 / 30})
    assert found["gib_hours"] == pytest.approx({ODD: 0, "home.forwarder": 50 / 3 / 1024, "home.lake": 200 / 3 / 1024})
    assert found["most_cpus"] == pytest.approx({ODD: 0.5, "home.forwarder": 1, "home.lake": 0.1})
    assert found["most_mib"] == pytest.approx({"home.forwarder": 50, "home.lake": 200})
    days = {"2026-11-26": LAKE + SHIPPER, "2026-11-27": LAKE + SHIPPER}
    assert found["cost_per_day"] == pytest.approx(days)
    assert found["cost"] == pytest.approx(2 * (LAKE + SHIPPER))
    # names are text in pictures and tables
    book = (tmp_path / "consumption.ipynb").read_text()
    assert "guest.$\\\\frac{&lt;b&gt;" in book
    assert book.count('"image/png"') == 3
    with open_lake(server.url, token=TOKEN) as lake:
        revision = lake.transformations.describe("usage/records")["revision"]
    # more comes: the array has it, the declaration is as it was, and longer steps give the same sums
    Controller.records += [record("home.lake", "cpu_milliseconds", 60_000, 2 * MIDNIGHT + 5)]
    wait_for(lambda: shipped(server), "another record")
    again = running.run("consumption", *PRICES, "minutes=720", folder=tmp_path)
    assert again["cpu_hours"]["home.lake"] == pytest.approx(1 / 30 + 1 / 60)
    assert again["cost_per_day"] == pytest.approx(days | {"2026-11-28": 0.1})
    assert again["most_cpus"] == pytest.approx({ODD: 0.5, "home.forwarder": 1, "home.lake": 1})
    with open_lake(server.url, token=TOKEN) as lake:
        assert lake.transformations.describe("usage/records")["revision"] == revision
        assert lake.arrays["usage/records"].rows == again["records"] == len(Controller.records)


def test_a_page(running: Running, server: Server, tmp_path: Path) -> None:
    found = running.run("page", folder=tmp_path)
    assert (found["hours"], found["scopes"]) == (168, ["view:array/page/hourly"])
    assert 13.9 < found["coldest"] < 14.3 < 23 < found["warmest"] < 24.1
    assert (found["with_token"], found["without"]) == (200, 401)
    page = running.slot / "var/home" / "gadget.html"
    assert found["page"] == str(page)
    address = unescape(re.search(r'<iframe src="([^"]+)"', page.read_text())[1])
    token = parse_qs(urlsplit(address).query)["token"][0]
    assert "The hours of Sensor in the hall" in fetched(address).text
    assert fetched(address.partition("&token")[0]).status_code == 401
    # of this array alone, and for reading alone
    with_token = f"token={token}"
    plot = fetched(f"{server.url}/plot?name=page/hourly&{with_token}").json()
    assert [column["label"] for column in plot["columns"]] == ["mean", "low", "high"]
    assert fetched(f"{server.url}/plot?name=page/sensor&{with_token}").status_code == 403
    assert fetched(f"{server.url}/gadget?kind=array&name=page/sensor&{with_token}").status_code == 403
    assert fetched(f"{server.url}/catalogue?{with_token}").status_code in {401, 403}
    gone = requests.delete(f"{server.url}/arrays/meta?name=page/hourly&{with_token}", timeout=20, proxies=PROXIES)
    assert gone.status_code in {401, 403}
    # neither the gadget's token nor the lake's is in the notebook
    kept = (tmp_path / "page.ipynb").read_text()
    assert token not in kept
    assert TOKEN not in kept
    assert "&amp;token=%E2%80%A6" in kept
    # a second run leaves all of it as it is
    before = (page.stat().st_mtime_ns, tokens(server), commits(server))
    assert running.run("page", folder=tmp_path) == found
    assert (page.stat().st_mtime_ns, tokens(server), commits(server)) == before
    # a token that was revoked is replaced
    (key,) = tokens(server)
    with open_lake(server.url, token=TOKEN) as lake:
        lake.tokens.revoke(key)
    assert fetched(address).status_code == 401
    assert running.run("page", folder=tmp_path)["with_token"] == 200
    assert token not in page.read_text()


def fetched(address: str) -> requests.Response:
    return requests.get(address, timeout=20, proxies=PROXIES, allow_redirects=False)


def tokens(server: Server) -> list[str]:
    with open_lake(server.url, token=TOKEN) as lake:
        return [key for key in lake.tokens if lake.tokens[key]["scopes"] == ["view:array/page/hourly"]]


def commits(server: Server) -> int:
    with open_lake(server.url, token=TOKEN) as lake:
        return len(lake.arrays["page/hourly"].history())


def test_a_demo_writes_a_page_and_pictures(running: Running, server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    parameters = {"recording": "", "seconds": 5}

    def demo() -> platform_notebooks.Outcome:
        return platform_notebooks.run_in(
            running.lab, platform_notebooks.WAV, parameters, tmp_path, lambda state, _message: said.append(state)
        )

    first = demo()
    assert {"starting the kernel", "cell 1 of 9", "9 cells done"} <= set(said)
    assert (first.results["samples"], first.results["tones_hz"]) == (5 * 48_000, [440, 1000, 5000])
    names = ["waveform.png", "spectrum.png", "spectrogram.png"]
    assert [path.name for path in first.pictures] == names
    assert [path.name for path in first.changed] == ["wav.html", *names]
    for path in first.pictures:
        with Image.open(path) as picture:
            assert (picture.format, picture.width > 600) == ("PNG", True)
    page = first.page.read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert "<h2>Spectrogram</h2>" in page
    assert "array sound/spectrogram" in page
    assert TOKEN not in page
    # again: what it sent and wrote is there, in the lake and here; what is not is written again
    (tmp_path / "spectrum.png").unlink()
    with open_lake(server.url, token=TOKEN) as lake:
        before = lake.arrays["sound/spectrogram"].history()
        again = demo()
        lake.refresh()
        assert lake.arrays["sound/spectrogram"].history() == before
    assert again.results == first.results
    # the page shows that nothing was sent this time
    assert [path.name for path in again.changed] == ["wav.html", "spectrum.png"]
    missing = platform_notebooks.Demo("wav", "no_such", "")
    expected = (
        r"lab home\.lab: no examples/no_such\.ipynb, expected a lab of this version: clachan request home\.lab .*"
    )
    with pytest.raises(CommandError, match=expected):
        platform_notebooks.run_in(running.lab, missing, {}, tmp_path, lambda _state, _message: None)


def test_notebooks_are_kept_without_results() -> None:
    folder = Path(__file__).resolve().parents[2] / "roles/lab/files/notebooks"
    for path in folder.iterdir():
        book = json.loads(path.read_text())
        ids = [cell["id"] for cell in book["cells"]]
        assert len(set(ids)) == len(ids), path.name
        assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in book["cells"]), path.name
