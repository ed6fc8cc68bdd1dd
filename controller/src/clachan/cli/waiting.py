"""Waiting for an instance, with progress and the exit status that the outcome has."""

import queue
import threading
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, cast

from clachan.cli.errors import DONE, FAILED, STILL_WAITING
from clachan.cli.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clachan.client import Client
    from clachan.contract.api import InstanceView

T = TypeVar("T")
SILENT_SECONDS = 2.0
NAMED = 4
"""How many children's reasons are shown at a time."""


def wait_for_instance(
    client: "Client", path: str, seconds: float, stale: "InstanceView | None" = None
) -> "tuple[int, InstanceView | None]":
    """The exit status and how the instance was last seen; None when it is gone, which is a success."""
    from clachan.client import UnreachableError
    from clachan.client.waiting import verdict, watch

    last: InstanceView | None = None
    with Progress(path) as progress:
        for seen in watch(client, path, seconds):
            if seen is None:
                return DONE, None
            if isinstance(seen, UnreachableError):
                progress.say("unknown", str(seen))
                continue
            last = seen
            progress.say(seen.observed.state, why(seen, children_say(client, seen)))
            found = verdict(seen, stale)
            if found != "waiting":
                return (DONE if found == "done" else FAILED), seen
    return STILL_WAITING, last


def patiently(what: str, doing: str, work: "Callable[[], T]") -> "T":
    """The result of `work`; says what is waited for when that takes a while."""
    # a daemon: an interrupt does not wait for the answer
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = done.get(timeout=SILENT_SECONDS)
    except queue.Empty:
        with Progress(what) as progress:
            progress.say(doing)
            result, error = done.get()
    if error is not None:
        raise error
    return cast("T", result)


def children_say(client: "Client", instance: "InstanceView") -> list[str]:
    """What those of its children say that keep it from being converged: the first few."""
    if all(promise.ok for promise in instance.observed.promises.values()):
        return []
    family = client.instances(tenant=instance.path.partition(".")[0]) if instance.children else ()
    lacking = (one for one in family if one.path in instance.children and one.observed.state != one.wanted)
    said = (f"{one.path.rpartition('.')[2]}: {one.observed.message}" for one in lacking if one.observed.message)
    return list(islice(said, NAMED))


def why(instance: "InstanceView", children: "Iterable[str]" = ()) -> str:
    """In one line: the node's or the controller's message, the promises that fail, the revision that is awaited."""
    observed = instance.observed
    parts = [observed.message] if observed.message else []
    parts += [f"{name}: {promise.message or 'fails'}" for name, promise in observed.promises.items() if not promise.ok]
    parts += children
    if observed.revision != instance.revision and observed.state not in {"waiting", "failed"}:
        parts.append(f"revision {instance.revision} not converged yet")
    return "; ".join(dict.fromkeys(parts))
