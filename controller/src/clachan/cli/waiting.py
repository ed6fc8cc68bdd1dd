"""Waiting for an instance, with progress and the exit status that the outcome has."""

from typing import TYPE_CHECKING

from clachan.cli.errors import DONE, FAILED, STILL_WAITING
from clachan.cli.progress import Progress

if TYPE_CHECKING:
    from clachan.client import Client
    from clachan.contract.api import InstanceView


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
            progress.say(seen.observed.state, why(seen))
            found = verdict(seen, stale)
            if found != "waiting":
                return (DONE if found == "done" else FAILED), seen
    return STILL_WAITING, last


def why(instance: "InstanceView") -> str:
    """In one line: the node's or the controller's message, the promises that fail, the revision that is awaited."""
    observed = instance.observed
    parts = [observed.message] if observed.message else []
    parts += [f"{name}: {promise.message or 'fails'}" for name, promise in observed.promises.items() if not promise.ok]
    if observed.revision != instance.revision and observed.state not in {"waiting", "failed"}:
        parts.append(f"revision {instance.revision} not converged yet")
    return "; ".join(dict.fromkeys(parts))
