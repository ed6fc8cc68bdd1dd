"""The changes that a job goes through, each in the transaction that is open. What a job ends with is committed with its
state, once: what a worker says of an attempt that is not its own any more raises LateError.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from clachan_lake import holders
from clachan_lake.documents import LocalDocuments
from clachan_lake.errors import LakeError, LateError, MissingError, TakenError
from clachan_lake.exchange import npy
from clachan_lake.jobs import document as form
from clachan_lake.jobs import value
from clachan_lake.jobs.document import Order
from clachan_lake.local import LocalLake
from clachan_lake.repeating import repeated

LOG_BYTES = 1 << 20
LOG_PART = 16 << 10
T = TypeVar("T")
Body = bytes | Path


class Outcome(NamedTuple):
    """What a worker says of an attempt's end. `kind`, `body` and its `length` and `digest`: of the result, if any."""

    state: str
    message: str = ""
    kind: str | None = None
    body: Body = b""
    length: int = 0
    digest: str = ""


def commit(lake: LocalLake, change: Callable[[], T]) -> T:
    """In a transaction of its own, done again while other writers are faster; in the caller's when one is open."""
    if lake.active:
        return change()

    def alone() -> T:
        with lake.transaction():
            return change()

    return repeated(alone)


class Ledger:
    def __init__(self, lake: LocalLake) -> None:
        self._lake = lake
        self.documents = LocalDocuments(lake, form.KIND)

    def __getitem__(self, job: str) -> dict[str, Any]:
        """Raises MissingError."""
        if job not in self.documents or not form.ID.fullmatch(job):
            raise MissingError(f"job {job!r:.80}: none of this id")
        return self.documents[job]

    def ids(self, after: str = "") -> Iterator[str]:
        """In the order of submission, behind one."""
        return iter(self.documents.tree.keys(min=after, max=form.JOBS_BEFORE, excludemin=bool(after)))

    def running(self) -> dict[str, dict[str, Any]]:
        """Job -> what is known of its attempt."""
        return {key.partition("/")[2]: self.documents[key] for key in self._keys("running/")}

    @property
    def waiting(self) -> bool:
        """Whether a job waits for a worker."""
        return next(self._keys("queue/"), None) is not None

    # -- by who submits

    def submit(self, job: str, order: Order, call: Body, length: int, submitter: str) -> bool:
        """Queue it; False when it is there already, as a repeat. Raises TakenError when another job has the id, or the
        array `into` exists."""
        form.check_id(job)
        if job in self.documents:
            self._check_same(job, call)
            return False
        if order.into is not None and order.into in self._lake.arrays:
            raise TakenError(f"job, into: array {order.into!r} exists, expected a new name")
        document = form.new(order, submitter)
        self._put(job, document, call, length)
        self.documents.put(form.queue_key(job, document), {})
        return True

    def _check_same(self, job: str, call: Body) -> None:
        there = hashlib.sha256()
        for block in self.blocks(job):
            there.update(block)
        with _opened(call) as file:
            here = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
        if there.digest() != here.digest():
            raise TakenError(f"job {job}: exists with another call, expected a new id")

    def cancel(self, job: str) -> bool:
        """A job that waits ends now, one that runs when its worker hears of it; False when it has ended before."""
        document = self[job]
        if document["state"] in form.ENDED:
            return False
        if document["state"] == form.QUEUED:
            self.documents.delete(form.queue_key(job, document))
            self._end(job, document, form.CANCELLED, "cancelled before it began")
        else:
            self.documents.put(job, {**document, "cancel": True})
        return True

    def delete(self, job: str) -> None:
        """With its result and its log; arrays stay. Raises LateError for one that runs."""
        document = self[job]
        if document["state"] == form.RUNNING:
            raise LateError(f"job {job}: running, expected one that has ended, or cancel it first")
        keys = [form.queue_key(job, document), form.result_key(job), *self._keys(f"log/{job}/")]
        for key in (job, *(key for key in keys if key in self.documents)):
            self.documents.delete(key)

    def put_part(self, part: str, body: Body, length: int) -> None:
        """Keep what several calls have in common. Raises TakenError for an id in use."""
        key = f"part/{form.check_id(part)}"
        if key in self.documents:
            raise TakenError(f"part {part}: exists, expected a new id")
        self._put(key, {}, body, length)

    def part_key(self, part: str) -> str:
        """Raises MissingError."""
        if not form.ID.fullmatch(part) or f"part/{part}" not in self.documents:
            raise MissingError(f"part {part!r:.80}: none of this id")
        return f"part/{part}"

    def delete_part(self, part: str) -> None:
        self.documents.delete(self.part_key(part))

    def forgotten_parts(self, before: int) -> list[str]:
        """Those that were made before a time."""
        found = [key.partition("/")[2] for key in self._keys("part/")]
        return [part for part in found if self.documents.record(f"part/{part}").created < before]

    def log(self, job: str) -> str:
        """What it printed, the last part of it when that is long."""
        self[job]
        text, attempt, position = "", "", 0
        for key in self._keys(f"log/{job}/"):
            part, (number, begin) = self.documents[key], key.rsplit("/", 2)[1:]
            if number != attempt:
                text += f"--- attempt {int(number)}\n" if attempt or int(number) > 1 else ""
                attempt, position = number, 0
            text += f"[{int(begin) - position} bytes left out]\n" if int(begin) > position else ""
            text, position = text + part["text"], part["end"]
        return text

    def blocks(self, key: str) -> Iterator[bytes]:
        """The bytes beside a document."""
        body, position = self.documents.record(key).body, 0
        while body is not None and (block := holders.read(body, position, 1 << 20)):
            yield block
            position += len(block)

    def length(self, key: str) -> int:
        """Of the bytes beside a document."""
        body = self.documents.record(key).body
        return 0 if body is None else holders.size(body)

    # -- by workers

    def take(self, worker: str, slot: str) -> str | None:
        """The first that waits is running now. A slot that asks again, as it had no answer, gets the same job."""
        if (job := self.held_by(slot)) is not None:
            return job
        key = next(self._keys("queue/"), None)
        if key is None:
            return None
        job = key.rpartition("/")[2]
        self.documents.delete(key)
        document = self[job]
        begun = {"state": form.RUNNING, "attempt": document["attempt"] + 1, "worker": worker, "slot": slot}
        self.documents.put(job, {**document, **begun, "started": form.now(), "message": ""})
        self.documents.put(form.running_key(job), {"attempt": begun["attempt"], "worker": worker, "slot": slot})
        return job

    def held_by(self, slot: str) -> str | None:
        """The job that a worker's slot has."""
        return next((job for job, known in self.running().items() if known["slot"] == slot), None)

    def held(self, job: str, attempt: int) -> dict[str, Any]:
        """The job, if this attempt is the one that runs; raises LateError."""
        document = self[job]
        if document["state"] != form.RUNNING or document["attempt"] != attempt:
            raise LateError(
                f"job {job}, attempt: {attempt}, which is over, expected one that runs; it is {document['state']} "
                f"with attempt {document['attempt']}"
            )
        return document

    def add_log(self, job: str, attempt: int, position: int, text: str) -> bool:
        """What it printed from a position (in bytes) on; False for a repeat. Long ago printed parts go."""
        self.held(job, attempt)
        keys, end = list(self._keys(f"log/{job}/")), position + len(text.encode())
        last = keys[-1] if keys and keys[-1].startswith(f"log/{job}/{attempt:03d}/") else None
        part: dict[str, Any] = self.documents[last] if last else {"text": "", "end": 0}
        if last and position < part["end"]:
            return False
        if last and position == part["end"] and len(part["text"]) + len(text) <= LOG_PART:
            return self.documents.put(last, {"text": part["text"] + text, "end": end})
        self.documents.put(form.log_key(job, attempt, position), {"text": text, "end": end})
        for key in keys[: max(0, len(keys) + 1 - LOG_BYTES // LOG_PART)]:
            self.documents.delete(key)
        return True

    def finish(self, job: str, attempt: int, outcome: Outcome) -> bool:
        """End the attempt; False for a repeat. Raises LateError, ValueError for a result that is none."""
        document = self[job]
        ended = [attempt, hashlib.sha256(f"{outcome.state} {outcome.kind} {outcome.digest}".encode()).hexdigest()]
        if document["finished"] == ended:
            return False
        document = self.held(job, attempt)
        message, result = outcome.message, None
        if outcome.state == form.DONE:
            result, message = self._keep(job, document, outcome)
        self.documents.delete(form.running_key(job))
        self._end(job, {**document, "result": result, "finished": ended}, outcome.state, message)
        return True

    def give_back(self, job: str, attempt: int, message: str, *, counts: bool = True) -> str:
        """The attempt is over without an end: the job waits again, or is lost after its last attempt. Without `counts`
        it was no attempt. Returns the new state."""
        document = self.held(job, attempt)
        self.documents.delete(form.running_key(job))
        if document["cancel"]:
            return self._end(job, document, form.CANCELLED, message)
        if counts and attempt >= document["attempts"]:
            return self._end(job, document, form.LOST, f"{message}; it was begun {attempt} times")
        # the number of an attempt is never used twice: who had it may still speak of it
        more = 0 if counts else 1
        waits = {"state": form.QUEUED, "worker": None, "slot": None, "attempts": document["attempts"] + more}
        self.documents.put(job, {**document, **waits, "message": form.message(message)})
        self.documents.put(form.queue_key(job, document), {})
        return form.QUEUED

    def _keep(self, job: str, document: dict[str, Any], outcome: Outcome) -> tuple[dict[str, Any], str]:
        """The result in its array or arrays, or beside the job; and what is to be said of that."""
        if outcome.kind not in value.KINDS:
            raise ValueError(f"kind: {outcome.kind!r:.80}, expected one of {', '.join(value.KINDS)}")
        message = outcome.message
        if document["into"] is not None:
            point = self._lake.savepoint()
            try:
                return self._fill(job, document["into"], outcome), message
            except (ValueError, TypeError, LakeError) as error:
                # hours of work are not thrown away for a name
                point.rollback()
                message = f"into {document['into']!r}: {error}; the result is kept with the job"
        key = form.result_key(job)
        self._put(key, {"kind": outcome.kind}, outcome.body, outcome.length)
        return {"kind": outcome.kind, "bytes": outcome.length}, message

    def _fill(self, job: str, into: str, outcome: Outcome) -> dict[str, Any]:
        what = f"job {job}, result"
        with _opened(outcome.body) as file:
            if outcome.kind == "npy":
                tree, parts = {"array": 0}, [(0, outcome.length)]
            elif outcome.kind == "tree":
                tree, parts = value.open_tree(file, what)
            else:
                raise ValueError(f"{outcome.kind}, expected an array, or a list or dict of arrays")
            for name, number in value.leaves(tree, into, len(parts)):
                array = npy.from_npy(self._lake.arrays, name, value.part(file, *parts[number]))
                cast("MutableMapping[str, Any]", array.attrs)["job"] = job
        return {"kind": "arrays", "bytes": outcome.length, "tree": tree}

    def _end(self, job: str, document: dict[str, Any], state: str, message: str) -> str:
        ended = {"state": state, "ended": form.now(), "message": form.message(message)}
        self.documents.put(job, {**document, **ended})
        return state

    def _put(self, key: str, document: dict[str, Any], body: Body, length: int) -> None:
        self.documents.put(key, document)
        record = self.documents.record(key)
        self._lake.adopt(record)
        record.body = holders.hold(record._p_jar, body, length)

    def _keys(self, prefix: str) -> Iterator[str]:
        for key in self.documents.tree.keys(min=prefix):
            if not key.startswith(prefix):
                return
            yield key


@contextmanager
def _opened(body: Body) -> Iterator[BinaryIO]:
    with io.BytesIO(body) if isinstance(body, bytes) else body.open("rb") as file:
        yield file


def described(job: str, document: dict[str, Any]) -> dict[str, Any]:
    """What is told of a job."""
    return {"id": job, **{key: one for key, one in document.items() if key not in {"slot", "finished"}}}


def as_json(described: dict[str, Any]) -> str:
    return json.dumps(described)
