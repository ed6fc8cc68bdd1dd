"""Writes a NoCloud seed: `seed.py OUT.iso`, with the files by name as JSON on standard input.

Run by the system's Python, which has Debian's python3-pycdlib.
"""

import io
import json
import sys

import pycdlib


def write(path: str, files: dict[str, str]) -> None:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, text) in enumerate(sorted(files.items())):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    iso.write(path)
    iso.close()


if __name__ == "__main__":
    write(sys.argv[1], json.load(sys.stdin))
