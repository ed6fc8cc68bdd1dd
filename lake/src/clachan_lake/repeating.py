"""Doing again what lost to another writer."""

import time
from collections.abc import Callable
from typing import TypeVar

from ZODB.POSException import ConflictError

T = TypeVar("T")
TIMES = 20


def repeated(change: Callable[[], T], times: int = TIMES) -> T:
    """Call until no other writer was faster, which has a transaction of its own; raises ConflictError after `times`."""
    for attempt in range(times - 1):
        try:
            return change()
        except ConflictError:
            time.sleep(0.01 * attempt)
    return change()
