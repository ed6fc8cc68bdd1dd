"""What the contracts share: opening sessions, new names, and errors that must come."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from uuid import uuid4

from ZODB.POSException import ConflictError

from clachan_lake.local import LocalLake

TRIES = 200


class OpenSession(Protocol):
    """See the package."""

    def __call__(self) -> LocalLake: ...


def new_name(what: str = "test") -> str:
    """One that no lake has."""
    return f"{what}-{uuid4().hex}"


@contextmanager
def raising(kind: type[BaseException]) -> Iterator[None]:
    """The block must raise an error of that kind."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"nothing raised, expected {kind.__name__}")


def commit(lake: LocalLake, change: Callable[[LocalLake], Any]) -> None:
    """As writers do: again, when another was faster."""
    for _ in range(TRIES):
        try:
            with lake.transaction():
                change(lake)
            return
        except ConflictError:
            continue
    raise AssertionError(f"{TRIES} conflicts one behind the other, expected some to be won")


def side_by_side(*work: Callable[[], None]) -> None:
    """Each in a thread of its own, begun at the same time; raises the first error."""
    barrier = threading.Barrier(len(work))
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            barrier.wait(30)
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread still runs after 120 s"
    if errors:
        raise errors[0]
