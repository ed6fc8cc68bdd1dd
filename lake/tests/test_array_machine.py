"""Arrays beside a numpy model, on every storage: sessions of this process and of others append, store, cut, go back,
commit (also at the same time), abort, look at the past and pack, in any order."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from clachan_lake.arrays import folding, pages
from clachan_lake.database import database
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.storage.memory import MemoryStorage
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .acting import CONFLICT, PIECES, Far, Near
from .making import Server

CHUNK = 3 * 4096
WHO = st.integers(0, 4)
VALUES = st.integers(-9, 9)


class Place:
    """A lake, and who works with it: two sessions of this process, and processes that open `target` for themselves, to
    write or only to read."""

    def __init__(
        self, opened: Callable[[], Any], target: Any = None, *, writing: int = 0, reading: int = 0, **options: Any
    ) -> None:
        self._opened = opened
        self._lake: LocalLake = opened()
        self.near = [Near(lambda: self._lake.session()) for _ in range(2)]
        self.far = [Far(target, **options, read_only=number >= writing) for number in range(writing + reading)]
        self.all = [*self.near, *self.far]
        self.writers = self.all[: len(self.near) + writing]

    def open_again(self, actor: Near | Far) -> list[Near | Far]:
        """Its lake, with all whose it is as well."""
        if isinstance(actor, Far):
            actor.do("close")
            actor.do("open")
            return [actor]
        for near in self.near:
            near.do("close")
        self._lake.close()
        self._lake = self._opened()
        for near in self.near:
            near.do("open")
        return [*self.near]

    def close(self) -> None:
        with ExitStack() as work:
            work.callback(self._lake.close)
            for near in self.near:
                work.callback(near.do, "close")
            for far in self.far:
                work.callback(far.end)


class Model:
    """What a session must see: the commit it began from, and what it made of it."""

    def __init__(self, actor: Near | Far, base: Any) -> None:
        self.actor = actor
        self.pasts: list[Any] = []
        self.see(base, actor.do("refresh"))

    def see(self, base: Any, tid: str) -> None:
        self.base, self.tid = base, tid
        self.now = base.copy()
        self.note = ""
        self.open = self.cut = False
        self.appends_only = True
        self.points: list[tuple[Any, bool]] = []


class ArrayMachine(RuleBasedStateMachine):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.models: list[Model] = []
        self.notes = map(str, count())
        self.past: list[tuple[str, Any]] = []
        """The commits, and the array as each left it."""
        self.packed = ""

    @initialize(rows=st.integers(0, 3000), columns=st.integers(1, 3), order=st.sampled_from("CF"))
    def begin_all(self, rows: int, columns: int, order: str) -> None:
        self.columns, self.order = columns, order
        self.committed = self.turned(np.zeros((rows, columns), "<i8"))
        name = f"array-{uuid4().hex}"
        self.place.writers[0].do("make", name, self.committed.shape, order, CHUNK)
        for actor in self.place.all:
            actor.do("use", name)
        self.models = [Model(actor, self.committed) for actor in self.place.all]
        self.past.append((self.models[0].tid, self.committed))

    def turned(self, rows: Any) -> Any:
        return rows if self.order == "C" else rows.T

    by_rows = turned

    def writer(self, who: int) -> Model:
        return self.models[who % len(self.place.writers)]

    def begun(self, who: int) -> Model:
        """The session, inside a transaction."""
        model = self.writer(who)
        if not model.open:
            note = next(self.notes)
            model.see(self.committed, model.actor.do("begin", note))
            model.open, model.note = True, note
        return model

    # -- changes

    @rule(who=WHO, rows=st.integers(0, 900), value=VALUES, alone=st.booleans())
    def append(self, who: int, rows: int, value: int, alone: bool) -> None:
        """And perhaps nothing else in the transaction."""
        model = self.begun(who)
        new = np.arange(rows * self.columns).reshape(-1, self.columns) + value
        model.actor.do("append", self.turned(new))
        model.now = self.turned(np.concatenate([self.by_rows(model.now), new]))
        if alone:
            self.commit({who})

    @rule(who=WHO, rows=st.slices(3000), value=VALUES, column=st.booleans(), alone=st.booleans())
    def store(self, who: int, rows: slice, value: int, column: bool, alone: bool) -> None:
        model = self.begun(who)
        key: Any = (rows, 0) if column else (rows, slice(None))
        model.actor.do("store", key if self.order == "C" else key[::-1], value)
        model.appends_only = False
        self.by_rows(model.now)[key] = value
        if alone:
            self.commit({who})

    @rule(who=WHO, start=st.integers(0, 3000), rows=st.integers(1, 50), value=VALUES)
    def store_through_a_view(self, who: int, start: int, rows: int, value: int) -> None:
        model = self.begun(who)
        model.actor.do("store_through_a_view", start, start + rows, value)
        model.appends_only = False
        self.by_rows(model.now)[start : start + rows] = value

    @rule(who=WHO, rows=st.integers(0, 3000))
    def resize(self, who: int, rows: int) -> None:
        model = self.begun(who)
        grown = np.zeros((rows, self.columns), "<i8")
        kept = self.by_rows(model.now)[:rows]
        grown[: len(kept)] = kept
        model.now = self.turned(grown)
        model.actor.do("resize", model.now.shape)
        model.cut, model.appends_only = True, False

    @rule(who=WHO)
    def savepoint(self, who: int) -> None:
        model = self.begun(who)
        model.actor.do("savepoint")
        model.points.append((model.now.copy(), model.cut))

    @rule(who=WHO, data=st.data())
    @precondition(lambda self: any(model.points for model in self.models))
    def rollback(self, who: int, data: Any) -> None:
        model = self.writer(who)
        if not model.points:
            return
        number = data.draw(st.integers(0, len(model.points) - 1))
        model.actor.do("rollback", number)
        now, model.cut = model.points[number]
        model.now = now.copy()
        del model.points[number + 1 :]

    # -- boundaries

    @rule(whos=st.sets(WHO, min_size=1))
    @precondition(lambda self: any(model.open for model in self.models))
    def commit(self, whos: set[int]) -> None:
        """Of several, at the same time."""
        models = [model for model in {id(found): found for found in map(self.writer, whos)}.values() if model.open]
        for model in models:
            model.actor.post("commit")
        won = [model for model in models if model.actor.take() != CONFLICT]
        if models:
            models[0].actor.do("refresh")
            self.follow(won, {note: tid for tid, note in models[0].actor.do("notes")})
        for model in models:
            if model not in won:
                self.check_conflict(model)
        for model in models:
            self.see_newest(model)

    def follow(self, won: list[Model], numbers: dict[str, str]) -> None:
        """Their commits one behind the other, in the order that the lake gave them."""
        for model in sorted(won, key=lambda one: numbers.get(one.note, "")):
            self.committed = self.merged(model)
            if model.note in numbers:
                self.past.append((numbers[model.note], self.committed))
            elif len(won) > 1:
                np.testing.assert_array_equal(model.base, model.now, "a change that is in no history")

    def merged(self, model: Model) -> Any:
        """What the session did, done to the newest commit."""
        if model.base is self.committed:
            return model.now.copy()
        base, now, newest = (self.by_rows(array) for array in (model.base, model.now, self.committed))
        if model.cut:
            np.testing.assert_array_equal(model.base, self.committed, "cut beside another change, and no conflict")
            return model.now.copy()
        assert not changed_chunks(base, now) & changed_chunks(base, newest), "one chunk changed twice, and no conflict"
        result = np.concatenate([newest, now[len(base) :]])
        changed = np.nonzero(base != now[: len(base)])
        result[changed] = now[changed]
        return self.turned(result)

    def check_conflict(self, model: Model) -> None:
        assert model.base is not self.committed, "a conflict, though nobody else committed"
        assert not model.appends_only, "a conflict of appends"

    def see_newest(self, model: Model) -> None:
        model.see(self.committed, model.actor.do("refresh"))

    @rule(who=WHO)
    def abort(self, who: int) -> None:
        model = self.writer(who)
        if model.open:
            model.see(self.committed, model.actor.do("abort"))

    @rule(who=WHO)
    def refresh(self, who: int) -> None:
        model = self.models[who % len(self.models)]
        if not model.open:
            self.see_newest(model)

    @rule(who=WHO)
    def merge(self, who: int) -> None:
        model = self.writer(who)
        if not model.open:
            # others may have a conflict with it
            self.committed = self.committed.copy()
            model.see(self.committed, model.actor.do("merge"))

    @rule(who=WHO)
    def open_again(self, who: int) -> None:
        opened = self.place.open_again(self.models[who % len(self.models)].actor)
        for model in self.models:
            if model.actor in opened:
                model.pasts = []
                self.see_newest(model)

    # -- the past

    @rule(who=WHO, back=st.integers(0, 9), kept=st.booleans())
    def look_back(self, who: int, back: int, kept: bool) -> None:
        """At a commit, which is kept from being packed away then, or let go again."""
        model = self.models[who % len(self.models)]
        tid, expected = self.past[-1 - back % len(self.past)]
        if tid > model.tid:
            # not seen yet: the newest that is
            tid, expected = model.tid, model.base
        found = model.actor.do("hold", tid)
        if tid < self.packed:
            assert found is None
            return
        np.testing.assert_array_equal(found, expected)
        model.pasts.append(expected)
        if not kept or len(model.pasts) > 3:
            model.actor.do("let_go")
            del model.pasts[0]

    @rule(who=WHO, beside=WHO)
    def pack(self, who: int, beside: int) -> None:
        """While another commits."""
        packing, other = self.writer(who), self.writer(beside)
        if packing.open:
            return
        packing.actor.post("pack")
        if other.open:
            self.commit({beside})
        self.packed = max(self.packed, packing.actor.take())
        assert self.packed <= min(model.actor.do("oldest") for model in self.models)
        self.see_newest(packing)

    @invariant()
    def equal(self) -> None:
        for model in self.models:
            model.actor.post("show")
        for model in self.models:
            now, views, pasts, faults = model.actor.take()
            assert now.shape == model.now.shape
            np.testing.assert_array_equal(now, model.now)
            rows = self.by_rows(model.now)
            for view in views:
                common = min(len(view), len(rows))
                np.testing.assert_array_equal(view[:common], rows[:common])
            for past, expected in zip(pasts, model.pasts, strict=True):
                np.testing.assert_array_equal(past, expected)
            assert faults == []

    def teardown(self) -> None:
        # an error here would hide the one that ended it
        if self.models and sys.exc_info()[0] is None:
            for who, model in enumerate(self.models):
                self.abort(who)
                self.see_newest(model)
            self.equal()
        for actor in self.place.all:
            actor.do("leave")
        if self.models:
            self.place.writers[0].do("delete")


def changed_chunks(base: Any, now: Any) -> set[int]:
    """Of the rows that both have, each of whose values has 8 bytes."""
    common = min(len(base), len(now))
    return set((np.flatnonzero(base[:common] != now[:common]) * 8 // CHUNK).tolist())


def run(place: Place, examples: int) -> None:
    limits = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(partial(ArrayMachine, place), settings=limits)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    return Place(lambda: open_lake(tmp_path / "lake"), tmp_path / "lake", reading=1)


@pytest.fixture
def memory() -> Place:
    storage = MemoryStorage(kept=True)
    return Place(lambda: LocalLake(database(storage)))


@pytest.fixture
def socket(own_server: Server) -> Place:
    own_server.start()
    blobs = own_server.folder / "blobs"
    return Place(
        lambda: open_lake(own_server.socket, blobs=blobs), own_server.socket, writing=2, reading=1, blobs=blobs
    )


@pytest.fixture
def postgresql(url: str, tmp_path: Path) -> Place:
    blobs = tmp_path / "blobs"
    return Place(lambda: open_lake(url, blobs=blobs), url, writing=2, reading=1, blobs=blobs)


@pytest.fixture
def place(where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """`where` is one of the above, and perhaps the way in which stored pages are found."""
    name, _, method = where.partition(" ")
    monkeypatch.setattr(folding, "PIECES", PIECES)
    monkeypatch.setenv("CLACHAN_LAKE_PAGES", method)
    pages.method.cache_clear()
    try:
        pages.method()
    except OSError as error:
        pytest.skip(f"this machine cannot: {error}")
    made: Place = request.getfixturevalue(name)
    try:
        yield made
    finally:
        pages.method.cache_clear()
        made.close()


EXAMPLES = {"folder scan": 20, "folder table": 20, "memory": 30, "socket": 15, "postgresql": 4}


@pytest.mark.slow
@pytest.mark.parametrize(("where", "examples"), EXAMPLES.items(), ids=list(EXAMPLES))
def test_sessions_do_as_numpy(place: Place, examples: int) -> None:
    run(place, examples)


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("where", "examples"), EXAMPLES.items(), ids=list(EXAMPLES))
def test_sessions_do_as_numpy_for_long(place: Place, examples: int) -> None:
    run(place, examples * 10)
