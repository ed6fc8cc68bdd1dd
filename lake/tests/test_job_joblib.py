"""joblib's backend: calls, and searches of scikit-learn, as jobs of the lake."""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
from clachan_lake.errors import JobError
from clachan_lake.interface import Lake
from clachan_lake.jobs import joblib as backend
from clachan_lake.opening import open_lake

from .making import TOKEN, Server

pytestmark = pytest.mark.slow


@pytest.fixture
def lake(worked_server: Server) -> Iterator[Lake]:
    with open_lake(worked_server.url, token=TOKEN) as opened:
        yield opened


def test_calls_are_made_by_the_worker_and_no_job_is_left(lake: Lake) -> None:
    with joblib.parallel_config(backend.NAME, lake=lake, n_jobs=2):
        found = joblib.Parallel()(joblib.delayed(lambda n: (math.sqrt(n), os.getpid()))(n) for n in range(6))
    assert [root for root, _ in found] == [math.sqrt(n) for n in range(6)]
    assert os.getpid() not in {pid for _, pid in found}
    assert not list(lake.jobs)


def test_through_the_socket(worked_server: Server) -> None:
    with (
        open_lake(worked_server.socket, blobs=worked_server.folder / "blobs") as near,
        joblib.parallel_config(backend.NAME, lake=near, n_jobs=2),
    ):
        assert joblib.Parallel()(joblib.delayed(math.factorial)(n) for n in range(5)) == [1, 1, 2, 6, 24]


def test_the_lake_of_the_environment_and_as_many_as_there_are_workers(
    worked_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLACHAN_LAKE", worked_server.url)
    monkeypatch.setenv("CLACHAN_LAKE_TOKEN_FILE", str(worked_server.token_file))
    assert backend.ClachanBackend().effective_n_jobs(-1) == 2
    assert backend.ClachanBackend().effective_n_jobs(3) == 3
    with joblib.parallel_config(backend.NAME, n_jobs=-1):
        assert joblib.Parallel()(joblib.delayed(len)(text) for text in ("a", "bb")) == [1, 2]


def test_what_raises_ends_the_others(lake: Lake, tmp_path: Path) -> None:
    def work(n: int) -> None:
        if n:
            time.sleep(100)
        raise LookupError("nothing here")

    begin = time.monotonic()
    with (
        joblib.parallel_config(backend.NAME, lake=lake, n_jobs=2),
        pytest.raises(JobError, match="failed: LookupError: nothing here"),
    ):
        joblib.Parallel()(joblib.delayed(work)(n) for n in range(4))
    assert time.monotonic() - begin < 40
    assert not [item for item in lake.jobs.items_of() if item["state"] in {"queued", "running"}]


def test_a_search_of_scikit_learn(lake: Lake) -> None:
    """Its result is that of the search here."""
    datasets = pytest.importorskip("sklearn.datasets", reason="this machine cannot: scikit-learn is not installed")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    rows, classes = datasets.make_classification(300, 8, random_state=3)
    grid = {"C": [0.01, 1.0]}
    here = GridSearchCV(LogisticRegression(), grid, cv=3).fit(rows, classes)
    with joblib.parallel_config(backend.NAME, lake=lake, n_jobs=2):
        there = GridSearchCV(LogisticRegression(), grid, cv=3, n_jobs=2).fit(rows, classes)
    assert there.best_params_ == here.best_params_
    np.testing.assert_allclose(there.cv_results_["mean_test_score"], here.cv_results_["mean_test_score"])
    np.testing.assert_allclose(there.predict_proba(rows), here.predict_proba(rows))


def test_large_arrays_are_kept_once_and_gone_afterwards(lake: Lake, worked_server: Server) -> None:
    """Each call reads them from the lake."""
    rows = np.random.default_rng(1).random((400_000,))
    sent: list[int] = []

    class Watched(backend.ClachanBackend):
        def stop_call(self) -> None:
            with open_lake(worked_server.socket, blobs=worked_server.folder / "blobs") as near:
                sent.extend(len(near.documents("jobs").body(key)) for key in near.documents("jobs"))
            super().stop_call()

    joblib.register_parallel_backend("watched", Watched)
    with joblib.parallel_config("watched", lake=lake, n_jobs=2):
        found = joblib.Parallel()(
            joblib.delayed(lambda values, n: (float(values[n]), values.flags.writeable))(rows, n) for n in range(4)
        )
    assert found == [(rows[n], False) for n in range(4)]
    assert [size for size in sent if size > 1 << 20] == [rows.nbytes + 128]
    with open_lake(worked_server.socket, blobs=worked_server.folder / "blobs") as near:
        assert not list(near.documents("jobs"))
