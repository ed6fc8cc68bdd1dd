"""Which transformations follow which sources: the keys of "positions", and of "due", in the transaction that is open.

A source gets its followers when it is made (`attach`), and when a transformation is declared (`follow`). A stream that
has something new for a follower is in "due" until that has caught up; arrays are compared by the serial of their state,
which their position keeps, since appends of many processes to one array go on at the same time.
"""

import json
from functools import lru_cache
from typing import Any

from clachan_lake.documents import LocalDocuments, Session
from clachan_lake.format import StreamRecord

Key = tuple[str, str, str]
"""Kind (stream or array), source, transformation."""
NEW: dict[str, Any] = {
    "position": 0,
    "state": {},
    "status": "waiting",
    "failures": 0,
    "next_try": None,
    "message": "",
    "warnings": [],
    "output": None,
    "revision": 0,
    "dead": 0,
    "serial": None,
}
"""A position at the beginning. `serial`: of an array's state, hex, when it was caught up."""


def matches(document: dict[str, Any], kind: str, name: str, policy: str | None) -> bool:
    """Whether a transformation's document has the source in mind. Names of the lake's own have no followers."""
    source = document["source"]
    if source["kind"] != kind or name.startswith("~"):
        return False
    if source.get("policy") is not None and source["policy"] != policy:
        return False
    pattern = source.get("pattern")
    return pattern is None or _compiled(pattern).match(name) is not None


@lru_cache(256)
def _compiled(pattern: str) -> Any:
    from clachan_lake.policies.pattern import Pattern

    return Pattern(pattern)


def attach(lake: Session, kind: str, record: Any) -> None:
    """Give a new source its followers."""
    policy = getattr(record, "policy", None)
    tree = lake.root()["transformations"]
    if tree._p_jar is not None:
        # a declaration at the same time writes it: one of the two is done again, and sees the other
        tree._p_activate()
        tree._p_jar.readCurrent(tree)
    for transformation, document in LocalDocuments(lake, "transformations").items():
        if matches(document, kind, record.name, policy):
            follow(lake, kind, record, transformation, document)


def follow(
    lake: Session, kind: str, record: Any, transformation: str, document: dict[str, Any], *, position: int = 0
) -> None:
    """The transformation reads the source from `position` on; a position that is there stays."""
    root = lake.root()
    key = (kind, record.name, transformation)
    if key not in root["positions"]:
        LocalDocuments(lake, "positions").put(key, {**NEW, "position": position})
    if kind == "stream":
        wants = document.get("on", "chunk")
        others = tuple(one for one in record.followers if one[0] != transformation)
        record.followers = (*others, (transformation, wants))
        if record.size > position and (wants == "chunk" or record.ended):
            mark(record, root["due"], wants)


def unfollow(lake: Session, kind: str, record: Any, transformation: str) -> None:
    """The transformation is no more; its position is forgotten."""
    root = lake.root()
    key = (kind, record.name, transformation)
    root["positions"].pop(key, None)
    if kind == "stream":
        record.followers = tuple(one for one in record.followers if one[0] != transformation)
        caught_up(record, root["due"], transformation)


def mark(record: StreamRecord, due: Any, what: str) -> None:
    """The stream has something new for those of its followers that wait for `what`."""
    for transformation, wants in record.followers:
        if wants == what and transformation not in record.due:
            record.due = (*record.due, transformation)
            due.insert(("stream", record.name, transformation))


def caught_up(record: StreamRecord, due: Any, transformation: str) -> None:
    """The follower has nothing to do here until the stream has something new."""
    if transformation in record.due:
        record.due = tuple(one for one in record.due if one != transformation)
        due.remove(("stream", record.name, transformation))


def positions(lake: Session, kind: str, name: str) -> dict[str, dict[str, Any]]:
    """Of the followers of a source, by name."""
    tree = lake.root()["positions"]
    found = {}
    for key in tree.keys(min=(kind, name, "")):
        if key[:2] != (kind, name):
            break
        found[key[2]] = json.loads(tree[key].text)
    return found
