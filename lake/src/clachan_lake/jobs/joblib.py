"""joblib's backend `clachan`: each batch of calls is a job of the lake, so scikit-learn's searches run on its workers.

    import clachan_lake.jobs.joblib  # registers it
    with joblib.parallel_config("clachan", lake=lake):
        search.fit(X, y)

Without `lake` it is the one that `open_lake()` opens. Results are opened as pickles, as joblib's own backends do: trust
the workers as you trust the machine. Arrays of a MiB or more are kept once for all batches of a call, and are read-only
in them. A batch's job is deleted when its result is there, and the arrays when the call has ended.
"""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from joblib import register_parallel_backend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from clachan_lake.errors import LakeError
from clachan_lake.interface import Lake
from clachan_lake.jobs.job import Job
from clachan_lake.jobs.parts import Sharing
from clachan_lake.opening import open_lake

NAME = "clachan"
ENOUGH = 64
"""Threads that wait for jobs."""


class ClachanBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """`options` are those of `Lake.submit`: scheduler, timeout_seconds, memory_mib, modules."""

    supports_retrieve_callback = True
    # a job has a process of its own, which imports what it needs: some seconds
    MIN_IDEAL_BATCH_DURATION = 5.0
    MAX_IDEAL_BATCH_DURATION = 60.0

    def __init__(self, lake: Lake | None = None, nesting_level: int | None = None, **options: Any) -> None:
        super().__init__(nesting_level=nesting_level)
        self._given = lake
        self._options = options
        self._lake: Lake | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
        self._aborted = False
        self._sharing: Sharing | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """-1: as many as the lake's workers do at a time."""
        if n_jobs == 0:
            raise ValueError("n_jobs: 0, expected at least 1, or -1 for as many as the workers do at a time")
        if n_jobs is None or n_jobs > 0:
            return n_jobs or 1
        with contextlib.ExitStack() as closing:
            lake = self._lake or self._given or closing.enter_context(open_lake())
            return max(1, len(lake.jobs.workers()) + 1 + n_jobs)

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, **_more: Any) -> int:
        self.parallel = parallel
        count = self.effective_n_jobs(n_jobs)
        if self._pool is None:
            self._lake = self._given.session() if self._given else open_lake()
            self._pool = ThreadPoolExecutor(min(count * 2, ENOUGH), thread_name_prefix=NAME)
        self._aborted = False
        return count

    def start_call(self) -> None:
        assert self._lake is not None
        self._shared_lake = self._lake.session()
        self._sharing = Sharing(self._shared_lake.jobs)

    def stop_call(self) -> None:
        if self._sharing is not None:
            # of calls that were ended: no others are made any more
            with self._lock, contextlib.suppress(LakeError):
                self._sharing.close()
            self._shared_lake.close()
            self._sharing = None

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> "Future[Any]":
        assert self._pool is not None
        future = self._pool.submit(self._call, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: "Future[Any]") -> Any:
        return out.result()

    def terminate(self) -> None:
        self.reset_batch_stats()
        if self._pool is not None and self._lake is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._lake.close()
        self._pool = self._lake = None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what was submitted and has not ended."""
        self._aborted = True
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            with contextlib.suppress(LakeError):
                job.cancel()
        self.terminate()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def _call(self, func: Callable[[], Any]) -> Any:
        assert self._lake is not None
        with self._lake.session() as lake:
            with self._lock:
                keep = self._sharing.keep if self._sharing else None
                job = lake.jobs.submit(func, (), {}, keep=keep, name="joblib", **self._options)
                self._jobs.add(job)
            try:
                if self._aborted:
                    job.cancel()
                return job.result(trust=True)
            finally:
                with self._lock:
                    self._jobs.discard(job)
                with contextlib.suppress(LakeError):
                    job.delete()


register_parallel_backend(NAME, ClachanBackend)
