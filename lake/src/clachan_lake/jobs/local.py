"""Jobs of a lake that is open here, by its folder or its server's socket."""

import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clachan_lake.interface import Array
from clachan_lake.jobs import document as form
from clachan_lake.jobs.job import Jobs
from clachan_lake.jobs.ledger import Ledger, commit, described
from clachan_lake.local import LocalLake

LOOK_SECONDS = 0.2


class LocalJobs(Jobs):
    """A change belongs to the transaction that is open, or is one of its own. What is read is what is committed."""

    def __init__(self, lake: LocalLake) -> None:
        self._lake = lake

    def put(self, job: str, order: dict[str, Any], call: bytes) -> None:
        asked, ledger = form.read(order), Ledger(self._lake)
        commit(self._lake, lambda: ledger.submit(job, asked, call, len(call), _user()))

    def meta(self, job: str, known: str | None = None, seconds: float = 0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            with self._reading() as ledger:
                found = described(job, ledger[job])
            if found["state"] != known or time.monotonic() >= end:
                return found
            time.sleep(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))

    def cancel(self, job: str) -> bool:
        ledger = Ledger(self._lake)
        return commit(self._lake, lambda: ledger.cancel(job))

    def __delitem__(self, job: str) -> None:
        ledger = Ledger(self._lake)
        commit(self._lake, lambda: ledger.delete(job))

    def log(self, job: str) -> str:
        with self._reading() as ledger:
            return ledger.log(job)

    @contextmanager
    def open_result(self, job: str) -> Iterator[Iterator[bytes]]:
        with self._reading() as ledger:
            yield ledger.blocks(form.result_key(job))

    def put_part(self, part: str, data: bytes) -> None:
        ledger = Ledger(self._lake)
        commit(self._lake, lambda: ledger.put_part(part, data, len(data)))

    @contextmanager
    def open_part(self, part: str) -> Iterator[Iterator[bytes]]:
        with self._reading() as ledger:
            yield ledger.blocks(ledger.part_key(part))

    def delete_part(self, part: str) -> None:
        ledger = Ledger(self._lake)
        commit(self._lake, lambda: ledger.delete_part(part))

    def array(self, name: str) -> Array:
        if not self._lake.active:
            self._lake.refresh()
        return self._lake.arrays[name]

    def items_of(self, state: str | None = None) -> Iterator[dict[str, Any]]:
        with self._reading() as ledger:
            for job in ledger.ids():
                document = ledger[job]
                if state is None or document["state"] == state:
                    yield described(job, document)

    def workers(self) -> list[dict[str, Any]]:
        with self._reading() as ledger:
            return [
                {"worker": known["worker"], "slot": known["slot"], "job": job}
                for job, known in ledger.running().items()
            ]

    @contextmanager
    def _reading(self) -> Iterator[Ledger]:
        """What is committed now, or what the open transaction has made."""
        if self._lake.active:
            yield Ledger(self._lake)
            return
        with self._lake.session() as session:
            yield Ledger(session)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
