"""The lab in a real browser, Debian's Chromium without a window: the login, a notebook run from first cell to last, its
pictures; and names that are no markup.

With CLACHAN_PICTURES=1 the picture in docs/images is taken anew.
"""

import json
import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from .test_browser import chromium, picture
from .test_lab import SECRET, Running, make_lab, running

__all__ = ["chromium", "make_lab", "running"]
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><b>bold.ipynb"
WIDTH, HEIGHT = 1240, 860
MINUTE = 60_000
pytestmark = pytest.mark.slow


@pytest.fixture
def page(chromium: Browser, running: Running) -> Iterator[Page]:
    """Logged in, at the lab's page."""
    context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    context.set_default_timeout(MINUTE)
    opened = context.new_page()
    opened.goto(running.lab.url)
    assert opened.url == f"{running.lab.base}/login?next=%2Flab"
    opened.fill("input[name=password]", "not-the-token-of-the-lab")
    opened.click("#login_submit")
    expect(opened.locator("body")).to_contain_text("Invalid credentials")
    opened.fill("input[name=password]", SECRET)
    opened.click("#login_submit")
    opened.wait_for_url("**/lab")
    ready(opened)
    yield opened
    context.close()


def ready(page: Page) -> None:
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    page.wait_for_selector(".jp-DirListing-item")


def entry(page: Page, name: str) -> None:
    """Opened in the list of files, as somebody does who sees it there."""
    item = page.locator(f".jp-DirListing-item[title^='Name: {name}']")
    expect(item).to_be_visible()
    item.dblclick()


def look_at(page: Page, shown: Locator) -> None:
    """Cells find their heights when they come into sight, and what is below moves once more."""
    for _ in range(20):
        shown.evaluate("one => one.scrollIntoView({block: 'center'})")
        page.wait_for_timeout(300)
        box = shown.bounding_box()
        if box and 90 < box["y"] < HEIGHT - 30 - box["height"]:
            return
    raise AssertionError(f"{shown}: at {box}, expected it in sight")


def test_log_in_run_all_see_the_picture(page: Page, running: Running) -> None:
    entry(page, "examples")
    entry(page, "waveform.ipynb")
    shown = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    expect(shown.locator("h1")).to_contain_text("A recording: waveform, spectrum, spectrogram")
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells")
    # the last cell's summary comes when all before it have run
    expect(shown).to_contain_text("'peak_hz': 440", timeout=2 * MINUTE)
    assert shown.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    pictures = shown.locator(".jp-RenderedImage img")
    for number in range(3):
        look_at(page, pictures.nth(number))
    drawn = pictures.evaluate_all("all => all.map(one => [one.naturalWidth, one.naturalHeight])")
    assert len(drawn) == 3
    assert all(width > 600 and height > 150 for width, height in drawn)
    picture(page, "lab-waveform")
    # nobody is asked whether to fetch something from elsewhere
    assert "Jupyter news" not in str(page.locator("body").text_content())
    (kernel,) = running.kernels()
    assert kernel["name"] == "science"
    running.lab.ask("DELETE", f"/api/kernels/{kernel['id']}")


def test_a_name_with_markup_is_text(page: Page, running: Running) -> None:
    cell = {"cell_type": "markdown", "metadata": {}, "source": "a name"}
    kernel = {"kernelspec": {"name": "science", "display_name": "Science", "language": "python"}}
    book = {"nbformat": 4, "nbformat_minor": 4, "metadata": kernel, "cells": [cell]}
    running.lab.ask("PUT", f"/api/contents/{quote(HOSTILE)}", {"type": "notebook", "content": book})
    page.goto(f"{running.lab.url}?reset")
    ready(page)
    item = page.locator(".jp-DirListing-itemText").filter(has_text="onerror")
    expect(item).to_have_text(re.compile(re.escape(HOSTILE.removesuffix(".ipynb"))))
    item.dblclick()
    tab = page.locator(".lm-TabBar-tabLabel").filter(has_text="onerror")
    expect(tab).to_have_text(HOSTILE)
    tab.hover()
    expect(page.locator(".jp-NotebookPanel .jp-RenderedMarkdown")).to_contain_text("a name")
    page.wait_for_timeout(500)
    assert "taken" not in page.title().replace(HOSTILE, "")
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("b", has_text="bold").count() == 0
    assert json.loads((running.slot / "var/home" / HOSTILE).read_text())["cells"][0]["source"] == ["a name"]
