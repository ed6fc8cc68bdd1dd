"""What a user has in hand: jobs of a lake, wherever it is."""

import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, BinaryIO

from clachan_lake.errors import JobError
from clachan_lake.interface import Array
from clachan_lake.jobs import call as calls
from clachan_lake.jobs import document as form
from clachan_lake.jobs import value

POLL_SECONDS = 30.0


class Jobs(Mapping[str, "Job"], ABC):
    """The jobs of a lake by their ids, in the order of their submission."""

    @abstractmethod
    def put(self, job: str, order: dict[str, Any], call: bytes) -> None:
        """Queue a call; a repeat changes nothing."""

    @abstractmethod
    def meta(self, job: str, known: str | None = None, seconds: float = 0) -> dict[str, Any]:
        """The job's document with its id; with `known`, when its state is another one, or after the time. Raises
        MissingError."""

    @abstractmethod
    def cancel(self, job: str) -> bool: ...

    @abstractmethod
    def log(self, job: str) -> str: ...

    @abstractmethod
    def open_result(self, job: str) -> AbstractContextManager[Iterator[bytes]]: ...

    @abstractmethod
    def put_part(self, part: str, data: bytes) -> None:
        """Keep a part of calls (`clachan_lake.jobs.parts`)."""

    @abstractmethod
    def open_part(self, part: str) -> AbstractContextManager[Iterator[bytes]]: ...

    @abstractmethod
    def delete_part(self, part: str) -> None: ...

    @abstractmethod
    def array(self, name: str) -> Array: ...

    @abstractmethod
    def items_of(self, state: str | None = None) -> Iterator[dict[str, Any]]:
        """The documents of all, or of those in a state."""

    @abstractmethod
    def workers(self) -> list[dict[str, Any]]:
        """The slots of workers that the service heard of lately: {"worker", "slot", "job"}."""

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        modules: Iterable[ModuleType] = (),
        keep: Callable[[Any], str] | None = None,
        **order: Any,
    ) -> "Job":
        packed = calls.pack(function, args, kwargs, modules, keep)
        asked = {key: one for key, one in order.items() if one is not None}
        asked = {"name": calls.label(function), "environment": calls.environment(packed), **asked}
        form.read(asked)
        job = form.new_id()
        self.put(job, asked, packed)
        return Job(self, job)

    def __getitem__(self, job: str) -> "Job":
        self.meta(job)
        return Job(self, job)

    def __iter__(self) -> Iterator[str]:
        return (item["id"] for item in self.items_of())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Job:
    """A call that a worker makes or made. Each property is asked for anew."""

    def __init__(self, jobs: Jobs, job: str) -> None:
        self._jobs = jobs
        self.id = job

    @property
    def document(self) -> dict[str, Any]:
        """All that is known of it."""
        return self._jobs.meta(self.id)

    @property
    def state(self) -> str:
        """queued, running, done, failed, cancelled or lost."""
        return str(self.document["state"])

    @property
    def message(self) -> str:
        return str(self.document["message"])

    @property
    def log(self) -> str:
        """What it printed, with the traceback of what it raised."""
        return self._jobs.log(self.id)

    def cancel(self) -> bool:
        """End it; False when it has ended before."""
        return self._jobs.cancel(self.id)

    def delete(self) -> None:
        """Forget it, with its result and log. Raises LateError, RemoteError for one that runs."""
        del self._jobs[self.id]  # type: ignore[attr-defined]

    def wait(self, seconds: float | None = None) -> str:
        """The state when it has ended, or after the time."""
        return str(self._wait(seconds)["state"])

    def result(self, seconds: float | None = None, *, trust: bool = False) -> Any:
        """What the function returned; waits for it. With `into`, the arrays of the lake. Raises JobError for a job that
        ended otherwise, TimeoutError after the time, UntrustedError for a pickle without `trust`: opening it runs code
        of the job."""
        found = self._wait(seconds)
        if found["state"] not in form.ENDED:
            raise TimeoutError(f"job {self.id}: {found['state']} after {seconds} s, expected an end")
        if found["state"] != form.DONE:
            raise JobError(f"job {self.id}, {found['name']}: {found['state']}: {found['message']}", found["state"])
        result = found["result"]
        if result["kind"] == "arrays":
            return value.named(result["tree"], self._jobs.array, found["into"])
        with tempfile.TemporaryFile() as file:
            self._fetch(file, result["bytes"] if trust or result["kind"] != "pickle" else 0)
            return value.read(result["kind"], file, f"job {self.id}", trust=trust)

    def _fetch(self, file: BinaryIO, size: int) -> None:
        if size:
            with self._jobs.open_result(self.id) as blocks:
                for block in blocks:
                    file.write(block)
        file.seek(0, os.SEEK_SET)

    def _wait(self, seconds: float | None) -> dict[str, Any]:
        end = None if seconds is None else time.monotonic() + seconds
        found = self._jobs.meta(self.id)
        while found["state"] not in form.ENDED:
            rest = POLL_SECONDS if end is None else end - time.monotonic()
            if rest <= 0:
                break
            found = self._jobs.meta(self.id, found["state"], min(rest, POLL_SECONDS))
        return found

    def __repr__(self) -> str:
        return f"<job {self.id} {self.state}>"
