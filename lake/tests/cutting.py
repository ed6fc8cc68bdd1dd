"""A power cut: what a lake had on the disk at a moment, with all that was not synced lost, kept or torn.

`Recorder` runs inside the process that writes. Before each step on the file system (`sys.addaudithook` tells them) and
at each sync it reads the folder as it is, stores into mapped files included, and keeps what the last fsync of each file
and of each folder made safe. An `Event` is both; `materialize` makes of it a folder as it may be found after the cut.

As a script it is that process: `cutting.py FOLDER RESULT embedded|socket COMMITS [SKIPPED]`.
"""

import hashlib
import os
import pickle
import random
import re
import stat
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 4096
STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "open"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Disk:
    """Files by inode, each with its content's digest; folders by inode, each with its names."""

    files: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)

    def copy(self) -> "Disk":
        return Disk(dict(self.files), {number: dict(names) for number, names in self.names.items()})


@dataclass
class Event:
    """A moment: how many commits were acknowledged, what there is, and what is safe."""

    acknowledged: int
    live: Disk
    safe: Disk
    step: str


@dataclass
class Record:
    top: int
    events: list[Event]
    contents: dict[bytes, bytes]


class Recorder:
    """`skipped` is a pattern of paths whose fsync does nothing."""

    def __init__(self, top: Path, skipped: str = "") -> None:
        self.top = top
        self.acknowledged = -1
        self.record = Record(top.stat().st_ino, [], {b"": b""})
        self.safe = Disk()
        self._skipped = re.compile(skipped or "(?!)")
        self._lock = threading.RLock()
        self._busy = False
        self._kept: dict[int, int] = {}
        self._fsync = os.fsync

    def install(self) -> None:
        os.fsync = self.fsync
        os.fdatasync = self.fsync
        sys.addaudithook(self._hear)

    def fsync(self, file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        with self._lock:
            self.note(f"fsync {path}")
            if self._skipped.search(path):
                return
            self._busy = True
            try:
                inode = os.fstat(number).st_ino
                if stat.S_ISDIR(os.fstat(number).st_mode):
                    self.safe.names[inode] = self._names(Path(path))
                else:
                    self.safe.files[inode] = self._content(f"/proc/self/fd/{number}")
            finally:
                self._busy = False

    def acknowledge(self, number: int) -> None:
        with self._lock:
            self.acknowledged = number
            self.note(f"acknowledged {number}")

    def note(self, step: str) -> None:
        """What there is now becomes an event, if it differs from the last one."""
        with self._lock:
            if self._busy:
                return
            self._busy = True
            try:
                live = Disk()
                self._read(self.top, live)
            finally:
                self._busy = False
            events = self.record.events
            event = Event(self.acknowledged, live, self.safe.copy(), step)
            if not events or (events[-1].live, events[-1].safe, events[-1].acknowledged) != (
                event.live,
                event.safe,
                event.acknowledged,
            ):
                events.append(event)

    def _hear(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name not in STEPS or self._busy or (name == "open" and not (arguments[2] or 0) & WRITING):
            return
        if str(self.top) in os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else True:
            self.note(f"{name} {arguments[0]}")

    def _read(self, folder: Path, disk: Disk) -> None:
        names = disk.names[folder.stat().st_ino] = self._names(folder)
        for name, inode in names.items():
            path = folder / name
            if path.is_dir():
                self._read(path, disk)
            else:
                disk.files[inode] = self._content(path)

    def _names(self, folder: Path) -> dict[str, int]:
        names = {}
        for entry in os.scandir(folder):
            if not (entry.is_file() or entry.is_dir()):
                continue
            names[entry.name] = entry.inode()
            if entry.inode() not in self._kept:
                # an open file's inode is not used for another one
                self._kept[entry.inode()] = os.open(entry.path, os.O_RDONLY)
        return names

    def _content(self, path: Path | str) -> bytes:
        data = Path(path).read_bytes()
        digest = hashlib.sha256(data).digest()
        self.record.contents.setdefault(digest, data)
        return digest


# -- after the cut

MODES = ("lost", "kept", "half", "torn")


def materialize(record: Record, event: Event, mode: str, chance: random.Random, target: Path) -> None:
    """The folder after the cut: what was not synced is lost, kept, half kept, or any mixture of blocks and names."""
    block = chance.choice([512, 4096])

    def content(inode: int) -> bytes:
        live = record.contents[event.live.files.get(inode, b"")]
        safe = record.contents[event.safe.files.get(inode, b"")]
        if mode in {"lost", "kept"} or live == safe or inode not in event.live.files:
            return live if mode == "kept" else safe
        return mix(safe, live, mode, block, chance)

    def names(inode: int) -> dict[str, int]:
        live, safe = event.live.names.get(inode, {}), event.safe.names.get(inode, {})
        if mode == "lost":
            return safe
        if mode in {"kept", "half"}:
            return live
        mixed = {}
        for name in sorted({*live, *safe}):
            found = chance.choice([live, safe]).get(name)
            if found is not None:
                mixed[name] = found
        return mixed

    def make(inode: int, folder: Path) -> None:
        folder.mkdir()
        for name, found in names(inode).items():
            if found in event.live.names or found in event.safe.names:
                make(found, folder / name)
            else:
                (folder / name).write_bytes(content(found))

    make(record.top, target)


def mix(safe: bytes, live: bytes, mode: str, block: int, chance: random.Random) -> bytes:
    """Blocks of the one and of the other; a block that was never on the disk is zero."""
    length = len(live) if mode == "half" else chance.choice([len(safe), len(live)])
    length = min(length, len(live)) if len(live) < len(safe) else length
    count = -(-length // block)
    changed = [n for n in range(count) if live[n * block : (n + 1) * block] != safe[n * block : (n + 1) * block]]
    taken = set(changed[: len(changed) // 2]) if mode == "half" else {n for n in changed if chance.random() < 0.5}
    parts = []
    for number in range(count):
        part = (live if number in taken else safe)[number * block : (number + 1) * block]
        parts.append(part.ljust(block, b"\0"))
    return b"".join(parts)[:length]


# -- what is written

State = dict[str, Any]


def apply(lake: Any, state: State, number: int) -> None:
    """Commit `number` to the lake (or None) and to its model: a counter in whole chunks, in single bytes and in two
    tails, and now and then a cut."""
    for arrays in (state, *([lake.arrays] if lake is not None else [])):
        a = arrays["a"]
        a[number % 3 * CHUNK : (number % 3 + 1) * CHUNK] = number
        a[4 * CHUNK + number] = number
        a[5 * CHUNK + 7] = number
        if number % 5 == 4 and lake is not None and arrays is lake.arrays:
            lake.savepoint()
        a[6 * CHUNK + number] = number
        if number % 4 == 3:
            length = number % 7 * 3001
            if arrays is state:
                arrays["cut"] = np.concatenate([state["cut"], np.zeros(length, "u1")])[:length].copy()
            else:
                arrays["cut"].resize(length)
            arrays["cut"][number:] = number
        rows = np.full(200 if number % 3 else 1500, number, "i8")
        if arrays is state:
            arrays["log"] = np.concatenate([state["log"], rows])
        else:
            arrays["log"].append(rows)


def first_state() -> State:
    return {"a": np.zeros(8 * CHUNK, "u1"), "log": np.zeros(0, "i8"), "cut": np.zeros(0, "u1")}


def states(count: int) -> list[State]:
    """What there is after each commit: the first makes the arrays."""
    found = [first_state()]
    for number in range(1, count):
        state = dict(found[-1], a=found[-1]["a"].copy(), cut=found[-1]["cut"].copy())
        apply(None, state, number)
        found.append(state)
    return found


def work(lake: Any, count: int, recorder: Recorder) -> None:
    with lake.transaction():
        for name, value in first_state().items():
            lake.arrays.create(name, value.shape, value.dtype, chunk_bytes=CHUNK)
    recorder.acknowledge(0)
    state = first_state()
    for number in range(1, count):
        with lake.transaction():
            apply(lake, state, number)
        recorder.acknowledge(number)


def serve(folder: Path, count: int, recorder: Recorder) -> None:
    """As `work`, through a server's socket in the same process: the client makes the blobs, the server commits."""
    from clachan_lake import database, open_lake
    from ZEO.StorageServer import StorageServer

    storage = database.own(folder)
    server = StorageServer(str(folder.parent / "s"), {"1": storage})
    thread = threading.Thread(target=server.loop, daemon=True)
    thread.start()
    with open_lake(folder.parent / "s", blobs=folder / "blobs") as lake:
        work(lake, count, recorder)
    server.close()
    thread.join()
    storage.close()


def main(folder: str, result: str, kind: str, commits: str, skipped: str = "") -> None:
    recorder = Recorder(Path(folder), skipped)
    recorder.install()
    from clachan_lake import open_lake

    if kind == "socket":
        serve(Path(folder) / "lake", int(commits), recorder)
    else:
        with open_lake(Path(folder) / "lake") as lake:
            work(lake, int(commits), recorder)
    recorder.note("closed")
    with open(result, "wb") as file:
        pickle.dump(recorder.record, file)


if __name__ == "__main__":
    sys.modules["cutting"] = sys.modules["__main__"]
    main(*sys.argv[1:])
