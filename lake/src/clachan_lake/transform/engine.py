"""Runs transformations: what is due, a batch at a time, position and output in one commit.

A call of a function that raises changes nothing. What it failed with is at the position, and it is tried again later,
each time after a longer wait; a batch of several chunks first chunk by chunk. A chunk that failed too often is a dead
letter and the position moves behind it; a whole stream that did so has failed, until it ends anew or is retried. Errors
of the disk and of the lake are nobody's failure: they are raised.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from clachan_lake import following
from clachan_lake.documents import LocalDocuments
from clachan_lake.errors import CorruptError, TruncatedError
from clachan_lake.following import Key
from clachan_lake.local import LocalLake
from clachan_lake.policies.dead import TRANSFORMATION, LocalDead
from clachan_lake.repeating import repeated
from clachan_lake.transform import document, position, queue, resetting, sources
from clachan_lake.transform.batch import Batch, ContentError, State
from clachan_lake.transform.calling import CONNECT_SECONDS, AwayError, Caller, Operation
from clachan_lake.transform.document import Transformation
from clachan_lake.transform.outputs import LocalOutput, OutputError
from clachan_lake.transform.position import Position
from clachan_lake.transform.sources import Piece

log = logging.getLogger(__name__)
STATE_BYTES = 32 << 20
KIND = "transformations"


Blame = Literal["function", "content", "cluster"]
"""What failed: the function, which is tried so often; what it read, which is not tried again; or the cluster, until it
is there."""


class CallError(Exception):
    """The function failed."""

    def __init__(self, message: str, blame: Blame) -> None:
        super().__init__(message)
        self.blame = blame


@dataclass(frozen=True)
class Call:
    """What is being run: told to who watches it before the function is called."""

    key: Key
    start: int
    stop: int
    single: bool
    seconds: float
    letter: int | None = None
    """The dead letter that is tried again."""


Watch = Callable[[Call | None], None]
"""Told of each call, and with None when the function has returned."""


class Engine:
    """`watch` see above."""

    def __init__(self, lake: LocalLake, watch: Watch = lambda call: None, caller: Caller | None = None) -> None:
        self._lake = lake
        self._watch = watch
        self._caller = caller or Caller()

    def run_due(self) -> int:
        """Everything that is due now; how many calls succeeded."""
        done = 0
        self._lake.refresh()
        while keys := queue.ready(self._lake).keys:
            for key in keys:
                done += self.step(key)
            self._lake.refresh()
        return done

    def step(self, key: Key) -> bool:
        """One batch of a source; whether a call succeeded. Raises OSError of the disk."""
        # the source may have been appended to, or the transformation be another one now: from anew
        return repeated(partial(self._step, key))

    def _step(self, key: Key) -> bool:
        call: Call | None = None
        try:
            with self._lake.transaction(f"transformation {key[2]}"[:200]):
                job = _Job.load(self._lake, key)
                if job is None:
                    return False
                piece = job.piece()
                if piece is None:
                    job.rest()
                    return False
                call = Call(key, piece.batch.start, piece.batch.stop, piece.single, job.seconds, job.letter)
                self._watch(call)
                try:
                    job.run(piece, self._caller)
                finally:
                    self._watch(None)
            return True
        except CallError as error:
            assert call is not None
            fail(self._lake, call, str(error), error.blame)
        except (CorruptError, TruncatedError) as error:
            if call is None:
                call = Call(key, 0, 0, False, 0)
            fail(self._lake, call, str(error), "function")
        return False


@dataclass
class _Job:
    lake: LocalLake
    key: Key
    transformation: Transformation
    revision: int
    position: Position
    letter: int | None = None

    @classmethod
    def load(cls, lake: LocalLake, key: Key) -> "_Job | None":
        """None when the source or the transformation is gone; what is left of it is then removed."""
        kind, source, name = key
        records = lake.root()[f"{kind}s"]
        found, known = position.get(lake, key), LocalDocuments(lake, KIND)
        if found is None or name not in known or source not in records:
            queue.forget(lake, key)
            return None
        record = known.record(name)
        # a change of the transformation while this runs is a conflict, and what was run is thrown away
        record._p_activate()
        record._p_jar.readCurrent(record)
        try:
            transformation = document.read(name, known[name])
        except ValueError as error:
            found.failed(str(error))
            position.put(lake, key, found)
            return None
        if transformation.paused or not queue.is_ready(found):
            return None
        return cls(lake, key, transformation, record.revision, found)

    @property
    def seconds(self) -> float:
        """After which whoever watches ends the call; that of a cluster ends by itself before."""
        return self.transformation.timeout_seconds + (2 * CONNECT_SECONDS if self.transformation.scheduler else 0)

    def piece(self) -> Piece | None:
        while self.position.replays:
            number = self.position.replays[0]
            if number in self.lake.dead:
                self.letter = number
                return sources.of_letter(self.lake, self.lake.dead[number], self.transformation)
            self.position.replays = self.position.replays[1:]
        if self.key[0] == "stream":
            stream = self.lake.streams[self.key[1]]
            if self.transformation.whole and self.key[2] not in stream.record.due:
                # it was run since it ended, and once is enough
                return None
            return sources.of_stream(stream, self.position, self.transformation)
        name, found = self.key[1], self.position
        if found.position and found.seen and sources.is_rewritten(self.lake, name, found.seen):
            try:
                resetting.reset(self.lake, self.key, found)
            except resetting.SharedError as error:
                found.failed(str(error))
                position.put(self.lake, self.key, found)
                return None
        return sources.of_array(self.lake.arrays[name], found, self.transformation)

    def rest(self) -> None:
        """There is nothing new."""
        (kind, name, transformation), found = self.key, self.position
        if not queue.is_ready(found):
            # it has just failed
            return
        before = replace(found)
        ended = False
        if kind == "stream":
            stream = self.lake.streams[name]
            following.caught_up(stream.record, self.lake.root()["due"], transformation)
            ended = stream.final
        else:
            found.serial = found.seen = sources.serial(self.lake, name)
        if found.status in {"running", "retrying"} or (kind == "array" and found != before):
            found.status = "done" if ended else "waiting"
            found.failures, found.next_try = 0, None
            position.put(self.lake, self.key, found)

    def run(self, piece: Piece, caller: Caller) -> None:
        """Call the function and note how far it is. Raises CallError."""
        (kind, source, name), found, batch = self.key, self.position, piece.batch
        output = LocalOutput(self.lake, name, self.transformation, batch.kind, source, anew=self.transformation.whole)
        state = {} if self.transformation.whole else json.loads(json.dumps(found.state))
        left = _called(caller, Operation(name, self.transformation, self.revision), batch, output, state)
        self._note_output(output)
        if self.letter is not None:
            self._bury()
            return
        found.state = left
        if batch.final:
            output.end()
        found.ran(_summary(self.lake, output) if self.transformation.whole else "")
        found.position, found.revision = batch.stop, self.revision
        found.status = "done" if batch.final else "running" if batch.stop < piece.end else "waiting"
        if kind == "array":
            found.seen = sources.serial(self.lake, source)
            if batch.stop == piece.end:
                found.serial = found.seen
        elif self.transformation.whole:
            stream = self.lake.streams[source]
            following.caught_up(stream.record, self.lake.root()["due"], name)
            # it was read just now, and who shows it later need not do so again
            stream.record.sha256 = stream.sha256() if not stream.start else None
        position.put(self.lake, self.key, found)

    def _note_output(self, output: LocalOutput) -> None:
        found = self.position
        found.warnings = [] if self.transformation.whole else found.warnings
        for text in output.warnings:
            found.warn(text)
        found.outputs = [*found.outputs, *([*one] for one in output.used if [*one] not in found.outputs)]
        if output.used and found.output is None:
            found.output = next(iter(output.used))[1]

    def _bury(self) -> None:
        """The dead letter is done; what its call has left in the state is not for what comes later."""
        assert self.letter is not None
        self.lake.dead.delete(self.letter)
        self.position.replays = self.position.replays[1:]
        self.position.dead = max(0, self.position.dead - 1)
        position.put(self.lake, self.key, self.position)


def _called(caller: Caller, what: Operation, batch: Batch, output: LocalOutput, state: State) -> State:
    try:
        left = caller(what, batch, output, state)
        text = json.dumps(left, allow_nan=False)
        if not isinstance(left, dict) or len(text) > STATE_BYTES:
            raise OutputError(f"state: {len(text)} bytes of JSON, expected an object of at most {STATE_BYTES}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if output.trouble is not None:
            raise output.trouble from None
        if isinstance(error, CorruptError | TruncatedError | ConnectionError):
            raise
        raise CallError(_message(error), _blame(error)) from error
    if output.trouble is not None:
        raise output.trouble
    return left


def _blame(error: BaseException) -> Blame:
    if isinstance(error, AwayError):
        return "cluster"
    return "content" if isinstance(error, ContentError) else "function"


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    if text and isinstance(error, ContentError | OutputError | AwayError):
        return text
    return f"{type(error).__name__}: {text}"


def _summary(lake: LocalLake, output: LocalOutput) -> str:
    """Of what a whole stream has become."""
    shown = []
    for kind, name in output.used:
        if kind == "array":
            array = lake.arrays[name]
            shown.append(f"array {name} {array.shape} {array.dtype}")
        else:
            shown.append(f"stream {name} {lake.streams[name].size} bytes")
    return ", ".join(shown)


def fail(lake: LocalLake, call: Call, message: str, blame: Blame) -> None:
    """Note that a call failed: to be tried again, given up, or done again chunk by chunk."""

    def alone() -> None:
        with lake.transaction(f"transformation {call.key[2]}: failed"[:200]):
            _fail(lake, call, message, blame)

    repeated(alone)


def _fail(lake: LocalLake, call: Call, message: str, blame: Blame) -> None:
    kind, source, name = call.key
    found, known = position.get(lake, call.key), LocalDocuments(lake, KIND)
    if found is None or name not in known:
        return
    log.warning("transformation %s of %s %r at %d: %s", name, kind, source, call.start, message)
    transformation = document.read(name, known[name])
    if call.letter is not None:
        found.replays = [one for one in found.replays if one != call.letter]
        found.message = f"dead letter {call.letter}: {message}"[: position.MESSAGE]
        position.put(lake, call.key, found)
        return
    if not call.single and blame != "cluster":
        found.careful, found.message, found.status = call.stop, message[: position.MESSAGE], "retrying"
    else:
        found.failed(message)
        if blame == "content" or (blame == "function" and found.failures >= transformation.attempts):
            _give_up(lake, call, found, message, transformation)
    position.put(lake, call.key, found)


def _give_up(lake: LocalLake, call: Call, found: Position, message: str, transformation: Transformation) -> None:
    kind, source, name = call.key
    found.failures, found.next_try, found.status = 0, None, "failed"
    if transformation.whole:
        if source in lake.streams:
            following.caught_up(lake.streams[source].record, lake.root()["due"], name)
        return
    letter = {
        "kind": TRANSFORMATION,
        "transformation": name,
        "source": source,
        "source_kind": kind,
        "position": call.start,
        "length": call.stop - call.start,
        "reason": message[: position.MESSAGE],
        "content_type": "",
    }
    LocalDead(lake).add(letter)
    found.dead += 1
    found.gap = True
    found.position = max(found.position, call.stop)
    stream = lake.streams[source] if kind == "stream" and source in lake.streams else None
    ended = stream is not None and stream.final and found.position >= stream.size
    found.status = "done" if ended else "waiting"
