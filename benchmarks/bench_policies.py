"""What many policies, tokens and streams cost: looking one up, learning of a change, a request, and the memory.

`bench_policies.py lookup`, `requests` run one part; both do by default. The peer of each line is the same with one
policy, one token, one stream; flat is a ratio of about 1. `requests` sends to a server as a process, one after the
other, each to another of the streams.
"""

import os
import pathlib
import random
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
from clachan_lake import open_lake
from clachan_lake.access.principal import OWNER
from clachan_lake.ingest.registry import Registry
from clachan_lake.local import LocalLake
from measured import ROOT, header, row

sys.path.insert(0, str(ROOT / "lake"))
from tests.making import TOKEN, Server

POLICIES, TOKENS, STREAMS = 1000, 1000, 10_000
CALLS, REQUESTS = 20_000, 3000
RANDOM = random.Random(6)


def fill(lake: LocalLake, policies: int, tokens: int) -> list[str]:
    """The tokens."""
    with lake.transaction():
        for number in range(policies):
            pattern = rf"site{number}\.(?P<host>[a-z0-9-]+)\.(?P<sensor>.+)"
            attrs = {"title": "{sensor} at {host}", "owner": f"group {number}"}
            lake.policies.declare(f"p{number}", pattern=pattern, name=f"{number}/{{host}}/{{sensor}}", attrs=attrs)
        return [lake.tokens.create(scopes=[f"ingest:p{n % policies}"], note=f"sender {n}")[1] for n in range(tokens)]


def microseconds(call: Callable[[int], object]) -> float:
    """Of a call with one number after the other; the best of five rounds."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for number in range(CALLS):
            call(number)
        best = min(best, time.process_time() - began)
    return best / CALLS * 1e6


class Looked:
    """What it costs to ask a registry of so many policies and tokens."""

    def __init__(self, folder: pathlib.Path, policies: int, tokens: int) -> None:
        with open_lake(folder) as lake:
            assert isinstance(lake, LocalLake)
            given = fill(lake, policies, tokens)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            registry = Registry(lake.session(), TOKEN)
            self.bytes = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            picked = [RANDOM.randrange(policies) for _ in range(CALLS)]
            names = [f"p{number}" for number in picked]
            tags = [f"site{number}.n-{RANDOM.randrange(10)}.temp.core" for number in picked]
            self.resolve = microseconds(lambda number: registry.resolve(names[number], tags[number], OWNER))
            asked = [RANDOM.choice(given) for _ in range(CALLS)]
            self.principal = microseconds(lambda number: registry.principal(asked[number]))
            self.idle = self._refresh(registry, lake, lambda: lake.documents("jobs").put(str(time.time_ns()), {}))
            self.changed = self._refresh(
                registry, lake, lambda: lake.policies.declare("p0", pattern="site0.+", title=str(time.time_ns()))
            )
            registry.close()

    @staticmethod
    def _refresh(registry: Registry, lake: LocalLake, change: Callable[[], object]) -> float:
        """Milliseconds to learn of a commit."""
        times = []
        for _ in range(9):
            with lake.transaction():
                change()
            began = time.perf_counter()
            registry.refresh()
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1e3


def lookup(folder: pathlib.Path) -> None:
    one, many = Looked(folder / "one", 1, 1), Looked(folder / "many", POLICIES, TOKENS)
    for what, unit, name, goal in (
        ("a tag to its place", "us", "resolve", "flat"),
        ("a token to its scopes", "us", "principal", "flat"),
        ("a second's look: another commit", "ms", "idle", ""),
        ("a second's look: a policy changed", "ms", "changed", ""),
    ):
        ours, peer = getattr(many, name), getattr(one, name)
        row(what, f"{ours:.2f} {unit}", f"{peer:.2f} {unit}", f"{ours / peer:.2f}", goal)
    row(f"memory of {POLICIES} policies, {TOKENS} tokens", f"{many.bytes / 1e6:.1f} MB", f"{one.bytes / 1e6:.2f} MB")


@contextmanager
def serving(folder: pathlib.Path, policies: int, streams: int) -> Iterator[tuple[Server, list[tuple[str, str]]]]:
    """A server that has so many streams, each of one of the policies, and for each its policy and tag."""
    folder.mkdir()
    with open_lake(folder / "lake") as lake:
        assert isinstance(lake, LocalLake)
        fill(lake, policies, policies)
        for first in range(0, streams, 500):
            with lake.transaction():
                for number in range(first, min(first + 500, streams)):
                    policy, host = number % policies, number // policies
                    lake.streams.create(f"{policy}/n-{host}/temp", f"p{policy}").append(b"x" * 100)
    places = [(f"p{n % policies}", f"site{n % policies}.n-{n // policies}.temp") for n in range(streams)]
    server = Server(folder)
    try:
        yield server.start(), places
    finally:
        server.close()


def requests(folder: pathlib.Path) -> None:
    medians, resident = [], []
    for name, policies, streams in (("few", 1, 1), ("all", POLICIES, STREAMS)):
        with serving(folder / name, policies, streams) as (server, places):
            assert server.process
            process = psutil.Process(server.process.pid)
            for place in [*RANDOM.choices(places, k=200)]:
                send(server, place)
            spent = process.cpu_times()
            times = [send(server, RANDOM.choice(places)) for _ in range(REQUESTS)]
            after = process.cpu_times()
            cpu = (after.user + after.system - spent.user - spent.system) / REQUESTS
            medians.append((statistics.median(times), cpu))
            resident.append(process.memory_info().rss / (1 << 20))
    (one, one_cpu), (all_, all_cpu) = medians
    row("a request of 100 bytes, synced", f"{all_ * 1e3:.2f} ms", f"{one * 1e3:.2f} ms", f"{all_ / one:.2f}", "flat")
    row("  CPU of the server", f"{all_cpu * 1e3:.2f} ms", f"{one_cpu * 1e3:.2f} ms", f"{all_cpu / one_cpu:.2f}")
    row("  resident", f"{resident[1]:.0f} MiB", f"{resident[0]:.0f} MiB", f"{resident[1] / resident[0]:.2f}")


def send(server: Server, place: tuple[str, str]) -> float:
    began = time.perf_counter()
    answer = server.post(b"x" * 100, place[0], reference=place[1])
    assert answer.status_code == 204, answer.text
    return time.perf_counter() - began


PARTS = {"lookup": lookup, "requests": requests}


def main() -> None:
    header("one of each")
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"clachan-bench-policies-{os.getpid()}-", dir="/var/tmp"))
    try:
        for name in sys.argv[1:] or PARTS:
            PARTS[name](folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
