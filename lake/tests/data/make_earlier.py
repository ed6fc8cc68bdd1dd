"""Makes format1.tar.gz and those that follow: run with the code of a version that writes it (see README.md)."""

import io
import sys
import tarfile
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
from clachan_lake import open_lake
from clachan_lake.format import FORMAT

ODD_BYTES = {1: 5000, 2: 8192, 3: 8192}
"""A chunk's: in format 1 it could be any."""
KEPT = {"format.json", "data.fs", "blobs", "incoming"}


def fill(folder: Path) -> None:
    with open_lake(folder) as lake:
        with lake.transaction():
            lake.arrays.create("whole", (3, 4), "<i4", {"unit": "m", "rate": 48000})[:] = np.arange(12).reshape(3, 4)
            lake.arrays.create("many", (0, 2), "<f8", chunk_bytes=4096)
            lake.arrays.create("odd", (0,), "<i2", chunk_bytes=ODD_BYTES[FORMAT])
            lake.arrays.create("sparse", (1_000_000,), "<u1", chunk_bytes=8192)[500_000:500_003] = [7, 8, 9]
            lake.arrays.create("structured", (2,), [("t", "<i8"), ("v", "<f4", (3,))])[1] = (5, (1, 2, 3))
            lake.arrays.create("scalar", (), "<f4")[()] = 2.5
            lake.arrays.create("empty", (0, 7), ">u2")
            followed(lake, "log").append(b"small piece", "id-1")
        for start in range(0, 1500, 500):
            with lake.transaction():
                lake.arrays["many"].append(np.arange(start * 2, start * 2 + 1000).reshape(500, 2))
                lake.arrays["odd"].append(np.arange(start, start + 4000) % 3000)
        if FORMAT == 2:
            transformed(lake)
        with lake.transaction():
            lake.arrays["many"].resize(1400, 2)
            lake.streams["log"].append(b"z" * 40_000, "id-2", final=True)


def followed(lake: Any, name: str) -> Any:
    """A stream that waits for its end, to be a recording."""
    if FORMAT < 3:
        return lake.streams.create(name, transformation="wav")
    lake.policies.declare("wav")
    lake.transformations.declare("wav", function="wav", source={"kind": "stream", "policy": "wav"}, on="end")
    return lake.streams.create(name, "wav")


def transformed(lake: Any) -> None:
    """Streams in every state of the transformation that they had."""
    from clachan_lake.transform.worker import run_pending

    with lake.transaction():
        lake.streams.create("good", "wav", "wav").append(wav(), "id-3", final=True)
        lake.streams.create("bad", "wav", "wav").append(b"no sound", final=True)
    run_pending(lake)
    with lake.transaction():
        lake.streams.create("due", "wav", "wav").append(wav(), final=True)
        lake.streams.create("open", "wav", "wav").append(b"RIFF")


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(np.arange(100, dtype="<i2").tobytes())
    return file.getvalue()


def main(target: str) -> None:
    assert FORMAT in ODD_BYTES, "expected the code of format 1, 2 or 3"
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
