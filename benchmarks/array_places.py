"""Places where an array is read: a process with little memory, another one by its URL, near and far."""

import http.client
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from array_peers import DTYPE, MIB, Lake, Memmap, Peer, Zarr, chill, noise, seconds
from clachan_lake import open_lake
from clachan_lake.interface import memory
from measured import ROOT, row

sys.path.insert(0, str(ROOT / "lake"))
from tests.making import TOKEN, Server

Goal = Callable[[float, float], str]
GROUPS = pathlib.Path("/sys/fs/cgroup")
READER = """
import os, pathlib, sys, time
import numpy as np
import array_peers
group, kind, folder, size, plain = sys.argv[1:]
peer = getattr(array_peers, kind)(pathlib.Path(folder))
with peer.opened() as part:
    pathlib.Path(group, "cgroup.procs").write_text(str(os.getpid()))
    began = time.perf_counter()
    if plain == "plain":
        total, buffer = 0, bytearray(1 << 20)
        for path in sorted(path for path in peer.files() if path.stat().st_size >= 1 << 20):
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += int(np.frombuffer(memoryview(buffer)[:count], "<u8").sum())
    else:
        total = peer.total(part, int(size))
    print(time.perf_counter() - began, total % (1 << 64))
"""
PLAIN = """
import http.server, os, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def copyfile(self, source, out):
        if sys.argv[1] == "sendfile":
            left, at = os.fstat(source.fileno()).st_size, 0
            while at < left:
                at += os.sendfile(out.fileno(), source.fileno(), at, left - at)
        else:
            super().copyfile(source, out)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
TIMES = 4
BY_URL_TIMES, SETTLED_SECONDS = 15, 0.2


@contextmanager
def memory_group(limit: int) -> Iterator[pathlib.Path]:
    """A control group whose processes have so much memory, page cache included."""
    legacy = (GROUPS / "memory").is_dir()
    group = (GROUPS / "memory" if legacy else GROUPS) / f"clachan-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if legacy else "memory.max")).write_text(str(limit))
        yield group
    finally:
        for _ in range(50):
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def under_a_limit(folder: pathlib.Path, size: int, new: Callable[..., Any], goal: Goal) -> None:
    """Reading all of an array, cold, in a quarter of its memory; the sum of each is compared."""
    wanted = sum(int(block.sum()) for block in noise(size)) % (1 << 64)
    peers = [new(kind, folder) for kind in (Lake, Memmap, Zarr)]
    for peer in peers:
        peer.write(size, noise(size))
    try:
        with memory_group(size * 8 // 4) as group:
            best: dict[str, float] = {}
            for _ in range(TIMES):
                for peer in peers:
                    best[peer.name] = min(best.get(peer.name, 1e9), _read(group, peer, size, wanted))
                best["file"] = min(best.get("file", 1e9), _read(group, peers[0], size, wanted, "plain"))
    except OSError as error:
        row("read in a quarter of its memory, cold", f"not here: {error}")
        return
    plain = best.pop("file")
    ours = best.pop(Lake.name)
    what = f"read {size * 8 / MIB / 1024:g} GiB in {size * 8 // 4 // MIB} MiB, cold"
    row(
        f"{what}; peer: the files",
        _rate(size, ours),
        _rate(size, plain),
        f"{ours / plain:.2f}",
        goal(ours / plain, 1.3),
    )
    for name, found in best.items():
        row(f"  {name}", _rate(size, found), _rate(size, plain), f"{found / plain:.2f}")


def _read(group: pathlib.Path, peer: Peer, size: int, wanted: int, plain: str = "") -> float:
    chill(peer)
    command = [sys.executable, "-c", READER, group, type(peer).__name__, peer.folder, str(size), plain]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    time, total = done.stdout.split()
    assert int(total) == wanted, peer.name
    return float(time)


def _rate(size: int, time: float) -> str:
    return f"{size * 8 / MIB / time:.0f} MiB/s"


def over_http(folder: pathlib.Path, size: int) -> None:
    """All of an array, block by block, beside the same bytes as a file from Python's own server."""
    Memmap(folder).write(size, noise(size))
    server = Server(folder)
    Lake(server.folder).write(size, noise(size))
    best: dict[str, float] = {}
    with _plain(folder, "copy") as copying, _plain(folder, "sendfile") as sending:
        server.start()
        try:
            for _ in range(TIMES):
                works: dict[str, Callable[[], Any]] = {
                    "ours": lambda: _download(server.url, size),
                    "curl": lambda: _curl(f"{copying}/array"),
                    "curl, sendfile": lambda: _curl(f"{sending}/array"),
                    "http.client, sendfile": lambda: _client(f"{sending}/array", size),
                }
                for name, work in works.items():
                    best[name] = min(best.get(name, 1e9), seconds(work))
        finally:
            server.close()
    ours = best.pop("ours")
    for name, found in best.items():
        ratio = found / ours
        wanted = f">= 0.6 {'ok' if ratio >= 0.6 else 'MISSED'}" if name == "curl" else ""
        what = "read over HTTP, in blocks of 16 MiB" if name == "curl" else ""
        row(f"{what or '  the same'}; peer: {name}", _rate(size, ours), _rate(size, found), f"{ratio:.2f}", wanted)


def by_url(folder: pathlib.Path, size: int, goal: Goal) -> None:
    """`lake.arrays["a"][:].sum()` at a URL: near, where it is mapped, beside np.memmap of the same bytes; far, beside
    plain downloads of them. Nothing of it is mapped before, but in the row that says so."""
    Memmap(folder).write(size, noise(size))
    server = Server(folder)
    Lake(server.folder).write(size, noise(size))
    server.start()
    try:
        with _plain(folder, "copy") as plain:
            found = _medians(_ways(server.url, f"{plain}/array", folder / "array", size))
    finally:
        server.close()
    for suffix, what in (("", "a[:].sum() by URL, near"), (", again", "  again")):
        ours, theirs = found[f"near{suffix}"], found[f"memmap{suffix}"]
        row(what, f"{ours * 1000:.0f} ms", f"{theirs * 1000:.0f} ms", f"{ours / theirs:.2f}", goal(ours / theirs, 1.2))
    for peer in ("http.client, kept and summed", "curl, to nowhere"):
        ratio = found[peer] / found["far"]
        # curl has nothing to keep and to sum
        verdict = "" if peer.startswith("curl") else f">= 0.6 {'ok' if ratio >= 0.6 else 'MISSED'}"
        row(f"  far; peer: {peer}", _rate(size, found["far"]), _rate(size, found[peer]), f"{ratio:.2f}", verdict)


def _ways(url: str, plain: str, path: pathlib.Path, size: int) -> dict[str, Callable[[], Any]]:
    wanted = sum(int(block.sum()) for block in noise(size)) % (1 << 64)
    near, far = open_lake(url, token=TOKEN), open_lake(url, token=TOKEN)
    far.nearness.rule_out()
    kept, mapped = near.arrays["a"], np.memmap(path, DTYPE, "r")

    def checked(array: Any) -> None:
        assert int(array.sum()) % (1 << 64) == wanted

    return {
        "near": lambda: checked(near.arrays["a"][:]),
        "memmap": lambda: checked(np.memmap(path, DTYPE, "r")),
        "near, again": lambda: checked(kept[:]),
        "memmap, again": lambda: checked(mapped),
        "far": lambda: checked(far.arrays["a"][:]),
        "http.client, kept and summed": lambda: checked(_downloaded(plain, size)),
        "curl, to nowhere": lambda: _curl(plain),
    }


def _medians(works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in works}
    names, chance = list(works), random.Random(1)
    for _ in range(BY_URL_TIMES):
        # in another order each time: who comes behind one that has let go of memory gets that, and more cheaply
        chance.shuffle(names)
        for name in names:
            # servers have still to let go of what they have just sent
            time.sleep(SETTLED_SECONDS)
            times[name].append(seconds(works[name]))
    return {name: statistics.median(all_of_it) for name, all_of_it in times.items()}


def _downloaded(url: str, size: int) -> Any:
    out = np.empty(size, DTYPE)
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    connection.request("GET", where.path)
    answer, rest = connection.getresponse(), memory(out)
    while rest and (count := answer.readinto(rest)):
        rest = rest[count:]
    connection.close()
    return out


def _download(url: str, size: int) -> None:
    with open_lake(url, token=TOKEN) as lake:
        lake.nearness.rule_out()
        count = sum(len(rows) for _first, rows in lake.arrays["a"].blocks())
    assert count == size


def _curl(url: str) -> None:
    subprocess.run(["curl", "--silent", "--fail", "--noproxy", "*", "--output", "/dev/null", url], check=True)


def _client(url: str, size: int) -> None:
    """Into memory, as ours."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    connection.request("GET", where.path)
    answer, buffer, done = connection.getresponse(), bytearray(16 * MIB), 0
    while count := answer.readinto(buffer):
        done += count
    connection.close()
    assert done == size * DTYPE.itemsize


@contextmanager
def _plain(folder: pathlib.Path, how: str) -> Iterator[str]:
    running = subprocess.Popen([sys.executable, "-c", PLAIN, how], cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout
        yield f"http://127.0.0.1:{running.stdout.readline().strip()}"
    finally:
        running.terminate()
        running.wait()
