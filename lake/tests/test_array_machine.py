"""Arrays beside a numpy model: sessions that append, store, cut, go back, commit and abort in any order."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.arrays import pages
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
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
from ZODB.POSException import ConflictError

CHUNK = 3 * 4096
SESSIONS = 2
WHO = st.integers(0, SESSIONS - 1)


class Model:
    """What a session must see: the commit it began from, and what it made of it."""

    def __init__(self, lake: LocalLake, base: Any) -> None:
        self.lake = lake
        self.see(base)

    def see(self, base: Any) -> None:
        self.base = base
        self.now = base.copy()
        self.open = False
        self.cut = False
        self.points: list[tuple[Any, Any, bool]] = []
        self.views: list[Any] = []


class ArrayMachine(RuleBasedStateMachine):
    order = "C"

    @initialize(columns=st.integers(1, 3))
    def begin_all(self, columns: int) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.lake = open_lake(Path(self.place.name) / "lake")
        assert isinstance(self.lake, LocalLake)
        self.columns = columns
        self.committed = self.turned(np.zeros((0, columns), "<i8"))
        with self.lake.transaction():
            self.lake.arrays.create("a", self.committed.shape, "<i8", chunk_bytes=CHUNK, order=self.order)
        self.models = [Model(self.lake.session(), self.committed) for _ in range(SESSIONS)]

    def turned(self, rows: Any) -> Any:
        return rows if self.order == "C" else rows.T

    def by_rows(self, array: Any) -> Any:
        return array if self.order == "C" else array.T

    def at(self, who: int) -> Model:
        """The session, inside a transaction."""
        model = self.models[who]
        if not model.open:
            model.lake.begin()
            model.see(self.committed)
            model.open = True
        return model

    @rule(who=WHO, count=st.integers(0, 900), value=st.integers(-9, 9))
    def append(self, who: int, count: int, value: int) -> None:
        model = self.at(who)
        rows = self.turned(np.arange(count * self.columns).reshape(-1, self.columns) + value)
        model.lake.arrays["a"].append(rows)
        model.now = self.turned(np.concatenate([self.by_rows(model.now), self.by_rows(rows)]))

    @rule(who=WHO, rows=st.slices(3000), value=st.integers(-9, 9), column=st.booleans())
    def store(self, who: int, rows: slice, value: int, column: bool) -> None:
        model = self.at(who)
        key: Any = (rows, 0) if column else rows
        array = model.lake.arrays["a"]
        array[key if self.order == "C" else ((0, rows) if column else (slice(None), rows))] = value
        self.by_rows(model.now)[key] = value

    @rule(who=WHO, start=st.integers(0, 3000), count=st.integers(1, 50), value=st.integers(-9, 9))
    def store_through_a_view(self, who: int, start: int, count: int, value: int) -> None:
        model = self.at(who)
        view = self.by_rows(model.lake.arrays["a"][...])
        view[start : start + count] = value
        self.by_rows(model.now)[start : start + count] = value
        model.views = [*model.views, view][-3:]

    @rule(who=WHO, count=st.integers(0, 3000))
    def resize(self, who: int, count: int) -> None:
        model = self.at(who)
        model.views = []
        grown = np.zeros((count, self.columns), "<i8")
        kept = self.by_rows(model.now)[:count]
        grown[: len(kept)] = kept
        model.now = self.turned(grown)
        model.lake.arrays["a"].resize(model.now.shape)
        model.cut = True

    @rule(who=WHO)
    def savepoint(self, who: int) -> None:
        model = self.at(who)
        model.points.append((model.lake.savepoint(), model.now.copy(), model.cut))

    @rule(who=WHO, data=st.data())
    @precondition(lambda self: any(model.points for model in self.models))
    def rollback(self, who: int, data: Any) -> None:
        model = self.models[who]
        if not model.points:
            return
        number = data.draw(st.integers(0, len(model.points) - 1))
        point, model.now, model.cut = model.points[number]
        model.now = model.now.copy()
        model.points = model.points[: number + 1]
        model.views = [view for view in model.views if len(view) <= len(self.by_rows(model.now))]
        point.rollback()

    @rule(who=WHO)
    def commit(self, who: int) -> None:
        model = self.models[who]
        if not model.open:
            return
        try:
            model.lake.commit()
        except ConflictError:
            assert model.base is not self.committed, "a conflict, though nobody else committed"
        else:
            self.committed = self.merged(model)
        model.see(self.committed)

    def merged(self, model: Model) -> Any:
        """What the session did, done to the newest commit."""
        if model.base is self.committed:
            return model.now.copy()
        base, now, newest = (self.by_rows(array) for array in (model.base, model.now, self.committed))
        if model.cut:
            np.testing.assert_array_equal(model.base, self.committed, "cut beside another change, and no conflict")
            return model.now.copy()
        result = np.concatenate([newest, now[len(base) :]])
        changed = np.nonzero(base != now[: len(base)])
        result[changed] = now[changed]
        return self.turned(result)

    @rule(who=WHO)
    def abort(self, who: int) -> None:
        model = self.models[who]
        if model.open:
            model.lake.abort()
            model.see(self.committed)

    @rule(who=WHO)
    def refresh(self, who: int) -> None:
        model = self.models[who]
        if not model.open:
            model.lake.refresh()
            model.see(self.committed)

    @rule()
    def open_again(self) -> None:
        for model in self.models:
            model.lake.close()
        self.lake.close()
        self.lake = open_lake(Path(self.place.name) / "lake")
        assert isinstance(self.lake, LocalLake)
        self.models = [Model(self.lake.session(), self.committed) for _ in range(SESSIONS)]

    @invariant()
    def equal(self) -> None:
        for model in self.models:
            array = model.lake.arrays["a"]
            assert array.shape == model.now.shape
            np.testing.assert_array_equal(array[...], model.now)
            for view in model.views:
                np.testing.assert_array_equal(view, self.by_rows(model.now)[: len(view)])
            if not model.open:
                assert array.verify() == []

    def teardown(self) -> None:
        if hasattr(self, "lake"):
            for model in self.models:
                model.lake.close()
            self.lake.close()
            self.place.cleanup()


class FortranMachine(ArrayMachine):
    order = "F"


def run(machine: type[RuleBasedStateMachine], examples: int) -> None:
    limits = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(machine, settings=limits)


@pytest.fixture(params=[pages.ScanMethod, pages.TableMethod])
def forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the ways to find written pages."""
    made = request.param()
    try:
        list(made.written(0, pages.PAGE))
    except OSError as error:
        pytest.skip(f"this machine cannot: {error}")
    monkeypatch.setattr(pages, "method", lambda: made)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [ArrayMachine, FortranMachine])
@pytest.mark.usefixtures("forced")
def test_sessions_do_as_numpy(machine: type[RuleBasedStateMachine]) -> None:
    run(machine, 25)


@pytest.mark.heavy
@pytest.mark.parametrize("machine", [ArrayMachine, FortranMachine])
@pytest.mark.usefixtures("forced")
def test_sessions_do_as_numpy_for_long(machine: type[RuleBasedStateMachine]) -> None:
    run(machine, 200)
