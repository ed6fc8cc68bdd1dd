"""The files in `static/`: scripts and styles, read once. Only these are served, by their names; a name is never a path.

uPlot 1.6.32 (MIT, `uplot.LICENSE`) is `uPlot.iife.min.js` and `uPlot.min.css` of https://www.npmjs.com/package/uplot,
unchanged but for a line's end.
"""

import hashlib
from importlib.resources import files
from typing import NamedTuple

KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


class Asset(NamedTuple):
    data: bytes
    media_type: str
    etag: str


def load() -> dict[str, Asset]:
    found = {}
    for file in files(__package__).joinpath("static").iterdir():
        kind = KINDS.get(f".{file.name.rpartition('.')[2]}")
        if kind is not None:
            data = file.read_bytes()
            found[file.name] = Asset(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found
