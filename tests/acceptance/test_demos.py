"""The two demonstrations, on a platform that was just brought up: a recording, and what the platform consumes."""

import json
import pathlib
import re

import pytest

from .conftest import Newcomer

pytestmark = [pytest.mark.heavy, pytest.mark.long, pytest.mark.root, pytest.mark.timeout(1800)]
PNG = b"\x89PNG"


def written(demo: dict) -> None:
    """Whole files, without the token of whatever gave them."""
    for path in map(pathlib.Path, demo["pictures"]):
        assert path.read_bytes().startswith(PNG)
    page = pathlib.Path(demo["page"]).read_text()
    assert page.endswith("</html>\n")
    assert page.count('src="data:image/png;base64,') == len(demo["pictures"]) == 3


def revisions(newcomer: Newcomer) -> dict[str, int]:
    listed = json.loads(newcomer.clachan("instance", "list", "--json").output)
    return {item["path"]: item["revision"] for item in listed}


# one user is enough: `test_up` is about both
@pytest.mark.parametrize("newcomer", ["user"], indirect=True)
def test_the_demos_order_what_they_need(newcomer: Newcomer) -> None:
    newcomer.clachan("up", "--no-demo")
    wav = demo(newcomer, "wav", "--seconds", "10")
    assert wav["results"]["tones_hz"] == [440, 1000, 5000]
    assert wav["results"]["written"] is True
    written(wav)
    usage = demo(newcomer, "usage", "--cpu-hour", "1", "--gib-hour", "0")
    written(usage)
    assert "home.lake" in usage["results"]["instances"]
    assert usage["results"]["cost"] == pytest.approx(sum(usage["results"]["cpu_hours"].values()))
    assert usage["results"]["cost"] > 0
    before = revisions(newcomer)
    assert set(before) == {"home.lake", "home.forwarder", "home.lab", "home.meter"}
    tokens = newcomer.clachan("token", "list").output
    # again: nothing is ordered, and what is the same is left as it is
    pictures = [pathlib.Path(path).stat().st_mtime_ns for path in wav["pictures"]]
    again = demo(newcomer, "wav", "--seconds", "10")
    assert again["results"] == wav["results"]
    assert [pathlib.Path(path).stat().st_mtime_ns for path in again["pictures"]] == pictures
    assert demo(newcomer, "usage")["results"]["records"] >= usage["results"]["records"]
    assert revisions(newcomer) == before
    assert newcomer.clachan("token", "list").output == tokens
    # and the lab is the one that is ordered with the platform
    assert "changed=0" in newcomer.clachan("up", "--no-demo", "--lab").plain
    assert re.search(r"http://127\.\S+/lab\?token=\S+", newcomer.clachan("lab", "open", "--no-browser").plain)


def demo(newcomer: Newcomer, *arguments: str) -> dict:
    """What it says as JSON, behind its progress."""
    output = newcomer.clachan("demo", *arguments, "--json").output
    found: dict = json.loads(output[output.index("\n{\n") :])
    return found


@pytest.mark.parametrize("newcomer", ["user"], indirect=True)
def test_a_lab_that_is_not_wanted_is_told(newcomer: Newcomer) -> None:
    newcomer.clachan("request", "home.lab", "--state", "stopped")
    refused = newcomer.clachan("demo", "wav", expect=1)
    assert "clachan: instance home.lab: stopped, expected it to be started" in refused.plain
