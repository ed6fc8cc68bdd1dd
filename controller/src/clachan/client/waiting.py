"""Waiting for an instance: watch it by long polls until it is what was declared, or its node says that it failed."""

import time
from collections.abc import Iterator
from typing import Literal

from clachan.client.client import Client
from clachan.client.errors import ApiError, UnreachableError
from clachan.contract.api import InstanceView

POLL_SECONDS = 20
PAUSE = 1.0

Verdict = Literal["done", "failed", "waiting"]


def verdict(instance: InstanceView, stale: InstanceView | None = None) -> Verdict:
    """Whether the instance is what its newest revision says.

    `stale` is how it was before that revision: a failure that it already had says nothing about the new revision.
    """
    observed = instance.observed
    if observed.state == "failed":
        return "waiting" if stale is not None and stale.observed == observed else "failed"
    if observed.revision == instance.revision and observed.state == instance.wanted:
        return "done"
    return "waiting"


def watch(client: Client, path: str, seconds: float) -> Iterator[InstanceView | UnreachableError | None]:
    """The instance now and at every change, for `seconds`; then it ends.

    None: it is gone, and that is the last. An UnreachableError is no end: the controller may come back.
    """
    deadline = time.monotonic() + seconds
    etag: str | None = None
    while True:
        began = time.monotonic()
        try:
            found = client.poll_instance(path, etag, wait=int(max(0, min(POLL_SECONDS, deadline - began))))
        except ApiError as error:
            if error.status != 404:
                raise
            yield None
            return
        except UnreachableError as error:
            found = None
            yield error
        if found is not None:
            etag = found.etag or None
            yield found.document
        left = deadline - time.monotonic()
        if left <= 0:
            return
        if found is None or not found.etag:
            # an early 304, a controller without etags or none at all: never a busy loop
            time.sleep(max(0.0, min(left, PAUSE - (time.monotonic() - began))))
