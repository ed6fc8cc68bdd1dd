"""Ingestion over HTTP: synced bodies of 1 MiB beside `dd oflag=dsync`, many senders of 16 KiB, and the server's memory.

`bench_ingest.py one`, `many`, `memory` run one part; all do by default. The server is a process of its own and syncs
all that it acknowledges; server, client and disk share the machine. `dd` and the sender take turns on the same disk,
that of PLACE (/var/tmp, or the environment's). `memory` sends GIB (2, or the environment's) in bodies of 1 MiB, an
eighth of it in bodies of 64 KiB, which are files too, and a tenth in bodies of 16 KiB, which are not; nothing is packed
meanwhile. The senders are one process, connections that stay open, requests that are made once; its cost is stated.

Where thousands of files were removed in the last minutes, an ext4 without a journal looks long for each new one: name
a fresh PLACE.
"""

import asyncio
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import psutil
import uvloop
from clachan_lake import open_lake
from measured import ROOT, header, row

sys.path.insert(0, str(ROOT / "lake"))
from tests.making import TOKEN, Server

MIB, KIB = 1 << 20, 1 << 10
GIB = float(os.environ.get("GIB", "2"))
PLACE = os.environ.get("PLACE", "/var/tmp")
ROUNDS = 5
BODIES = 300
CONNECTIONS = 4
SENDERS, SECONDS = 16, 8.0


class Sender(asyncio.Protocol):
    """One connection that sends its request again when it has its answer, until `more()` says that it is enough."""

    def __init__(self, request: bytes, count: int, until: float) -> None:
        self._request = request
        self._left = count
        self._until = until
        self._answer = b""
        self._began = 0.0
        self.times: list[float] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._send()

    def _send(self) -> None:
        if not self._left or time.perf_counter() >= self._until:
            self._transport.close()
            return
        self._left -= 1
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if b"\r\n\r\n" not in self._answer:
            return
        if not self._answer.startswith(b"HTTP/1.1 204 "):
            self.ended.set_exception(RuntimeError(self._answer.decode()))
            self._transport.close()
            return
        self._answer = b""
        self.times.append(time.perf_counter() - self._began)
        self._send()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def request(name: str, body: bytes) -> bytes:
    head = (
        f"POST /ingest/raw?reference={name} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def send(port: int, requests: list[bytes], count: int, seconds: float = 600) -> tuple[list[float], float, float]:
    """Each request on a connection of its own, `count` times or for so long: the times, of all, and of this process."""

    async def run() -> list[float]:
        loop, until = asyncio.get_running_loop(), time.perf_counter() + seconds
        makers = [partial(Sender, one, count, until) for one in requests]
        senders = [(await loop.create_connection(make, "127.0.0.1", port))[1] for make in makers]
        for sender in senders:
            await sender.ended
        return [one for sender in senders for one in sender.times]

    began, cpu = time.perf_counter(), time.process_time()
    times = uvloop.run(run())
    return times, time.perf_counter() - began, time.process_time() - cpu


@contextmanager
def serving(**settings: int) -> Iterator[Server]:
    """A server on the disk of PLACE."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"clachan-bench-ingest-{os.getpid()}-", dir=PLACE))
    server = Server(folder, **settings)
    try:
        yield server.start()
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def process(server: Server) -> psutil.Process:
    assert server.process
    return psutil.Process(server.process.pid)


def dd(folder: pathlib.Path) -> float:
    """MiB/s of synced blocks of 1 MiB."""
    path = folder / "dd"
    command = ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={BODIES}", "oflag=dsync"]
    said = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=True).stderr
    path.unlink()
    found = re.search(r"copied, ([\d.]+) s", said)
    assert found, said
    return BODIES / float(found[1])


def one() -> None:
    with serving() as server:
        body = request("one", os.urandom(MIB))
        send(server.port, [body], 20)
        peers, ours, several, used, cpu = [], [], [], 0.0, process(server).cpu_times()
        for _ in range(ROUNDS):
            # a virtual machine may have to get a file's memory from its host first, and then has it
            peers.append(max(dd(server.directory), dd(server.directory)))
            times, elapsed, own = send(server.port, [body], BODIES)
            ours.append(len(times) / elapsed)
            used += own
            times, elapsed, own = send(server.port, [body] * CONNECTIONS, BODIES // CONNECTIONS)
            several.append(len(times) / elapsed)
            used += own
        after = process(server).cpu_times()
    _compare("1 client, 1 MiB bodies, synced", ours, peers)
    _compare(f"the same on {CONNECTIONS} connections", several, peers)
    spent = after.user + after.system - cpu.user - cpu.system
    count = 2 * ROUNDS * BODIES
    row("  CPU of a body: server, client", f"{spent / count * 1e3:.2f} ms", f"{used / count * 1e3:.2f} ms")


def _compare(what: str, ours: list[float], peers: list[float]) -> None:
    ratio = statistics.median(a / b for a, b in zip(ours, peers, strict=True))
    goal = f">= 0.5 {'ok' if ratio >= 0.5 else 'MISSED'}"
    row(what, f"{statistics.median(ours):.0f} MiB/s", f"{statistics.median(peers):.0f} MiB/s", f"{ratio:.2f}", goal)
    row("  best of the rounds", f"{max(ours):.0f} MiB/s", f"{max(peers):.0f} MiB/s", f"{max(ours) / max(peers):.2f}")


def many() -> None:
    for what, names in (("a stream each", [f"many{n}" for n in range(SENDERS)]), ("one stream", ["same"] * SENDERS)):
        with serving() as server:
            bodies = [request(name, os.urandom(16 * KIB)) for name in names]
            send(server.port, bodies, 50)
            cpu = process(server).cpu_times()
            times, elapsed, own = send(server.port, bodies, 1 << 30, SECONDS)
            after = process(server).cpu_times()
            with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
                stored = sum(lake.streams[name].size for name in set(names))
        assert stored == (len(times) + SENDERS * 50) * 16 * KIB
        rate = len(times) / elapsed
        goal = f">= 2000/s {'ok' if rate >= 2000 else 'MISSED'}"
        row(f"{SENDERS} clients, 16 KiB bodies, {what}", f"{rate:.0f}/s", "", "", goal)
        row("  median, slowest of 100", f"{statistics.median(times) * 1e3:.1f} ms", f"{_hundredth(times) * 1e3:.1f} ms")
        spent = after.user + after.system - cpu.user - cpu.system
        row(
            "  CPU of a body: server, client",
            f"{spent / len(times) * 1e3:.2f} ms",
            f"{own / len(times) * 1e3:.2f} ms",
        )


def _hundredth(times: list[float]) -> float:
    return sorted(times)[-len(times) // 100]


def memory() -> None:
    for size, gib, senders in ((MIB, GIB, 1), (64 * KIB, GIB / 8, 1), (16 * KIB, GIB / 10, SENDERS)):
        with serving(pack_seconds=0) as server:
            bodies = [request(f"m{n}", os.urandom(size)) for n in range(senders)]
            count = int(gib * (1 << 30)) // size // senders
            send(server.port, bodies, count // 20)
            with sampling(process(server)) as samples:
                times, elapsed, _ = send(server.port, bodies, count)
        first, last = samples[: len(samples) // 5 + 1], samples[-len(samples) // 5 :]
        what = f"resident, {gib:g} GiB in bodies of {size // KIB} KiB"
        row(what, f"{max(samples) / MIB:.0f} MiB", "", "", f"{len(times) * size / MIB / elapsed:.0f} MiB/s")
        grown = (statistics.median(last) - statistics.median(first)) / MIB
        row("  last fifth of the time over the first", f"{grown:+.1f} MiB", "", "", "flat")


@contextmanager
def sampling(found: psutil.Process) -> Iterator[list[int]]:
    """Its resident memory, ten times a second."""
    samples, ended = [found.memory_info().rss], threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            samples.append(found.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


PARTS = {"one": one, "many": many, "memory": memory}


def main() -> None:
    header("dd oflag=dsync")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
