"""What a token may do. Scopes:

admin               all
write               read, and change streams, arrays and what is kept of them
read                read all data and what is told of it
compute             submit jobs
work                take jobs and say how they ended
ingest:<policy>     send data to that policy; ingest:* to any
view:<kind>/<name>  one data set's page, plot and data; kind is stream or array
"""

import re
from collections.abc import Iterable

from clachan_lake.names import NAME_BYTES
from clachan_lake.policies.policy import NAME

ADMIN, WRITE, READ, COMPUTE, WORK = "admin", "write", "read", "compute", "work"
INGEST, VIEW = "ingest", "view"
PLAIN = (ADMIN, WRITE, READ, COMPUTE, WORK)
KINDS = ("stream", "array")
_CONTAINED = {READ: {READ, WRITE, ADMIN}, **{scope: {scope, ADMIN} for scope in (WRITE, COMPUTE, WORK, ADMIN)}}
_VIEW = re.compile(rf"{VIEW}:({'|'.join(KINDS)})/(.+)")


def check_scope(scope: str) -> str:
    """The scope itself; raises ValueError."""
    if isinstance(scope, str) and scope.isprintable():
        kind, _, rest = scope.partition(":")
        if scope in PLAIN or (kind == INGEST and (rest == "*" or NAME.fullmatch(rest))):
            return scope
        if (found := _VIEW.fullmatch(scope)) and len(found.group(2).encode()) <= NAME_BYTES:
            return scope
    raise ValueError(
        f"{scope!r:.80}, expected {', '.join(PLAIN)}, {INGEST}:<policy>, {INGEST}:* or {VIEW}:<stream or array>/<name>"
    )


def allow(scopes: Iterable[str], need: str) -> bool:
    """Whether they contain a scope that `need` names."""
    held = frozenset(scopes)
    if ADMIN in held or need in held:
        return True
    kind = need.partition(":")[0]
    if kind == INGEST:
        return f"{INGEST}:*" in held
    if kind == VIEW:
        return bool(held & _CONTAINED[READ])
    return bool(held & _CONTAINED[need])


def only_views(scopes: Iterable[str]) -> bool:
    """Whether they are those of a gadget, whose token may stand in a URL."""
    return all(scope.startswith(f"{VIEW}:") for scope in scopes)
