"""lab open, lab notebook run: which lab, its address, what a notebook's parameters become. Notebooks are really run in
lake/tests/test_lab.py, in a lab that its role made."""

import json
import os
import stat
import subprocess

import pytest
from clachan.cli import lab_notebook, lab_server
from clachan.cli.scaffold import write_software

from .conftest import COMMAND, supplied

LIKE = "acme.like.lab"
TOKEN = "0123456789abcdef_-token"
CELL = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["seconds = 20\n", 'name: str = "x"\n']}


def notebook(*cells, minor=5, form=4):
    return {"cells": list(cells), "metadata": {}, "nbformat": form, "nbformat_minor": minor}


@pytest.fixture(scope="module")
def software(live, joined, tmp_path_factory):
    """A software that publishes what a lab does. The platform's own would need an installed platform."""
    collection = tmp_path_factory.mktemp("software") / "like"
    write_software(LIKE, collection)
    meta = collection / "roles/lab/meta/clachan.yml"
    meta.write_text(meta.read_text().replace("published:\n", "published:\n  token:\n    secret: true\n"))
    command = [COMMAND, "software", "register", str(collection)]
    subprocess.run(command, env=os.environ | {"CLACHAN_HOME": str(live.home)}, check=True, stdout=subprocess.DEVNULL)
    live.supply("here", LIKE)
    supplied(joined)
    return LIKE


@pytest.fixture
def lab(cli, machine, software, monkeypatch):
    """Makes one by its path."""
    monkeypatch.setattr(lab_server, "SOFTWARE", software)

    def make(path, url="http://127.1.2.3:20000/lab"):
        ran = cli("request", path, software, "--no-wait")
        assert ran.status == 0, ran.err
        machine.started(path, published={"url": url, "token": TOKEN} if url else {})

    return make


def test_which_lab(cli, lab, live, monkeypatch) -> None:
    for name in lab_server.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    ran = cli("lab", "open")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == f"clachan: lab: none, expected one, as by: clachan request home.lab {LIKE}\n"
    lab("home.lab_a")
    link = f"http://127.1.2.3:20000/lab?token={TOKEN}"
    assert cli("lab", "open").out == f"{link}\n"
    assert cli("lab", "open", "home.lab_a", "--json").json == {"path": "home.lab_a", "url": link}
    assert not (live.home / "lab.html").exists()
    lab("home.lab_b", url=None)
    assert cli("lab", "open").err == ("clachan: lab: home.lab_a, home.lab_b, expected the path of one of them\n")
    assert cli("lab", "open", "home.lab_b").err == (
        "clachan: instance home.lab_b: has not published url, expected a lab that is started\n"
    )


def test_of_a_hub_it_tells_name_and_a_token_that_ends(cli, lab, live) -> None:
    url = "https://127.1.2.9:20000/hub/"
    lab("home.hub", url=url)
    found = cli("lab", "open", "home.hub", "--json").json
    assert (found["path"], found["url"], found["seconds"]) == ("home.hub", url, 600)
    assert live.ok("GET", "/principal", headers={"authorization": f"Bearer {found['token']}"})["name"] == found["user"]
    [made] = [one for one in live.ok("GET", "/tokens")["items"] if one["title"] == "login to home.hub"]
    assert made["expires"] is not None
    told = cli("lab", "open", "home.hub").out.splitlines()
    assert (told[0], told[1]) == (url, f"user   {found['user']}")
    assert told[2].endswith("(for 10 minutes)")


def test_the_browser_gets_a_file_that_only_its_user_reads(tmp_path, monkeypatch) -> None:
    """An address with a token would stand in the list of processes."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/given\n')
    program.chmod(0o755)
    monkeypatch.setenv("CLACHAN_HOME", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setenv("BROWSER", f"{program} %s")
    monkeypatch.setattr("webbrowser._tryorder", None)
    lab = lab_server.Lab("home.lab", "http://127.1.2.3:20000/lab", 'a"<b>')
    assert lab_server.open_in_browser(lab)
    page = tmp_path / "lab.html"
    assert (tmp_path / "given").read_text() == page.as_uri()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert 'content="0; url=http://127.1.2.3:20000/lab?token=a%22%3Cb%3E"' in page.read_text()
    assert "token" not in repr(lab)


def test_parameters_are_values_and_never_code() -> None:
    book = notebook({"cell_type": "markdown", "metadata": {}, "source": "x"}, CELL)
    given = ["seconds=3", 'name=";import os #', 'name={"a": [true, null]}', "seconds=NaN"]
    lab_notebook.set_parameters(book, given)
    cell = book["cells"][2]
    assert (cell["id"], cell["metadata"]) == ("injected-parameters", {"tags": ["injected-parameters"]})
    assert cell["source"] == [
        "seconds = 3\n",
        "name = '\";import os #'\n",
        "name = {'a': [True, None]}\n",
        "seconds = 'NaN'\n",
    ]
    # set again, of a result: instead of those before
    lab_notebook.set_parameters(book, ["seconds=4"])
    assert [cell["source"] for cell in book["cells"][2:]] == [["seconds = 4\n"]]
    old = notebook(CELL, minor=4)
    lab_notebook.set_parameters(old, ["seconds=1"])
    assert "id" not in old["cells"][1]


@pytest.mark.parametrize(
    ("content", "arguments", "status", "error"),
    [
        ("no", [], 1, "n.ipynb: Expecting value"),
        (json.dumps([]), [], 1, "n.ipynb: nbformat None, expected 4 with cells"),
        (json.dumps(notebook(form=3)), [], 1, "n.ipynb: nbformat 3, expected 4 with cells"),
        (json.dumps(notebook(7)), [], 1, "n.ipynb: nbformat 4, expected 4 with cells"),
        (json.dumps(notebook()), ["-p", "a=1"], 1, "notebook: no cell with the tag parameters, expected one"),
        (
            json.dumps(notebook(CELL)),
            ["-p", "a=1"],
            2,
            "parameter 'a=1', expected NAME=VALUE, NAME one of seconds, name",
        ),
        (json.dumps(notebook(CELL)), ["-p", "seconds"], 2, "parameter 'seconds', expected NAME=VALUE"),
    ],
)
def test_a_notebook_that_cannot_be_run(cli, tmp_path, content, arguments, status, error) -> None:
    (tmp_path / "n.ipynb").write_text(content)
    ran = cli("lab", "notebook", "run", "n.ipynb", *arguments)
    assert (ran.status, ran.out) == (status, "")
    assert error in " ".join(ran.err.replace("│", " ").split())
    assert not (tmp_path / "n-result.ipynb").exists()


def test_a_lab_that_does_not_answer(cli, lab, tmp_path) -> None:
    lab("home.lab_silent", url="http://127.1.2.3:9/lab")
    (tmp_path / "n.ipynb").write_text(json.dumps(notebook(CELL)))
    ran = cli("lab", "notebook", "run", "n.ipynb", "--lab", "home.lab_silent")
    assert (ran.status, ran.out) == (1, "")
    assert "clachan: lab home.lab_silent: " in ran.err
    assert "expected an answer from http://127.1.2.3:9" in ran.err
    assert TOKEN not in ran.err
