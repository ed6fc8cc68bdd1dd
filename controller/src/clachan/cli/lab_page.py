"""A notebook that was run, as one HTML file that needs nothing else, and its pictures.

Of Markdown: headings, paragraphs, `code` and links. No script runs in the page and nothing is fetched, whatever an
output holds: its Content-Security-Policy says so.
"""

import base64
import re
from html import escape
from typing import Any

Notebook = dict[str, Any]
PNG = "image/png"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "img{max-width:100%;background:#fff}pre{overflow-x:auto;font:13px/1.45 monospace;margin:.5rem 0}"
    "details>pre{padding:.6rem;background:#8881;border-radius:4px}summary{cursor:pointer;opacity:.6;font-size:13px}"
    "table{border-collapse:collapse}td,th{padding:2px 12px 2px 0;text-align:right}"
)


def page(book: Notebook, title: str) -> str:
    """What readers see of it: the text, the outputs, and the code of each cell behind a click."""
    body = "\n".join(_cell(cell) for cell in book["cells"] if _text(cell["source"]).strip())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>\n{body}\n</html>\n"
    )


def pictures(book: Notebook) -> dict[str, bytes]:
    """PNG files by name; each is called after the heading above it, a second one below the same has a number."""
    found: dict[str, bytes] = {}
    heading = "picture"
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^#+ +(.+)$", _text(cell["source"]), re.MULTILINE)
            heading = re.sub(r"[^a-z0-9]+", "-", headings[-1].lower()).strip("-") or heading if headings else heading
        for data in (output["data"] for output in cell.get("outputs") or [] if PNG in output.get("data", {})):
            number = 1
            while (name := heading if number == 1 else f"{heading}-{number}") in found:
                number += 1
            found[name] = base64.b64decode(_text(data[PNG]))
    return {f"{name}.png": data for name, data in found.items()}


def _text(source: Any) -> str:
    return source if isinstance(source, str) else "".join(map(str, source))


def _cell(cell: Notebook) -> str:
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        return _markdown(source)
    if cell["cell_type"] != "code":
        return f"<pre>{escape(source)}</pre>"
    code = f"<details><summary>code</summary><pre>{escape(source)}</pre></details>"
    return "\n".join([code, *(_output(output) for output in cell.get("outputs") or [])])


def _markdown(source: str) -> str:
    found = []
    for block in re.split(r"\n\s*\n", source.strip()):
        heading = re.fullmatch(r"(#{1,6}) +(.+)", block)
        tag, text = (f"h{len(heading[1])}", heading[2]) if heading else ("p", block)
        found.append(f"<{tag}>{_inline(text)}</{tag}>")
    return "\n".join(found)


def _inline(text: str) -> str:
    parts = escape(text).split("`")
    if len(parts) % 2 == 0:
        parts = [escape(text)]
    link = r"\[([^\]]+)\]\((https?://[^\s)]+)\)"
    return "".join(
        f"<code>{part}</code>" if number % 2 else re.sub(link, r'<a href="\2" rel="noreferrer">\1</a>', part)
        for number, part in enumerate(parts)
    )


def _output(output: dict[str, Any]) -> str:
    """A picture before HTML before text, as in Jupyter."""
    if output["output_type"] == "stream":
        return f"<pre>{escape(_plain(output['text']))}</pre>"
    if output["output_type"] == "error":
        return f"<pre>{escape(_plain(chr(10).join(output['traceback'])))}</pre>"
    data = output.get("data", {})
    if PNG in data:
        return (
            f'<p><img alt="{escape(_text(data.get("text/plain", "")))}" src="data:{PNG};base64,{_encoded(data)}"></p>'
        )
    if "text/html" in data:
        return f"<div>{_text(data['text/html'])}</div>"
    return f"<pre>{escape(_plain(data.get('text/plain', '')))}</pre>"


def _encoded(data: dict[str, Any]) -> str:
    """Nothing but base64, whatever a kernel sent."""
    return base64.b64encode(base64.b64decode(_text(data[PNG]))).decode()


def _plain(text: Any) -> str:
    """Without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", _text(text))
