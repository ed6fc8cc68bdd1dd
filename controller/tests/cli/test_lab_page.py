"""A notebook as a page: what it shows, and that nothing in it runs. And the demos that need a platform."""

import base64
from html.parser import HTMLParser

import pytest
from clachan.cli.app import run
from clachan.cli.lab_page import page, pictures

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
DOT = b"\x89PNG\r\n\x1a\n-a-dot"


def cell(kind, source, *outputs):
    return {"cell_type": kind, "source": source, "metadata": {}} | (
        {"outputs": list(outputs)} if kind == "code" else {}
    )


def shown(**data):
    return {"output_type": "display_data", "data": {name.replace("_", "/"): value for name, value in data.items()}}


def picture(content=DOT):
    return shown(image_png=base64.encodebytes(content).decode(), text_plain=MARKUP)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def test_what_a_page_shows() -> None:
    book = {
        "cells": [
            cell("markdown", ["# Title & more\n", "\n", "Of `a < b`, see [here](https://example.org/?a=1&b=2).\n"]),
            cell("markdown", "an `odd one"),
            cell(
                "code", "1 < 2\n", shown(text_plain="True"), {"output_type": "stream", "text": ["\x1b[31mred\x1b[0m\n"]}
            ),
            cell("code", "x", picture(), shown(text_html="<table></table>", text_plain="no")),
            cell("code", "1 / 0", {"output_type": "error", "traceback": ["\x1b[0;31mZeroDivisionError", "line <2>"]}),
            cell("raw", "as <it> is"),
            cell("code", " \n"),
        ]
    }
    found = page(book, "Title & more")
    for part in (
        "<title>Title &amp; more</title>",
        "<h1>Title &amp; more</h1>",
        '<p>Of <code>a &lt; b</code>, see <a href="https://example.org/?a=1&amp;b=2" rel="noreferrer">here</a>.</p>',
        "<p>an `odd one</p>",
        "<pre>1 &lt; 2\n</pre></details>\n<pre>True</pre>\n<pre>red\n</pre>",
        f'src="data:image/png;base64,{base64.b64encode(DOT).decode()}"',
        "<div><table></table></div>",
        "<pre>ZeroDivisionError\nline &lt;2&gt;</pre>",
        "<pre>as &lt;it&gt; is</pre>",
    ):
        assert part in found
    assert "no</pre>" not in found
    assert found.count("<summary>") == 3


def test_text_is_text_and_nothing_runs() -> None:
    hostile = [
        cell("markdown", f'# {MARKUP}\n\n`{MARKUP}` [{MARKUP}](javascript:alert(1)) [x](https://a/"onclick="b)'),
        cell("code", MARKUP, picture(), shown(text_plain=MARKUP), {"output_type": "stream", "text": MARKUP}),
        cell("code", MARKUP, {"output_type": "error", "traceback": [MARKUP]}),
        cell("raw", MARKUP),
    ]
    found = page({"cells": hostile}, MARKUP)
    tags = Tags(found).found
    assert "script" not in tags
    assert tags.count("img") == 1
    assert 'href="javascript' not in found
    assert '"onclick="' not in found
    # and of HTML that an output gives: no script may run, nothing is fetched
    policy = found.index('http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;')
    assert policy < found.index("<title>")


def test_pictures_are_called_after_their_headings() -> None:
    book = {
        "cells": [
            cell("code", "0", picture()),
            cell("markdown", "# A book\n\n## CPU & Memory/../x\n\ntext"),
            cell("code", "1", picture(b"one"), shown(text_plain="no picture"), picture(b"two")),
            cell("markdown", "## ///"),
            cell("code", "2", picture(b"three")),
            cell("markdown", "no heading"),
            cell("code", "3", shown(image_png=[base64.b64encode(b"four").decode()])),
        ]
    }
    assert pictures(book) == {
        "picture.png": DOT,
        "cpu-memory-x.png": b"one",
        "cpu-memory-x-2.png": b"two",
        "cpu-memory-x-3.png": b"three",
        "cpu-memory-x-4.png": b"four",
    }


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (["wav"], 1, "clachan: folder {home}/demo: does not exist, expected 'clachan up' to have made it\n"),
        (["usage"], 1, "clachan: folder {home}/demo: does not exist, expected 'clachan up' to have made it\n"),
        (["--json", "wav"], 2, "--input and --json, expected none before wav"),
    ],
)
def test_a_demo_that_cannot_be(tmp_path, monkeypatch, capsys, arguments, status, error) -> None:
    monkeypatch.setenv("CLACHAN_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        run(["demo", *arguments])
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (status, "")
    assert error.format(home=tmp_path) in said.err
