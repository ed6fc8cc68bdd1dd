"""Makes format1.tar.gz: run with the code of a version that writes format 1 (see README.md)."""

import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from clachan_lake import open_lake
from clachan_lake.format import FORMAT

KEPT = {"format.json", "data.fs", "blobs", "incoming"}


def fill(folder: Path) -> None:
    with open_lake(folder) as lake:
        with lake.transaction():
            lake.arrays.create("whole", (3, 4), "<i4", {"unit": "m", "rate": 48000})[:] = np.arange(12).reshape(3, 4)
            lake.arrays.create("many", (0, 2), "<f8", chunk_bytes=4096)
            lake.arrays.create("odd", (0,), "<i2", chunk_bytes=5000)
            lake.arrays.create("sparse", (1_000_000,), "<u1", chunk_bytes=8192)[500_000:500_003] = [7, 8, 9]
            lake.arrays.create("structured", (2,), [("t", "<i8"), ("v", "<f4", (3,))])[1] = (5, (1, 2, 3))
            lake.arrays.create("scalar", (), "<f4")[()] = 2.5
            lake.arrays.create("empty", (0, 7), ">u2")
            lake.streams.create("log", transformation="wav").append(b"small piece", "id-1")
        for start in range(0, 1500, 500):
            with lake.transaction():
                lake.arrays["many"].append(np.arange(start * 2, start * 2 + 1000).reshape(500, 2))
                lake.arrays["odd"].append(np.arange(start, start + 4000) % 3000)
        with lake.transaction():
            lake.arrays["many"].resize(1400, 2)
            lake.streams["log"].append(b"z" * 40_000, "id-2", final=True)


def main(target: str) -> None:
    assert FORMAT == 1, "expected the code of format 1"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "lake"
        fill(folder)
        with tarfile.open(target, "w:gz", compresslevel=9) as archive:
            for path in sorted(folder.rglob("*")):
                parts = path.relative_to(folder).parts
                if parts[0] in KEPT and path.name not in {"tmp"}:
                    archive.add(path, arcname="/".join(("lake", *parts)), recursive=False, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(sys.argv[1])
