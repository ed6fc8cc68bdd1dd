"""Arrays of a lake: reading, writing, committing, opening, appending, beside np.memmap of the same bytes and others.

`bench_arrays.py read`, `write`, `commit`, `open`, `append`, `limit`, `http`, `url` run one part; all do by default. An
array has MIB (1,024, or the environment's) of 64 bit numbers that do not compress. Rounds of all are interleaved, and
each one's best counts, as others use the machine too; commits and `url` are medians. In brackets: wendelin.core 2,
measured earlier on another machine. Needs about eight times MIB of disk below /var/tmp.
"""

import os
import pathlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from array_peers import CHUNK, DTYPE, OTHERS, Lake, Memmap, Peer, chill, noise, seconds
from clachan_lake import open_lake
from clachan_lake.arrays import pages
from clachan_lake.keeping.packing import pack
from measured import header, row

MIB = int(os.environ.get("MIB", "1024"))
SIZE = MIB * (1 << 20) // 8
GIB = MIB / 1024
ROUNDS = 5
COMMITS, ELEMENTS = 300, 1024


def goal(found: float, limit: float, earlier: str = "") -> str:
    """What was wanted, and whether it is so; `earlier` is wendelin.core's."""
    return f"<= {limit:g} {'ok' if found <= limit else 'MISSED'}{f' [{earlier}]' if earlier else ''}"


@contextmanager
def place() -> Iterator[pathlib.Path]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"clachan-bench-arrays-{os.getpid()}-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new(kind: type[Peer], folder: pathlib.Path) -> Any:
    """The peer in an empty folder."""
    own = folder / kind.__name__.lower()
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    return kind(own)


def interleaved(works: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """The best time of each."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, work in works.items():
            best[name] = min(work(), best.get(name, float("inf")))
    return best


def show(what: str, best: dict[str, float], limit: float, unit: Callable[[float], str], earlier: str = "") -> None:
    """Ours with its goal, then each peer, all beside np.memmap."""
    base = best.pop(Memmap.name)
    ours = best.pop(Lake.name)
    row(what, unit(ours), unit(base), f"{ours / base:.2f}", goal(ours / base, limit, earlier))
    for name, time in best.items():
        row(f"  {name}", unit(time), unit(base), f"{time / base:.2f}")


def in_ms(time: float) -> str:
    return f"{time * 1000:.0f} ms"


# -- reading


def read(folder: pathlib.Path) -> None:
    peers = [new(kind, folder) for kind in (Memmap, Lake, *OTHERS)]
    for peer in peers:
        peer.write(SIZE, noise(SIZE))
    wanted = sum(int(block.sum()) for block in noise(SIZE)) % (1 << 64)
    what = f"read {GIB:g} GiB in order"

    def once(peer: Peer, cold: bool) -> float:
        with peer.opened() as part:
            if cold:
                chill(peer)
            found: list[int] = []
            time = seconds(lambda: found.append(peer.total(part, SIZE)))
        assert found[0] % (1 << 64) == wanted, peer.name
        return time

    warm = interleaved({peer.name: lambda peer=peer: once(peer, False) for peer in peers})
    show(f"{what}, warm", warm, 1.1, in_ms, "0.75")
    random(peers)
    cold = interleaved({peer.name: lambda peer=peer: once(peer, True) for peer in peers})
    show(f"{what}, cold", cold, 1.3, in_ms, "9-97")


def random(peers: list[Peer]) -> None:
    places = np.random.default_rng(7).integers(0, SIZE - 512, 50_000).tolist()
    out = np.empty(512, DTYPE)

    def one(peer: Peer) -> float:
        """Each peer's own indexing; memory that is mapped for it only now."""
        with peer.opened() as part:
            if isinstance(peer, Memmap):
                mapped = part(0, SIZE)

                def part(low: int, high: int) -> Any:
                    return mapped[low:high]

            return each(part, peer.random)

    def view(peer: Peer) -> float:
        with peer.opened() as part:
            array = np.asarray(part(0, SIZE))
            return each(lambda low, high: array[low:high], peer.random)

    def each(part: Callable[[int, int], Any], count: int) -> float:
        def work() -> None:
            for at in places[:count]:
                out[:] = part(at, at + 512)

        return seconds(work) / count

    def micro(time: float) -> str:
        return f"{time * 1e6:.2f} us"

    mapped = [peer for peer in peers if isinstance(peer, Memmap | Lake)]
    through = interleaved({peer.name: lambda peer=peer: view(peer) for peer in mapped}, 12)
    show("random 4 KiB, warm, through one ndarray", through, 1.2, micro, "1.0")
    direct = interleaved({peer.name: lambda peer=peer: one(peer) for peer in peers}, 3)
    base, ours = direct.pop(Memmap.name), direct.pop(Lake.name)
    row("random 4 KiB, warm, array[i:j]", micro(ours), micro(base), f"{ours / base:.1f}")
    for name, time in direct.items():
        row(f"  {name}", micro(time), micro(base), f"{time / base:.1f}")


# -- writing


def write(folder: pathlib.Path) -> None:
    blocks = list(noise(SIZE))
    used: dict[str, int] = {}

    def once(kind: type[Peer], work: Callable[[Any], None]) -> float:
        peer = new(kind, folder)
        os.sync()
        time = seconds(lambda: work(peer))
        used[kind.name] = peer.disk()
        return time

    works: dict[str, Callable[[], float]] = {
        kind.name: lambda kind=kind: once(kind, lambda peer: peer.write(SIZE, blocks))
        for kind in (Memmap, Lake, *OTHERS)
    }
    works["appended"] = lambda: once(Lake, lambda peer: peer.append_all(blocks))
    best = interleaved(works, 4)
    appended, base = best.pop("appended"), best[Memmap.name]
    show(f"write and commit {GIB:g} GiB, whole chunks", best, 1.5, in_ms)
    row("  by append", in_ms(appended), in_ms(base), f"{appended / base:.2f}", goal(appended / base, 1.5))
    for name, size in used.items():
        share = size / (SIZE * 8)
        wanted = goal(share, 1.05, "2.0") if name == Lake.name else ""
        row(f"disk use of {name}, of the data", f"{share:.3f}", "", "", wanted)


# -- committing


def commit(folder: pathlib.Path) -> None:
    """Once on pages as a write left them, mapped by 2 MiB, and once on pages as they were read from the disk."""
    ours, mapped = new(Lake, folder), new(Memmap, folder)
    for peer in (ours, mapped):
        peer.write(SIZE, noise(SIZE))
    theirs = np.memmap(mapped.path, DTYPE, "r+")
    theirs.sum()
    base = statistics.median(seconds(lambda at=at: store(theirs, at)) for at in places(2))
    one_element(ours, "fresh", base)
    chill(ours)
    one_element(ours, "read cold", base)


def one_element(ours: Any, how: str, base: float) -> None:
    with open_lake(ours.folder) as lake:
        array, before = lake.arrays["a"], ours.disk()
        array[:].sum()
        times = [seconds(lambda at=at: committed(lake, array, at)) for at in places(how == "fresh")]
        found = statistics.median(times) * 1000
        what = f"commit of one element, {GIB:g} GiB touched, {how}"
        row(what, f"{found:.1f} ms", f"{base * 1000:.1f} ms", "", goal(found, 15))
        row("  slowest of 20", f"{max(times) * 1000:.1f} ms")
        written = (ours.disk() - before) / 20 / CHUNK / 8
        row("  written to the disk, in chunks", f"{written:.2f}", "", "", goal(written, 1.1))
        scans(array)


def places(seed: int) -> list[int]:
    return [int(at) for at in np.random.default_rng(seed).integers(0, SIZE, 20)]


def store(mapped: Any, at: int) -> None:
    mapped[at] += 1
    mapped.flush()


def committed(lake: Any, array: Any, at: int) -> None:
    with lake.transaction():
        array[:][at] += 1


def scans(array: Any) -> None:
    region = array._opened.region
    low, high = region.base, region.base + SIZE * 8
    for name, method in (("PAGEMAP_SCAN", pages.ScanMethod()), ("/proc/self/pagemap", pages.TableMethod())):
        try:
            found = min(seconds(lambda m=method: list(m.written(low, high))) for _ in range(10))
        except OSError as error:
            row(f"  written pages found by {name}", f"not here: {error}")
            continue
        row(f"  written pages by {name}, a GiB", f"{found / GIB * 1000:.2f} ms")


# -- opening


def open_(folder: pathlib.Path) -> None:
    ours, size = new(Lake, folder), 100 << 30
    with open_lake(ours.folder) as lake, lake.transaction():
        sparse = lake.arrays.create("a", size // 8, DTYPE)
        for at in range(0, size // 8, size // 80):
            sparse[at] = at
    mapped = new(Memmap, folder)
    mapped.path.touch()
    os.truncate(mapped.path, size)

    def look(peer: Peer) -> float:
        def work() -> None:
            with peer.opened() as part:
                assert part(0, size // 8)[-1] == 0

        return seconds(work)

    best = interleaved({peer.name: lambda peer=peer: look(peer) for peer in (ours, mapped)}, 10)
    found = best[Lake.name] * 1000
    base = f"{best[Memmap.name] * 1000:.1f} ms"
    row("open lake and 100 GiB sparse array, one read", f"{found:.1f} ms", base, "", goal(found, 50))
    with open_lake(ours.folder, read_only=True) as lake:
        alone = min(seconds(lambda: one_session(lake)) for _ in range(10)) * 1000
    row("  in an open lake, a new session", f"{alone:.1f} ms", base, "", goal(alone, 50))


def one_session(lake: Any) -> None:
    with lake.session() as session:
        assert session.arrays["a"][:][-1] == 0


# -- small appends


def append(folder: pathlib.Path) -> None:
    rows = next(noise(ELEMENTS, ELEMENTS))
    data = COMMITS * ELEMENTS * 8
    what = f"{COMMITS} commits of {ELEMENTS * 8 // 1024} KiB appends"

    def once(kind: type[Peer]) -> float:
        peer = new(kind, folder)
        os.sync()
        time = seconds(lambda: peer.appends(rows, COMMITS))
        used[kind.name] = peer.disk() / COMMITS / 1024
        return time / COMMITS * 1000

    used: dict[str, float] = {}
    best = interleaved({kind.name: lambda kind=kind: once(kind) for kind in (Memmap, Lake, *OTHERS)}, 3)
    base = best.pop(Memmap.name)
    row(f"{what}: each", f"{best[Lake.name]:.2f} ms", f"{base:.2f} ms", "", goal(best.pop(Lake.name), 4, "10-34 ms"))
    for name, time in best.items():
        row(f"  {name}", f"{time:.2f} ms", f"{base:.2f} ms")
    for name, growth in used.items():
        wanted = goal(growth, 40, "10-904") if name == Lake.name else ""
        row(f"  growth of {name}, each", f"{growth:.1f} KiB", "", "", wanted)
    ours = Lake(folder / "lake")
    with open_lake(ours.folder) as lake:
        pack(lake, 0)
        assert len(lake.arrays["a"]) == COMMITS * ELEMENTS
    share = ours.disk() / data
    row("  after pack, of the data", f"{share:.2f}", "", "", goal(share, 1.05))


def limit(folder: pathlib.Path) -> None:
    from array_places import under_a_limit

    under_a_limit(folder, SIZE, new, goal)


def http(folder: pathlib.Path) -> None:
    from array_places import over_http

    over_http(folder, SIZE)


def url(folder: pathlib.Path) -> None:
    from array_places import by_url

    by_url(folder, SIZE, goal)


PARTS = {
    "read": read,
    "write": write,
    "commit": commit,
    "open": open_,
    "append": append,
    "limit": limit,
    "http": http,
    "url": url,
}


def main() -> None:
    header(Memmap.name)
    for name in sys.argv[1:] or PARTS:
        with place() as folder:
            PARTS[name](folder)


if __name__ == "__main__":
    main()
