"""Jobs of a lake at a URL."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clachan_lake.interface import Array
from clachan_lake.jobs.job import Jobs
from clachan_lake.remote import RemoteLake

BLOCK_BYTES = 1 << 20


class RemoteJobs(Jobs):
    def __init__(self, lake: RemoteLake) -> None:
        self._lake = lake

    def put(self, job: str, order: dict[str, Any], call: bytes) -> None:
        self._lake.call("POST", "/jobs", data=memoryview(call), id=job, order=json.dumps(order))

    def meta(self, job: str, known: str | None = None, seconds: float = 0) -> dict[str, Any]:
        # shorter than the time limit of a request
        wait = min(seconds, self._lake.timeout_seconds / 2) if known else 0
        found: dict[str, Any] = self._lake.get("/jobs/meta", id=job, state=known, wait=wait).json()
        return found

    def cancel(self, job: str) -> bool:
        return bool(self._lake.call("POST", "/jobs/cancel", id=job).json()["cancelled"])

    def __delitem__(self, job: str) -> None:
        self._lake.call("DELETE", "/jobs/meta", id=job)

    def log(self, job: str) -> str:
        return self._lake.get("/jobs/log", id=job).content.decode()

    @contextmanager
    def open_result(self, job: str) -> Iterator[Iterator[bytes]]:
        with self._lake.get("/jobs/result", id=job) as answer:
            yield answer.iter_content(BLOCK_BYTES)

    def put_part(self, part: str, data: bytes) -> None:
        self._lake.call("PUT", "/jobs/part", data=memoryview(data), id=part)

    @contextmanager
    def open_part(self, part: str) -> Iterator[Iterator[bytes]]:
        with self._lake.get("/jobs/part", id=part) as answer:
            yield answer.iter_content(BLOCK_BYTES)

    def delete_part(self, part: str) -> None:
        self._lake.call("DELETE", "/jobs/part", id=part)

    def array(self, name: str) -> Array:
        return self._lake.arrays[name]

    def items_of(self, state: str | None = None) -> Iterator[dict[str, Any]]:
        return self._lake.items("/jobs", state=state)

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._lake.get("/jobs/workers").json()["items"]
        return found
