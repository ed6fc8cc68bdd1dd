"""Finding data sets by words, kind and tag; a page at a time, in the order of their names.

Records are read one by one and let go of, so memory is the same however many there are; a search that finds little
reads at most `SCANNED` of them before it answers with a cursor to go on from.
"""

from collections.abc import Iterator
from heapq import merge
from itertools import chain, islice
from typing import Any

from clachan_lake.catalogue import entry
from clachan_lake.errors import LakeError
from clachan_lake.local import LocalLake

SCANNED = 2000
WORDS = 16
AHEAD = 64
OWN = "~"
"""Names that begin with it are the lake's own: pyramids and the like."""


class CursorError(LakeError, ValueError):
    """A cursor that no answer gave."""


def search(
    lake: LocalLake,
    query: str = "",
    kind: str = "",
    tag: str = "",
    *,
    limit: int = 50,
    cursor: str = "",
    hidden: bool = False,
) -> tuple[list[dict[str, Any]], str | None]:
    """At most `limit` summaries, and the cursor for those that follow, None at the end. Every word of the query must
    be in the name, title, description, owner or a tag, in any case of letters. There may be fewer, and more behind the
    cursor. Raises CursorError, also for a kind that is none."""
    words = query.casefold().split()[:WORDS]
    found: list[dict[str, Any]] = []
    last = cursor
    for number, (name, of, record) in enumerate(records(lake, kind, cursor, hidden=hidden)):
        if len(found) == limit or number == SCANNED:
            return found, last
        last = f"{of} {name}"
        if one := _matching(of, record, words, tag):
            found.append(one)
        let_go(record)
    return found, None


def everything(lake: LocalLake, query: str = "", kind: str = "", tag: str = "") -> Iterator[dict[str, Any]]:
    """All that `search` finds, page by page."""
    cursor: str | None = ""
    while cursor is not None:
        found, cursor = search(lake, query, kind, tag, limit=500, cursor=cursor)
        yield from found


def let_go(record: Any) -> None:
    """Of what was read, so that many records take the memory of one."""
    for one in (record, getattr(record, "state", None)):
        if one is not None:
            one._p_deactivate()  # does nothing to what this transaction has changed


def _matching(kind: str, record: Any, words: list[str], tag: str) -> dict[str, Any] | None:
    if words or tag:
        attrs = entry.attributes(record)
        tags = entry.tags(attrs)
        if tag and tag not in tags:
            return None
        texts = (entry.text(attrs, key, None) for key in ("title", "description", "owner"))
        all_text = "\n".join((record.name, *texts, *tags)).casefold()
        if not all(word in all_text for word in words):
            return None
    return entry.summary(kind, record)


def records(
    lake: LocalLake, kind: str = "", cursor: str = "", *, hidden: bool = False
) -> Iterator[tuple[str, str, Any]]:
    """(name, kind, record) in the order of names, behind the cursor. Raises CursorError."""
    found, root = _names(lake, kind, cursor, hidden), lake.root()
    while batch := list(islice(found, AHEAD)):
        made = [root[entry.KINDS[of]][name] for name, of in batch]
        # asked for together, as each would else be a question to the server and the wait for its answer
        made[0]._p_jar.prefetch(made)
        for (name, of), record in zip(batch, made, strict=True):
            yield name, of, record


def _names(lake: LocalLake, kind: str, cursor: str, hidden: bool) -> Iterator[tuple[str, str]]:
    if kind and kind not in entry.KINDS:
        raise CursorError(f"kind: {kind!r:.80}, expected array or stream")
    last, _, after = cursor.partition(" ")
    if cursor and last not in entry.KINDS:
        raise CursorError(f"cursor: {cursor!r:.80}, expected one that an answer gave")
    kinds = [kind] if kind else list(entry.KINDS)
    for one in merge(*(_keys(lake, of, after, hidden) for of in kinds)):
        if one > (after, last):
            yield one


def _keys(lake: LocalLake, kind: str, after: str, hidden: bool) -> Iterator[tuple[str, str]]:
    tree = lake.root()[entry.KINDS[kind]]
    # one range each before and behind the lake's own, so that those are not even walked over
    ranges = (
        [tree.keys(min=after)]
        if hidden
        else [tree.keys(min=after, max=OWN, excludemax=True), tree.keys(min=max(after, "\x7f"))]
    )
    for name in chain(*ranges):
        yield name, kind
