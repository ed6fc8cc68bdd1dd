"""Transformations: from an acknowledged chunk to the committed output, and their throughput beside numpy, pandas and
msgpack doing the same from a file.

`latency` sends one chunk a second to a server, each a few lines of JSON, and reads the array through the server's
socket until its rows are there. `throughput` has a stream in a lake (chunks of 1 MiB, synced), runs the transformation
with the worker's engine, each kind in a process of its own as a worker is, and compares: peer and transformation read
the same bytes from the same disk, make the same array, and sync it there. The peer's is a new .npy file each time, as
the lake's is: to write over one again takes memory that is at hand. They take turns; the medians are compared.
Importing pandas is done before. MIB (64, or the environment's) says how much of each.
"""

import gc
import io
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import msgpack
import numpy as np
import pandas
from clachan_lake import open_lake
from clachan_lake.transform.worker import run_pending
from measured import ROOT, header, row

sys.path.insert(0, str(ROOT / "lake"))
from tests.making import Server, wav

MIB = int(os.environ.get("MIB", "64"))
ROUNDS = 5
CHUNK = 1 << 20
SECONDS = 20
DTYPE = np.dtype([("time", "<M8[us]"), ("cpu", "<f8"), ("memory", "<i8"), ("host", "S16")])
COLUMNS = [{"name": name, "dtype": DTYPE[name].str.replace("<", "")} for name in DTYPE.names or ()]


def main() -> None:
    if sys.argv[1:2] == ["--compare"]:
        compare(sys.argv[2], pathlib.Path(sys.argv[3]))
        return
    parts = sys.argv[1:] or ["latency", "throughput"]
    header("plain Python")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        if "latency" in parts:
            latency(pathlib.Path(folder, "server"))
        if "throughput" in parts:
            for function in KINDS:
                subprocess.run([sys.executable, __file__, "--compare", function, folder], check=True)


def latency(folder: pathlib.Path) -> None:
    folder.mkdir()
    server = Server(folder, worker_seconds=10).start()
    try:
        with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
            with lake.transaction():
                lake.transformations.declare(
                    "lines", function="jsonl", source={"kind": "stream"}, options={"columns": COLUMNS}
                )
            times = [_until_there(server, lake, number) for number in range(SECONDS)]
    finally:
        server.close()
    # the first one starts the worker
    rest = sorted(times[1:])
    row("acknowledged chunk to output, median", f"{statistics.median(rest) * 1000:.0f} ms", goal="under 500 ms")
    row("the slowest of the rest, and the first", f"{rest[-1] * 1000:.0f} ms", f"{times[0] * 1000:.0f} ms")


def _until_there(server: Server, lake: object, number: int) -> float:
    body = b"".join(b'{"time":%d,"cpu":0.5,"memory":1,"host":"a"}\n' % (number * 10 + n) for n in range(10))
    began = time.perf_counter()
    answer = server.post(body, reference="lines")
    assert answer.status_code == 204, answer.text
    acknowledged = time.perf_counter()
    while True:
        lake.refresh()  # type: ignore[attr-defined]
        if "lines" in lake.arrays and len(lake.arrays["lines"]) >= 10 * (number + 1):  # type: ignore[attr-defined]
            break
        time.sleep(0.005)
    done = time.perf_counter()
    time.sleep(max(0.0, 1 - (time.perf_counter() - began)))
    return done - acknowledged


def records(size: int) -> list[dict[str, object]]:
    """About so many bytes as JSON lines."""
    count = size // 92
    rng = np.random.default_rng(1)
    cpu, memory = rng.random(count), rng.integers(0, 2**40, count)
    return [
        {"time": 1_700_000_000 + 0.5 * n, "cpu": float(cpu[n]), "memory": int(memory[n]), "host": f"node{n % 50}"}
        for n in range(count)
    ]


def _wav() -> bytes:
    sound = np.random.default_rng(2).integers(-30000, 30000, MIB << 19, dtype="<i2")
    return wav(sound.tobytes(), 2, 48000)


def _jsonl() -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in records(MIB << 20))


def _msgpack() -> bytes:
    rows = records(MIB << 20)
    return b"".join(msgpack.packb([int(str(one["time"]).partition(".")[0]), one]) for one in rows)


def _csv() -> bytes:
    return pandas.DataFrame(records(MIB << 20)).to_csv(index=False).encode()


def compare(function: str, folder: pathlib.Path) -> None:
    make, options, plain = KINDS[function]
    data = make()
    source = folder / f"{function}.data"
    source.write_bytes(data)
    lake_folder = folder / f"{function}.lake"
    ours, theirs = [], []
    # a worker has none of what this has made: nobody is to look through it for cycles
    gc.freeze()
    with open_lake(lake_folder) as lake:
        with lake.transaction():
            lake.transformations.declare(function, function=function, source={"kind": "stream"}, options=options)
            lake.transformations.pause(function)
        for start in range(0, len(data), CHUNK):
            with lake.transaction():
                stream = lake.streams["x"] if "x" in lake.streams else lake.streams.create("x")
                stream.append(data[start : start + CHUNK], final=start + CHUNK >= len(data))
        with lake.transaction():
            lake.transformations.resume(function)
        for number in range(ROUNDS):
            saved = folder / f"{function}.{number}.npy"
            theirs.append(_timed(partial(_save, saved, plain, source)))
            ours.append(_timed(partial(run_pending, lake)))
            check_same(lake.arrays["x"][:], np.load(saved))
            with lake.transaction():
                lake.transformations.backfill(function)
    shutil.rmtree(lake_folder)
    a, b = statistics.median(ours), statistics.median(theirs)
    size = len(data) / 2**20
    row(f"{function}, {size:.0f} MiB", f"{size / a:.0f} MiB/s", f"{size / b:.0f} MiB/s", f"{a / b:.2f}", "at most 1.5")


def check_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Parsers may differ in the last bit of a float."""
    for name in ours.dtype.names or (None,):
        a, b = (ours, theirs) if name is None else (ours[name], theirs[name])
        assert a.shape == b.shape, name
        assert np.allclose(a, b, rtol=1e-15) if a.dtype.kind == "f" else np.array_equal(a, b), name


def _timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def _save(path: pathlib.Path, plain: Callable[[pathlib.Path], np.ndarray], source: pathlib.Path) -> None:
    array = plain(source)
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


def _plain_wav(path: pathlib.Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes()[44:], "<i2").reshape(-1, 2)


def _structured(frame: pandas.DataFrame) -> np.ndarray:
    out = np.empty(len(frame), DTYPE)
    out["time"] = (frame["time"] * 1e6).round().astype("int64").to_numpy().view("M8[us]")
    for name in ("cpu", "memory", "host"):
        out[name] = frame[name].to_numpy()
    return out


def _plain_jsonl(path: pathlib.Path) -> np.ndarray:
    return _structured(pandas.read_json(path, lines=True, dtype=False, precise_float=True))


def _plain_csv(path: pathlib.Path) -> np.ndarray:
    return _structured(pandas.read_csv(path))


def _plain_msgpack(path: pathlib.Path) -> np.ndarray:
    unpacker = msgpack.Unpacker(io.BytesIO(path.read_bytes()), max_buffer_size=0)
    found = [record for _when, record in unpacker]
    out = np.empty(len(found), DTYPE)
    out["time"] = np.rint(np.array([one["time"] for one in found]) * 1e6).astype("int64").view("M8[us]")
    for name in ("cpu", "memory", "host"):
        out[name] = [one[name] for one in found]
    return out


Kind = tuple[Callable[[], bytes], dict[str, object], Callable[[pathlib.Path], np.ndarray]]
KINDS: dict[str, Kind] = {
    "wav": (_wav, {}, _plain_wav),
    "jsonl": (_jsonl, {"columns": COLUMNS}, _plain_jsonl),
    "msgpack": (_msgpack, {"columns": COLUMNS}, _plain_msgpack),
    "csv": (_csv, {"columns": COLUMNS}, _plain_csv),
}

if __name__ == "__main__":
    main()
