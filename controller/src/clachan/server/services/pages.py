"""Pages of a list: the rows after a cursor, by one key that is unique and ordered."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from clachan.contract.api import Page
from clachan.server.services.refusals import Invalid

Row = TypeVar("Row")
View = TypeVar("View")


class Wanted:
    """Which page: `limit` rows after `cursor`."""

    def __init__(self, limit: int = 100, cursor: str | None = None) -> None:
        self.limit = limit
        self.after: Any = None if cursor is None else _decode(cursor)

    def rows(
        self, session: Session, query: Select[Row], *keys: InstrumentedAttribute[Any]
    ) -> tuple[list[Row], str | None]:
        """The rows of the page, in the order of `keys`, and the cursor of the next one."""
        query = query.order_by(*keys)
        if self.after is not None:
            query = query.where(_later(keys, _checked(self.after, keys)))
        found = list(session.scalars(query.limit(self.limit + 1)).unique())
        if len(found) <= self.limit:
            return found, None
        last = found[self.limit - 1]
        return found[: self.limit], _encode([getattr(last, key.key) for key in keys])

    def page(
        self,
        session: Session,
        query: Select[Row],
        keys: InstrumentedAttribute[Any] | Sequence[InstrumentedAttribute[Any]],
        view: Callable[[Row], View],
    ) -> Page[View]:
        rows, cursor = self.rows(session, query, *(keys if isinstance(keys, Sequence) else [keys]))
        return Page[View].model_construct(items=[view(row) for row in rows], cursor=cursor)


def _later(keys: Sequence[InstrumentedAttribute[Any]], values: list[Any]) -> Any:
    """(a, b) > (x, y), spelled out: a > x or (a = x and b > y)."""
    first, value = keys[0], values[0]
    if len(keys) == 1:
        return first > value
    return (first > value) | ((first == value) & _later(keys[1:], values[1:]))


def _encode(values: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def _decode(cursor: str) -> Any:
    try:
        return json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        raise _wrong(cursor) from None


def _checked(values: Any, keys: Sequence[InstrumentedAttribute[Any]]) -> list[Any]:
    kinds = [key.type.python_type for key in keys]
    if not isinstance(values, list) or [type(value) for value in values] != kinds:
        raise _wrong(json.dumps(values))
    return values


def _wrong(cursor: str) -> Invalid:
    return Invalid(f"cursor: {cursor!r}, expected the one of the page before", "cursor")
