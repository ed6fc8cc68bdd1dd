"""Sessions that do what they are told, in this process or in one of their own.

An `Actor` works with one array of a lake. `Near` is one of this process, `Far` one of a process that is this file as a
script; both take an order (`post`) and say afterwards what came of it (`take`), so that several can be at work at once.
"""

import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from clachan_lake.arrays import folding
from clachan_lake.errors import PackedError
from clachan_lake.keeping.limits import KEY
from clachan_lake.keeping.packing import pack
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from ZODB.POSException import ConflictError

PIECES = 6
"""So many appends are folded, that a few steps come so far."""
CONFLICT = ""


Seen = tuple[Any, list[Any], list[Any], list[str]]
"""The array now, the views that were stored through, the array in the pasts that are held, and what `verify` finds."""


class Actor:
    """Numbers of commits (`tid`) are in hex. `CONFLICT` stands for one that another was faster than."""

    def __init__(self, opened: Callable[[], LocalLake]) -> None:
        self._opened = opened
        self._name = ""
        self._empty()
        self._lake = opened()

    def _empty(self) -> None:
        self._views: list[Any] = []
        self._points: list[Any] = []
        self._pasts: list[LocalLake] = []

    @property
    def _array(self) -> Any:
        return self._lake.arrays[self._name]

    @property
    def _tid(self) -> str:
        return self._lake.tid.hex()

    def _rows(self, array: Any) -> Any:
        return array if self._array.order == "C" else array.T

    # -- the lake

    def close(self) -> None:
        self.leave()
        self._lake.close()

    def open(self) -> None:
        self._lake = self._opened()

    def leave(self) -> None:
        """Keep nothing of the array."""
        if self._lake.active:
            self._lake.abort()
        while self._pasts:
            self.let_go()
        self._empty()

    def make(self, name: str, shape: tuple[int, ...], order: str, chunk_bytes: int) -> None:
        with self._lake.transaction():
            self._lake.arrays.create(name, shape, "<i8", chunk_bytes=chunk_bytes, order=order)

    def delete(self) -> None:
        with self._lake.transaction():
            del self._lake.arrays[self._name]

    def use(self, name: str) -> str:
        self._name = name
        return self.refresh()

    # -- changes

    def begin(self, note: str) -> str:
        self._lake.begin(note)
        return self._tid

    def append(self, rows: Any) -> None:
        self._array.append(rows)

    def store(self, key: Any, value: int) -> None:
        self._array[key] = value

    def store_through_a_view(self, start: int, stop: int, value: int) -> None:
        view = self._rows(self._array[...])
        view[start:stop] = value
        self._views = [*self._views, view][-3:]

    def resize(self, shape: tuple[int, ...]) -> None:
        self._array.resize(shape)

    def savepoint(self) -> None:
        self._points.append(self._lake.savepoint())

    def rollback(self, number: int) -> None:
        self._points[number].rollback()
        del self._points[number + 1 :]

    def commit(self) -> str:
        self._points = []
        try:
            self._lake.commit()
        except ConflictError:
            return CONFLICT
        return self._tid

    def abort(self) -> str:
        self._points = []
        self._lake.abort()
        return self._tid

    def merge(self) -> str:
        self._array.merge()
        return self.refresh()

    # -- the past

    def refresh(self) -> str:
        self._lake.refresh()
        return self._tid

    def notes(self) -> list[tuple[str, str]]:
        """(commit, note) of the array's history, the latest first."""
        return [(revision.id, revision.note) for revision in self._array.history(50)]

    def hold(self, tid: str) -> Any:
        """The array at that commit, which is kept; None when it is packed away."""
        try:
            self._pasts.append(self._lake.at(tid))
        except PackedError:
            return None
        return np.array(self._pasts[-1].arrays[self._name][...])

    def let_go(self) -> None:
        self._pasts.pop(0).close()

    def oldest(self) -> str:
        """The first commit whose state it may still read."""
        return min(lake.tid.hex() for lake in (self._lake, *self._pasts))

    def pack(self) -> str:
        """All that nobody reads; the first commit that is kept."""
        pack(self._lake, 0)
        known: bytes = self._lake.root()[KEY]
        return known.hex()

    def show(self) -> Seen:
        array, pasts = self._array, [past.arrays[self._name] for past in self._pasts]
        faults = [] if self._lake.active else array.verify()
        for past in pasts:
            faults += past.verify()
        views = [np.array(view) for view in self._views]
        return np.array(array[...]), views, [np.array(past[...]) for past in pasts], faults


class Near:
    def __init__(self, opened: Callable[[], LocalLake]) -> None:
        self._actor = Actor(opened)
        self._order: tuple[Any, ...] = ()

    def post(self, *order: Any) -> None:
        self._order = order

    def take(self) -> Any:
        what, *arguments = self._order
        return getattr(self._actor, what)(*arguments)

    def do(self, *order: Any) -> Any:
        self.post(*order)
        return self.take()


class Far:
    """`options` are those of `open_lake`."""

    def __init__(self, target: Any, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(target), json.dumps(options, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._due = 0

    def post(self, *order: Any) -> None:
        while self._due:
            # of a test that failed before it asked
            self._answer()
        assert self._process.stdin
        pickle.dump(order, self._process.stdin)
        self._process.stdin.flush()
        self._due = 1

    def take(self) -> Any:
        done, value = self._answer()
        assert done, value
        return value

    def _answer(self) -> tuple[bool, Any]:
        assert self._process.stdout
        self._due = 0
        found: tuple[bool, Any] = pickle.load(self._process.stdout)
        return found

    def do(self, *order: Any) -> Any:
        self.post(*order)
        return self.take()

    def end(self) -> None:
        """Its orders end, and so does it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def obey(target: str, options: dict[str, Any]) -> None:
    """Orders come as pickles from the standard input, until that ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    folding.PIECES = PIECES
    actor = Actor(lambda: open_lake(target, **options))  # type: ignore[arg-type, return-value]
    while True:
        try:
            what, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        try:
            answer = True, getattr(actor, what)(*arguments)
        except Exception:
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()
    actor.close()


if __name__ == "__main__":
    obey(sys.argv[1], json.loads(sys.argv[2]))
